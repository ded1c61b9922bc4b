//! The TOML of a concept file, read token by token into a [`Concept`]. A tree of its values would take eighteen times the file's
//! size; this takes what the concept itself takes: lists are counted before they are made, and texts measured.

use super::tokens::{Result, Tokens, is_text, start, wrong};
use super::{Concept, Detect, Kind, RetainPrompt, Verify};
use toml_parser::lexer::{Token, TokenKind};

/// The most prompts and labels of a file. (Those that come with the program have at most 2,743.)
const MOST: usize = 4096;
/// The longest key that is looked at, in bytes.
const LONGEST_KEY: usize = 64;

/// Reads the text of a concept file; what it says is not checked.
///
/// # Errors
/// If it is no TOML, a key is unknown, missing or there twice, or a value is of the wrong type.
pub(super) fn read(text: &str) -> Result<Concept> {
    let Some(tokens) = Tokens::new(text) else { return wrong(0, "the file is empty") };
    let mut reader = Reader { tokens, found: Found::default(), item: Item::default(), texts: 0 };
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
    tokens: Tokens<'t>,
    found: Found,
    item: Item,
    /// Prompts and labels so far.
    texts: usize,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<()> {
        let mut table = Table::Root;
        loop {
            let token = self.tokens.over_lines()?;
            match token.kind() {
                TokenKind::Eof => return self.finish_item(table, start(token)),
                TokenKind::LeftSquareBracket => {
                    self.finish_item(table, start(token))?;
                    table = self.header(token)?;
                }
                _ => self.assign(table, token)?,
            }
            let after = self.tokens.next();
            match after.kind() {
                TokenKind::Newline | TokenKind::Comment | TokenKind::Eof => self.tokens.put_back(after),
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
        let second = self.tokens.raw();
        let many = second.kind() == TokenKind::LeftSquareBracket;
        if !many {
            self.tokens.put_back(second);
        }
        let (mut table, mut at) = (Table::Root, start(open));
        let mut expects = Expects::Table(table);
        loop {
            let key = self.tokens.next();
            at = at.max(start(key));
            let field = self.field(table, key)?;
            expects = match (expects, table.expects(field)) {
                (Expects::Table(_), next) => next,
                (other, _) => other,
            };
            let after = self.tokens.next();
            match (after.kind(), expects) {
                (TokenKind::Dot, Expects::Table(inner)) => table = inner,
                (TokenKind::Dot, other) => return other.mismatch(start(key), "map"),
                (TokenKind::RightSquareBracket, _) => break,
                _ => return wrong(start(after), "unclosed table, expected `.`, `]`"),
            }
        }
        if many && self.tokens.raw().kind() != TokenKind::RightSquareBracket {
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
        let (at, expects, after) = (start(key), table.expects(field), self.tokens.next());
        match (after.kind(), expects) {
            (TokenKind::Dot, Expects::Table(inner)) => {
                self.begin(inner, Begun::Dotted, at)?;
                let key = self.tokens.next();
                self.assign(inner, key)
            }
            (TokenKind::Dot, other) => other.mismatch(at, "map"),
            (TokenKind::Equals, Expects::Table(inner)) => {
                self.begin(inner, Begun::Inline, at)?;
                let open = self.tokens.next();
                self.inline_table(inner, open)
            }
            (TokenKind::Equals, Expects::Text) => {
                let value = self.tokens.next();
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
            let key = self.tokens.over_lines()?;
            if key.kind() == TokenKind::RightCurlyBracket {
                return Ok(());
            }
            self.assign(table, key)?;
            let after = self.tokens.over_lines()?;
            match after.kind() {
                TokenKind::Comma => {}
                TokenKind::RightCurlyBracket => return Ok(()),
                _ => return wrong(start(after), "unclosed inline table, expected `,`, `}`"),
            }
        }
    }

    /// A list of strings.
    fn texts(&mut self) -> Result<Vec<String>> {
        let open = self.tokens.next();
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
        let open = self.tokens.next();
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
            let value = self.tokens.over_lines()?;
            if value.kind() == TokenKind::RightSquareBracket {
                return Ok(());
            }
            element(self, value)?;
            let after = self.tokens.over_lines()?;
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
        self.tokens.text(value)
    }

    /// The field that a key names.
    fn field(&self, table: Table, key: Token) -> Result<&'static str> {
        let name = self.tokens.key(key, LONGEST_KEY)?;
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
        expects.mismatch(start(value), self.tokens.what(value)?)
    }

    /// How many elements a list has, whose bracket this is; no more than may be.
    fn elements_after(&self, open: Token) -> usize {
        self.tokens.elements_after(open).min(MOST.saturating_sub(self.texts))
    }

    /// How many tables of `verify.retain` may follow.
    fn headers_after(&self, at: usize) -> usize {
        let lines = self.tokens.rest(at).lines();
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
