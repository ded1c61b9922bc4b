//! The concept files of `prompts/`, embedded in the binary.

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../prompts/", $name, ".toml")))),*] };
}

/// Name and TOML text, sorted by name.
const FILES: &[(&str, &str)] =
    files!["church", "circle", "dotted", "nudity", "red", "ring", "star", "striped", "van-gogh"];

/// The text of a shipped file.
pub(super) fn source(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The names of the shipped files, sorted.
pub(super) fn names() -> Vec<&'static str> {
    FILES.iter().map(|(name, _)| *name).collect()
}
