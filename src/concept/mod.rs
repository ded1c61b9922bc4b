//! What to forget, what to keep and how to check it: a concept file, or a concept made from free text and a kind.

mod check;
mod file;
mod several;
mod shipped;
mod suggest;
mod template;
mod tokens;

pub use several::PreservePrompt;
pub use suggest::nearest;

use crate::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

/// The largest concept file, in bytes. (Those that come with the program have at most 100 KB.)
const LARGEST: usize = 512 << 10;

/// What sort of thing a concept is; decides the templates of [`Concept::from_text`] and whether a report blurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A thing: a star, a church.
    Object,
    /// A way of painting or a visual attribute: Van Gogh, striped, red.
    Style,
    /// Something that should not be shown: nudity, violence. Pictures from before the erasure are blurred in reports.
    Content,
    /// A person or a character.
    Identity,
}

impl Kind {
    /// All kinds, in the order in which help texts list them.
    pub const ALL: [Kind; 4] = [Kind::Object, Kind::Style, Kind::Content, Kind::Identity];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "object",
            Self::Style => "style",
            Self::Content => "content",
            Self::Identity => "identity",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.map(|kind| kind.to_string());
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| format!("'{text}' is not a kind of concept; kinds are {}", known.join(", ")))
    }
}

/// A concept: its training prompts, its verification prompts and the labels by which a classifier recognises it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Concept {
    /// What it is called: `star`.
    pub name: String,
    /// What sort of thing it is.
    pub kind: Kind,
    /// The model whose world its prompts are about, if they are about one alone: `demo`. No outcome depends on it, so that it is
    /// not in what outcomes are known by.
    #[serde(skip)]
    pub model: Option<String>,
    /// Training prompts that show the concept.
    pub forget: Vec<String>,
    /// `anchors[i]` is `forget[i]` with something else in the concept's place.
    pub anchors: Vec<String>,
    /// Training prompts for everything that must stay.
    pub retain: Vec<String>,
    /// Prompts that are never trained on.
    pub verify: Verify,
    /// How pictures of the concept are recognised.
    pub detect: Detect,
    /// The concepts that this one is made of, if they are several; see [`Concept::together`].
    #[serde(skip)]
    pub parts: Vec<Concept>,
    /// Names and prompts that the user asked to preserve.
    #[serde(skip)]
    pub preserve: Vec<String>,
}

/// Verification prompts; none of them is among the training prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verify {
    /// Prompts that name the concept.
    pub forget: Vec<String>,
    /// Prompts that mean the concept without naming it; empty where there are no such words.
    pub synonyms: Vec<String>,
    /// Prompts for everything else.
    pub retain: Vec<RetainPrompt>,
    /// Prompts for what the user asked to preserve.
    #[serde(skip)]
    pub preserve: Vec<PreservePrompt>,
}

/// A verification prompt for something that must stay, and what a classifier should see in its pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetainPrompt {
    /// The prompt.
    pub prompt: String,
    /// The labels that it states, as the classifier names them (`color: red`); empty where no classifier knows.
    pub labels: Vec<String>,
}

/// How pictures of the concept are recognised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detect {
    /// A picture counts as a hit if a detector gives it one of these labels.
    pub labels: Vec<String>,
}

impl Concept {
    /// The concept of this name or file.
    ///
    /// A text that ends in `.toml` or holds a path separator is a file. A shipped name (`french-horn`, or «French horn») is
    /// its shipped file. Anything else is made from templates when `kind` is given, and an error that lists the shipped names when it is not.
    pub fn resolve(name_or_path: &str, kind: Option<Kind>) -> Result<Self> {
        let text = name_or_path.trim();
        if text.is_empty() {
            return Err(Error::usage(format!("the concept's name is empty; shipped concepts:{}", Self::listing())));
        }
        let separators = ['/', std::path::MAIN_SEPARATOR];
        let concept = if text.ends_with(".toml") || (kind.is_none() && text.contains(separators)) {
            Self::from_file(Path::new(text))?
        } else if let Some(source) = shipped::source(&slug(text)) {
            Self::parse(source, Path::new(&format!("prompts/{}.toml", slug(text))))?
        } else {
            let Some(kind) = kind else { return Err(unknown(text)) };
            return Ok(Self::from_text(text, kind));
        };
        match kind {
            Some(kind) if kind != concept.kind => Err(Error::usage(format!(
                "'{text}' is a concept of kind {}, not {kind}; leave --kind out, or name the concept differently",
                concept.kind
            ))),
            _ => Ok(concept),
        }
    }

    /// The names of the concepts that come with the program, sorted.
    pub fn names() -> Vec<&'static str> {
        shipped::names()
    }

    /// The same names by group, a line each (the first character is a line break): for messages.
    pub fn listing() -> String {
        shipped::listing()
    }

    /// Reads and checks a concept file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| {
            let size = file.metadata()?.len().min(LARGEST as u64);
            text.reserve_exact(size as usize + 1);
            file.take(LARGEST as u64 + 1).read_to_string(&mut text)
        });
        read.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let names = Self::listing();
                Error::file(path, format!("no such concept file; check the path, or name a shipped concept:{names}"))
            }
            std::io::ErrorKind::InvalidData => Error::file(path, "not a text file (UTF-8); a concept file is TOML"),
            _ => Error::io(path)(e),
        })?;
        Self::parse(&text, path)
    }

    /// Reads and checks the text of a concept file; `path` is only named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        if text.len() > LARGEST {
            let what = format!("larger than {} KiB; a concept file holds some hundred prompts", LARGEST >> 10);
            return Err(Error::file(path, what));
        }
        let concept = file::read(text).map_err(|tokens::Wrong { at, what }| {
            let line = text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
            Error::file(path, format!("line {line}: {what}"))
        })?;
        check::check(&concept, text).map_err(|what| Error::file(path, what))?;
        Ok(concept)
    }

    /// A concept made from templates: works for any words that the model knows. Nothing can recognise it in a picture, so
    /// `detect.labels` is empty and a report shows pictures but counts nothing.
    pub fn from_text(text: &str, kind: Kind) -> Self {
        template::concept(text.trim(), kind)
    }

    /// The name as part of a file name: lower-case letters and digits, joined by single dashes.
    pub fn slug(&self) -> String {
        let slug = slug(&self.name);
        if slug.is_empty() { "concept".into() } else { slug }
    }
}

/// Prompts that the text encoder cannot tell apart are the same prompt: case and spacing do not count.
pub(crate) fn normal(prompt: &str) -> String {
    folded(prompt).collect()
}

/// The characters of what [`normal`] gives.
fn folded(prompt: &str) -> impl Iterator<Item = char> {
    let words = prompt.split_whitespace().enumerate();
    words.flat_map(|(i, word)| (i > 0).then_some(' ').into_iter().chain(word.chars().flat_map(lower)))
}

/// A letter in lower case; a sigma as it is within a word.
fn lower(c: char) -> impl Iterator<Item = char> {
    c.to_lowercase().map(|c| if c == 'ς' { 'σ' } else { c })
}

/// Lower-case letters and digits, joined by single dashes.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

/// `text` with `word` for each `name` that stands there as a word of its own, in any case; `None` if it does not.
pub(crate) fn replaced(text: &str, name: &str, word: &str) -> Option<String> {
    let letters = |c: char| c.is_alphanumeric();
    let mut out = String::with_capacity(text.len());
    let mut rest = 0;
    for (start, _) in text.char_indices() {
        let end = start + name.len();
        let here = start >= rest && text.get(start..end).is_some_and(|part| part.eq_ignore_ascii_case(name));
        let alone =
            !text[..start].ends_with(letters) && !text.get(end..).is_some_and(|after| after.starts_with(letters));
        if here && alone && !name.is_empty() {
            out.push_str(&text[rest..start]);
            out.push_str(word);
            rest = end;
        }
    }
    out.push_str(&text[rest..]);
    (rest > 0).then_some(out)
}

fn unknown(text: &str) -> Error {
    let hint = nearest(text, &Concept::names()).map_or_else(String::new, |name| format!("; did you mean '{name}'?"));
    Error::usage(format!(
        "no concept '{text}' comes with the program{hint}\n  shipped concepts:{}\n  a file of your own: --concept FILE.toml\n  \
         from templates, for any words: --concept '{text}' --kind object (or style, content, identity)",
        Concept::listing()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_replaced_only_where_it_is_a_word_of_its_own() {
        assert_eq!(replaced("a red Ring on a ring", "ring", "hoop").unwrap(), "a red hoop on a hoop");
        assert_eq!(replaced("Van Gogh's van gogh", "van Gogh", "x").unwrap(), "x's x");
        for text in ["a string", "rings", "bring", "rïng", "", "ring2"] {
            assert_eq!(replaced(text, "ring", "x"), None, "{text}");
        }
        assert_eq!(replaced("a", "", "x"), None);
        assert_eq!(replaced("ä ring é", "ring", "ü").unwrap(), "ä ü é");
    }
}
