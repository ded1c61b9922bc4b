//! TOML, token by token: what a reader that builds no tree of values needs. A text is measured before it is made, so that it
//! takes what it holds.

use toml_parser::decoder::StringBuilder;
use toml_parser::lexer::{Lexer, Token, TokenKind};
use toml_parser::{Expected, ParseError, Raw, Source};

/// What is wrong with a file.
pub(super) struct Wrong {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What.
    pub what: String,
}

pub(super) type Result<T> = std::result::Result<T, Wrong>;

pub(super) fn wrong<T>(at: usize, what: impl Into<String>) -> Result<T> {
    Err(Wrong { at, what: what.into() })
}

/// The tokens of a text, in order.
pub(super) struct Tokens<'t> {
    source: Source<'t>,
    lexer: Lexer<'t>,
    /// The last token that came; the end of the text comes again and again.
    last: Token,
    /// A token that was put back.
    back: Option<Token>,
}

impl<'t> Tokens<'t> {
    /// Of `text`; none if there is not even an end.
    pub(super) fn new(text: &'t str) -> Option<Self> {
        let source = Source::new(text);
        let mut lexer = source.lex();
        let first = lexer.next()?;
        Some(Self { source, lexer, last: first, back: Some(first) })
    }

    /// The text itself, from a place on.
    pub(super) fn rest(&self, at: usize) -> &'t str {
        self.source.input().get(at..).unwrap_or_default()
    }

    /// The next token of any kind.
    pub(super) fn raw(&mut self) -> Token {
        if let Some(token) = self.back.take().or_else(|| self.lexer.next()) {
            self.last = token;
        }
        self.last
    }

    /// Makes `token` the next one.
    pub(super) fn put_back(&mut self, token: Token) {
        self.back = Some(token);
    }

    /// The next token that is not white space.
    pub(super) fn next(&mut self) -> Token {
        loop {
            let token = self.raw();
            if token.kind() != TokenKind::Whitespace {
                return token;
            }
        }
    }

    /// The next token that is neither white space, nor a comment, nor the end of a line.
    pub(super) fn over_lines(&mut self) -> Result<Token> {
        loop {
            let token = self.next();
            let mut error = None;
            match token.kind() {
                TokenKind::Comment => self.written(token).decode_comment(&mut error),
                TokenKind::Newline => self.written(token).decode_newline(&mut error),
                _ => return Ok(token),
            }
            checked(error)?;
        }
    }

    /// A string's text.
    pub(super) fn text(&self, token: Token) -> Result<String> {
        let written = self.written(token);
        let (mut length, mut error) = (Length(0), None);
        let _ = written.decode_scalar(&mut length, &mut error);
        checked(error)?;
        let mut text = String::with_capacity(length.0);
        let _ = written.decode_scalar(&mut text, &mut None);
        Ok(text)
    }

    /// A key's text, no more than `longest` bytes of it.
    pub(super) fn key(&self, token: Token, longest: usize) -> Result<String> {
        if !is_text(token.kind()) && token.kind() != TokenKind::Atom {
            return wrong(start(token), "invalid key, expected key");
        }
        let written = self.written(token);
        let (mut length, mut error) = (Length(0), None);
        written.decode_key(&mut length, &mut error);
        checked(error)?;
        let mut name = String::new();
        if length.0 <= longest {
            written.decode_key(&mut name, &mut None);
        } else {
            name.extend(written.as_str().chars().take(longest).chain("...".chars()));
        }
        Ok(name)
    }

    /// What a value is called whose first token this is.
    pub(super) fn what(&self, value: Token) -> Result<&'static str> {
        match value.kind() {
            TokenKind::LeftSquareBracket => Ok("sequence"),
            TokenKind::LeftCurlyBracket => Ok("map"),
            kind if is_text(kind) => Ok("string"),
            TokenKind::Atom => {
                let mut error = None;
                let kind = self.written(value).decode_scalar(&mut Length(0), &mut error);
                checked(error)?;
                Ok(kind.description())
            }
            _ => wrong(start(value), "a value is missing"),
        }
    }

    /// How many elements a list has, whose bracket this is.
    pub(super) fn elements_after(&self, open: Token) -> usize {
        let (mut depth, mut elements) = (0, 0);
        for token in Source::new(self.rest(open.span().end())).lex() {
            let kind = token.kind();
            let opens = matches!(kind, TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket);
            elements += usize::from(depth == 0 && (opens || is_text(kind)));
            match kind {
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket if depth == 0 => break,
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => depth -= 1,
                _ => depth += usize::from(opens),
            }
        }
        elements
    }

    /// A token as it is written.
    fn written(&self, token: Token) -> Raw<'_> {
        self.source.get(token).unwrap_or_else(|| Raw::new_unchecked("", None, token.span()))
    }
}

/// Where a token begins.
pub(super) fn start(token: Token) -> usize {
    token.span().start()
}

/// Whether a token is a string of any of the four sorts.
pub(super) fn is_text(kind: TokenKind) -> bool {
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
