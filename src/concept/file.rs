//! The TOML of a concept file, read token by token into a [`Concept`]. A tree of its values would take eighteen times the file's
//! size; this takes what the concept itself takes: lists are counted before they are made, and texts measured.

use super::{Concept, Detect, Kind, RetainPrompt, Verify};
use toml_parser::decoder::StringBuilder;
use toml_parser::lexer::{Lexer, Token, TokenKind};
use toml_parser::{Expected, ParseError, Raw, Source};

/// The most prompts and labels of a file. (Those that come with the program have at most 2,743.)
const MOST: usize = 4096;
/// The longest key that is looked at, in bytes.
const LONGEST_KEY: usize = 64;

/// What is wrong with a file.
pub(super) struct Wrong {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What.
    pub what: String,
}

type Result<T> = std::result::Result<T, Wrong>;

fn wrong<T>(at: usize, what: impl Into<String>) -> Result<T> {
    Err(Wrong { at, what: what.into() })
}

/// Reads the text of a concept file; what it says is not checked.
///
/// # Errors
/// If it is no TOML, a key is unknown, missing or there twice, or a value is of the wrong type.
pub(super) fn read(text: &str) -> Result<Concept> {
    let source = Source::new(text);
    let mut tokens = source.lex();
    let Some(first) = tokens.next() else { return wrong(0, "the file is empty") };
    let mut reader = Reader {
        source,
        tokens,
        last: first,
        back: Some(first),
        found: Found::default(),
        item: Item::default(),
        texts: 0,
    };
    reader.document()?;
    reader.found.concept(text.len())
}

/// A table of the file.
#[derive(Clone, Copy, PartialEq)]
enum Table {
    Root,
    Verify,
    /// One of `verify.retain`.
    Prompt,
    Detect,
}

impl Table {
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Root => &["name", "kind", "model", "forget", "anchors", "retain", "verify", "detect"],
            Self::Verify => &["forget", "synonyms", "retain"],
            Self::Prompt => &["prompt", "labels"],
            Self::Detect => &["labels"],
        }
    }

    /// What a field holds.
    fn expects(self, field: &str) -> Expects {
        match (self, field) {
            (Self::Root, "verify") => Expects::Table(Self::Verify),
            (Self::Root, "detect") => Expects::Table(Self::Detect),
            (Self::Root, "name" | "kind" | "model") | (Self::Prompt, "prompt") => Expects::Text,
            (Self::Verify, "retain") => Expects::Prompts,
            _ => Expects::Texts,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Expects {
    Text,
    Texts,
    Prompts,
    Table(Table),
}

impl Expects {
    fn mismatch<T>(self, at: usize, found: &str) -> Result<T> {
        let expected = match self {
            Self::Text => "a string",
            Self::Texts => "a list of strings",
            Self::Prompts => "a list of tables with prompt and labels",
            Self::Table(_) => "a table",
        };
        wrong(at, format!("invalid type: {found}, expected {expected}"))
    }
}

/// In which way a table was begun.
#[derive(Clone, Copy, PartialEq, Default)]
enum Begun {
    #[default]
    Not,
    /// `verify.forget = ...`
    Dotted,
    /// `[verify]`
    Header,
    /// `verify = { ... }`
    Inline,
}

/// What the file has said so far.
#[derive(Default)]
struct Found {
    name: Option<String>,
    kind: Option<Kind>,
    model: Option<String>,
    forget: Option<Vec<String>>,
    anchors: Option<Vec<String>>,
    retain: Option<Vec<String>>,
    verify: Begun,
    verify_forget: Option<Vec<String>>,
    synonyms: Option<Vec<String>>,
    verify_retain: Option<Vec<RetainPrompt>>,
    /// Whether these came one by one, each under a header.
    verify_retain_by_header: bool,
    detect: Begun,
    labels: Option<Vec<String>>,
}

impl Found {
    /// `end` is where what is missing is missing.
    fn concept(self, end: usize) -> Result<Concept> {
        fn there<T>(field: Option<T>, name: &str, end: usize) -> Result<T> {
            field.map_or_else(|| wrong(end, format!("missing field `{name}`")), Ok)
        }
        let begun = |begun: Begun| (begun != Begun::Not).then_some(());
        let (name, kind) = (there(self.name, "name", end)?, there(self.kind, "kind", end)?);
        let forget = there(self.forget, "forget", end)?;
        let anchors = there(self.anchors, "anchors", end)?;
        let retain = there(self.retain, "retain", end)?;
        there(begun(self.verify).or(self.verify_retain.is_some().then_some(())), "verify", end)?;
        let verify = Verify {
            forget: there(self.verify_forget, "verify.forget", end)?,
            synonyms: self.synonyms.unwrap_or_default(),
            retain: there(self.verify_retain, "verify.retain", end)?,
            preserve: Vec::new(),
        };
        there(begun(self.detect), "detect", end)?;
        let detect = Detect { labels: there(self.labels, "detect.labels", end)? };
        let (parts, preserve) = (Vec::new(), Vec::new());
        Ok(Concept { name, kind, model: self.model, forget, anchors, retain, verify, detect, parts, preserve })
    }
}

/// One of `verify.retain`, as far as it is read.
#[derive(Default)]
struct Item {
    prompt: Option<String>,
    labels: Option<Vec<String>>,
}

struct Reader<'t> {
    source: Source<'t>,
    tokens: Lexer<'t>,
    /// The last token that came; the end of the text comes again and again.
    last: Token,
    /// A token that was put back.
    back: Option<Token>,
    found: Found,
    item: Item,
    texts: usize,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<()> {
        let mut table = Table::Root;
        loop {
            let token = self.over_lines()?;
            match token.kind() {
                TokenKind::Eof => return self.finish_item(table, start(token)),
                TokenKind::LeftSquareBracket => {
                    self.finish_item(table, start(token))?;
                    table = self.header(token)?;
                }
                _ => self.assign(table, token)?,
            }
            let after = self.next_token();
            match after.kind() {
                TokenKind::Newline | TokenKind::Comment | TokenKind::Eof => self.back = Some(after),
                _ => return wrong(start(after), "unexpected key or value, expected newline, `#`"),
            }
        }
    }

    /// A prompt whose table ends here.
    fn finish_item(&mut self, table: Table, at: usize) -> Result<()> {
        if table == Table::Prompt { self.push_item(at) } else { Ok(()) }
    }

    /// `[verify]`, `[detect]` or `[[verify.retain]]`, whose first bracket was read.
    fn header(&mut self, open: Token) -> Result<Table> {
        let second = self.raw_token();
        let many = second.kind() == TokenKind::LeftSquareBracket;
        if !many {
            self.back = Some(second);
        }
        let (mut table, mut at) = (Table::Root, start(open));
        let mut expects = Expects::Table(table);
        loop {
            let key = self.next_token();
            at = at.max(start(key));
            let field = self.field(table, key)?;
            expects = match (expects, table.expects(field)) {
                (Expects::Table(_), next) => next,
                (other, _) => other,
            };
            let after = self.next_token();
            match (after.kind(), expects) {
                (TokenKind::Dot, Expects::Table(inner)) => table = inner,
                (TokenKind::Dot, other) => return other.mismatch(start(key), "map"),
                (TokenKind::RightSquareBracket, _) => break,
                _ => return wrong(start(after), "unclosed table, expected `.`, `]`"),
            }
        }
        if many && self.raw_token().kind() != TokenKind::RightSquareBracket {
            return wrong(at, "unclosed array table, expected `]]`");
        }
        match expects {
            Expects::Table(inner) if !many => {
                self.begin(inner, Begun::Header, at)?;
                Ok(inner)
            }
            Expects::Prompts if many => {
                if self.found.verify == Begun::Inline
                    || (self.found.verify_retain.is_some() && !self.found.verify_retain_by_header)
                {
                    return wrong(at, "duplicate key `retain`");
                }
                self.found.verify_retain_by_header = true;
                if self.found.verify_retain.is_none() {
                    let headers = self.headers_after(at).min(MOST - self.texts.min(MOST));
                    self.found.verify_retain = Some(Vec::with_capacity(headers + 1));
                }
                Ok(Table::Prompt)
            }
            other => other.mismatch(at, if many { "sequence" } else { "map" }),
        }
    }

    /// A line like `key = value` in a table, whose first key was read.
    fn assign(&mut self, table: Table, key: Token) -> Result<()> {
        let field = self.field(table, key)?;
        let (at, expects, after) = (start(key), table.expects(field), self.next_token());
        match (after.kind(), expects) {
            (TokenKind::Dot, Expects::Table(inner)) => {
                self.begin(inner, Begun::Dotted, at)?;
                let key = self.next_token();
                self.assign(inner, key)
            }
            (TokenKind::Dot, other) => other.mismatch(at, "map"),
            (TokenKind::Equals, Expects::Table(inner)) => {
                self.begin(inner, Begun::Inline, at)?;
                let open = self.next_token();
                self.inline_table(inner, open)
            }
            (TokenKind::Equals, Expects::Text) => {
                let value = self.next_token();
                let text = self.text(value)?;
                match (table, field) {
                    (Table::Prompt, _) => put(&mut self.item.prompt, text, field, at),
                    (_, "name") => put(&mut self.found.name, text, field, at),
                    (_, "kind") => put(&mut self.found.kind, self::kind(&text, start(value))?, field, at),
                    _ => put(&mut self.found.model, text, field, at),
                }
            }
            (TokenKind::Equals, Expects::Texts) => {
                let texts = self.texts()?;
                let found = &mut self.found;
                let place = match (table, field) {
                    (Table::Root, "forget") => &mut found.forget,
                    (Table::Root, "anchors") => &mut found.anchors,
                    (Table::Root, _) => &mut found.retain,
                    (Table::Verify, "forget") => &mut found.verify_forget,
                    (Table::Verify, _) => &mut found.synonyms,
                    (Table::Detect, _) => &mut found.labels,
                    (Table::Prompt, _) => &mut self.item.labels,
                };
                put(place, texts, field, at)
            }
            (TokenKind::Equals, Expects::Prompts) => self.prompts(at),
            _ => wrong(start(after), "key with no value, expected `=`"),
        }
    }

    /// Notes how a table is begun; two ways do not go together.
    fn begin(&mut self, table: Table, how: Begun, at: usize) -> Result<()> {
        let (begun, name) = match table {
            Table::Verify => (&mut self.found.verify, "verify"),
            Table::Detect => (&mut self.found.detect, "detect"),
            Table::Root | Table::Prompt => return Ok(()),
        };
        let by_header = table == Table::Verify && self.found.verify_retain_by_header;
        if (*begun != Begun::Not && (*begun, how) != (Begun::Dotted, Begun::Dotted))
            || (by_header && how != Begun::Header)
        {
            return wrong(at, format!("duplicate key `{name}`"));
        }
        *begun = how;
        Ok(())
    }

    fn inline_table(&mut self, table: Table, open: Token) -> Result<()> {
        if open.kind() != TokenKind::LeftCurlyBracket {
            return self.mismatch(Expects::Table(table), open);
        }
        loop {
            let key = self.over_lines()?;
            if key.kind() == TokenKind::RightCurlyBracket {
                return Ok(());
            }
            self.assign(table, key)?;
            let after = self.over_lines()?;
            match after.kind() {
                TokenKind::Comma => {}
                TokenKind::RightCurlyBracket => return Ok(()),
                _ => return wrong(start(after), "unclosed inline table, expected `,`, `}`"),
            }
        }
    }

    /// A list of strings.
    fn texts(&mut self) -> Result<Vec<String>> {
        let open = self.next_token();
        if open.kind() != TokenKind::LeftSquareBracket {
            return self.mismatch(Expects::Texts, open);
        }
        let mut texts = Vec::with_capacity(self.elements_after(open));
        self.list(|reader, value| {
            texts.push(reader.text(value)?);
            Ok(())
        })?;
        Ok(texts)
    }

    /// The list `verify.retain`.
    fn prompts(&mut self, at: usize) -> Result<()> {
        let open = self.next_token();
        if open.kind() != TokenKind::LeftSquareBracket {
            return self.mismatch(Expects::Prompts, open);
        }
        let list = Vec::with_capacity(self.elements_after(open));
        put(&mut self.found.verify_retain, list, "retain", at)?;
        self.list(|reader, value| {
            reader.inline_table(Table::Prompt, value)?;
            reader.push_item(start(value))
        })
    }

    /// The elements of a list, whose bracket was read.
    fn list(&mut self, mut element: impl FnMut(&mut Self, Token) -> Result<()>) -> Result<()> {
        loop {
            let value = self.over_lines()?;
            if value.kind() == TokenKind::RightSquareBracket {
                return Ok(());
            }
            element(self, value)?;
            let after = self.over_lines()?;
            match after.kind() {
                TokenKind::Comma => {}
                TokenKind::RightSquareBracket => return Ok(()),
                _ => return wrong(start(after), "unclosed array, expected `,`, `]`"),
            }
        }
    }

    fn push_item(&mut self, at: usize) -> Result<()> {
        let item = std::mem::take(&mut self.item);
        let Some(prompt) = item.prompt else { return wrong(at, "missing field `prompt`") };
        let list = self.found.verify_retain.get_or_insert_default();
        if list.len() == list.capacity() {
            list.reserve_exact(1 + list.len() / 4);
        }
        list.push(RetainPrompt { prompt, labels: item.labels.unwrap_or_default() });
        Ok(())
    }

    /// A string's text.
    fn text(&mut self, value: Token) -> Result<String> {
        if !is_text(value.kind()) {
            return self.mismatch(Expects::Text, value);
        }
        self.texts += 1;
        if self.texts > MOST {
            return wrong(
                start(value),
                format!("more than {MOST} prompts and labels; a concept file holds some hundred"),
            );
        }
        let raw = self.raw(value);
        let (mut length, mut error) = (Length(0), None);
        let _ = raw.decode_scalar(&mut length, &mut error);
        checked(error)?;
        let mut text = String::with_capacity(length.0);
        let _ = raw.decode_scalar(&mut text, &mut None);
        Ok(text)
    }

    /// The field that a key names.
    fn field(&self, table: Table, key: Token) -> Result<&'static str> {
        if !is_text(key.kind()) && key.kind() != TokenKind::Atom {
            return wrong(start(key), "invalid key, expected key");
        }
        let raw = self.raw(key);
        let (mut length, mut error) = (Length(0), None);
        raw.decode_key(&mut length, &mut error);
        checked(error)?;
        let mut name = String::new();
        if length.0 <= LONGEST_KEY {
            raw.decode_key(&mut name, &mut None);
        } else {
            name.extend(raw.as_str().chars().take(LONGEST_KEY).chain("...".chars()));
        }
        let fields = table.fields();
        fields.iter().find(|field| **field == name).copied().map_or_else(
            || {
                let known: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
                let one_of = if known.len() > 1 { "one of " } else { "" };
                wrong(start(key), format!("unknown field `{name}`, expected {one_of}{}", known.join(", ")))
            },
            Ok,
        )
    }

    /// What stands where something else should.
    fn mismatch<T>(&self, expects: Expects, value: Token) -> Result<T> {
        let found = match value.kind() {
            TokenKind::LeftSquareBracket => "sequence",
            TokenKind::LeftCurlyBracket => "map",
            kind if is_text(kind) => "string",
            TokenKind::Atom => {
                let mut error = None;
                let kind = self.raw(value).decode_scalar(&mut Length(0), &mut error);
                checked(error)?;
                return expects.mismatch(start(value), kind.description());
            }
            _ => return wrong(start(value), "a value is missing"),
        };
        expects.mismatch(start(value), found)
    }

    fn raw_token(&mut self) -> Token {
        if let Some(token) = self.back.take().or_else(|| self.tokens.next()) {
            self.last = token;
        }
        self.last
    }

    /// The next token that is not white space.
    fn next_token(&mut self) -> Token {
        loop {
            let token = self.raw_token();
            if token.kind() != TokenKind::Whitespace {
                return token;
            }
        }
    }

    /// The next token that is neither white space, nor a comment, nor the end of a line.
    fn over_lines(&mut self) -> Result<Token> {
        loop {
            let token = self.next_token();
            let mut error = None;
            match token.kind() {
                TokenKind::Comment => self.raw(token).decode_comment(&mut error),
                TokenKind::Newline => self.raw(token).decode_newline(&mut error),
                _ => return Ok(token),
            }
            checked(error)?;
        }
    }

    fn raw(&self, token: Token) -> Raw<'_> {
        self.source.get(token).unwrap_or_else(|| Raw::new_unchecked("", None, token.span()))
    }

    /// How many elements a list has, whose bracket this is; no more than may be.
    fn elements_after(&self, open: Token) -> usize {
        let rest = self.source.input().get(open.span().end()..).unwrap_or_default();
        let (mut depth, mut elements) = (0, 0);
        for token in Source::new(rest).lex() {
            let kind = token.kind();
            let opens = matches!(kind, TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket);
            elements += usize::from(depth == 0 && (opens || is_text(kind)));
            match kind {
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket if depth == 0 => break,
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => depth -= 1,
                _ => depth += usize::from(opens),
            }
        }
        elements.min(MOST.saturating_sub(self.texts))
    }

    /// How many tables of `verify.retain` may follow.
    fn headers_after(&self, at: usize) -> usize {
        let lines = self.source.input().get(at..).unwrap_or_default().lines();
        lines.filter(|line| line.trim_start().starts_with("[[") && line.contains("retain")).count()
    }
}

fn put<T>(place: &mut Option<T>, value: T, field: &str, at: usize) -> Result<()> {
    if place.is_some() {
        return wrong(at, format!("duplicate key `{field}`"));
    }
    *place = Some(value);
    Ok(())
}

fn kind(text: &str, at: usize) -> Result<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.to_string() == text).map_or_else(
        || {
            let known = Kind::ALL.map(|kind| format!("`{kind}`")).join(", ");
            let shown: String = text.chars().take(LONGEST_KEY).collect();
            wrong(at, format!("unknown variant `{shown}`, expected one of {known}"))
        },
        Ok,
    )
}

fn start(token: Token) -> usize {
    token.span().start()
}

fn is_text(kind: TokenKind) -> bool {
    use TokenKind::{BasicString, LiteralString, MlBasicString, MlLiteralString};
    matches!(kind, BasicString | LiteralString | MlBasicString | MlLiteralString)
}

/// The bytes of a text that is not made.
struct Length(usize);

impl StringBuilder<'_> for Length {
    fn clear(&mut self) {
        self.0 = 0;
    }

    fn push_str(&mut self, append: &str) -> bool {
        self.0 += append.len();
        true
    }

    fn push_char(&mut self, append: char) -> bool {
        self.0 += append.len_utf8();
        true
    }
}

/// What the crate found wrong.
fn checked(error: Option<ParseError>) -> Result<()> {
    let Some(error) = error else { return Ok(()) };
    let literal = |text: &str| match text {
        "\n" => "newline".to_string(),
        "`" => "'`'".to_string(),
        text => format!("`{}`", text.escape_debug()),
    };
    let expected = error.expected().unwrap_or_default().iter().map(|expected| match expected {
        Expected::Literal(text) => literal(text),
        Expected::Description(text) => (*text).to_string(),
        _ => "something else".to_string(),
    });
    let expected: Vec<String> = expected.collect();
    let mut what = error.description().to_string();
    if !expected.is_empty() {
        what.push_str(&format!(", expected {}", expected.join(", ")));
    }
    wrong(error.unexpected().or(error.context()).map_or(0, |span| span.start()), what)
}
