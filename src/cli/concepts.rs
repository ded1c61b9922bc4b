//! `--concept` and `--preserve`: what to erase and what must stay.

use crate::concept::{Concept, Kind};
use crate::hub::DEFAULT_MODEL;
use crate::{Error, Result};
use std::path::{MAIN_SEPARATOR, Path};

/// The concepts of these names or files, as one.
///
/// # Errors
/// If there is none, one is not known, or they stand in each other's way.
pub(super) fn concept(names: &[String], kind: Option<Kind>, preserve: &[String]) -> Result<Concept> {
    if names.is_empty() {
        let names = Concept::listing();
        let what = format!("--concept NAME is missing: what should be erased? Shipped concepts:{names}");
        return Err(Error::usage(what));
    }
    let known: Vec<Option<Concept>> = names.iter().map(|name| Concept::resolve(name, None).ok()).collect();
    // the kind is for those that need one; if none does, it must be right
    let needed = known.iter().any(Option::is_none);
    let concepts = names.iter().zip(known).map(|(name, known)| match known {
        Some(known) if needed => Ok(known),
        _ => Concept::resolve(name, kind),
    });
    Concept::together(concepts.collect::<Result<_>>()?, preserve)
}

/// The model where none is named: that which the concepts are made for.
///
/// # Errors
/// If they are made for different ones.
pub(super) fn default_model(concept: &Concept) -> Result<String> {
    let made_for = |one: &Concept| one.model.clone().unwrap_or_else(|| DEFAULT_MODEL.into());
    let first = &concept.each()[0];
    let model = made_for(first);
    match concept.each().iter().find(|other| made_for(other) != model) {
        None => Ok(model),
        Some(other) => Err(Error::usage(format!(
            "«{}» is made for {model}, «{}» for {}; say which model with --model, or erase one of them",
            first.name,
            other.name,
            made_for(other)
        ))),
    }
}

/// What `--preserve` names: texts as they are, and the lines of files.
///
/// # Errors
/// If a file cannot be read or has no line, or a text is empty.
pub(super) fn preserve(arguments: &[String]) -> Result<Vec<String>> {
    let mut texts: Vec<String> = Vec::new();
    for argument in arguments {
        let argument = argument.trim();
        let lines = match argument.ends_with(".txt") || argument.contains(['/', MAIN_SEPARATOR]) {
            true => read(Path::new(argument))?,
            false if argument.is_empty() => return Err(Error::usage("--preserve is empty; say what must stay")),
            false => vec![argument.to_string()],
        };
        for line in lines {
            if !texts.contains(&line) {
                texts.push(line);
            }
        }
    }
    Ok(texts)
}

fn read(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::file(path, "no such file; --preserve takes a text, or a file with one a line")
        }
        std::io::ErrorKind::InvalidData => {
            Error::file(path, "not a text file (UTF-8); write what must stay, one a line")
        }
        _ => Error::io(path)(e),
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(String::from).collect();
    if lines.is_empty() {
        return Err(Error::file(path, "has no line; write what must stay, one a line"));
    }
    Ok(lines)
}
