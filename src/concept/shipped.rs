//! The concept files of `prompts/`, embedded in the binary.

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../prompts/", $name, ".toml")))),*] };
}

/// File names without their ending, and TOML text.
type Files = &'static [(&'static str, &'static str)];

/// What each group is for, and its files, sorted by name.
const GROUPS: &[(&str, Files)] = &[
    ("for the demo model", files!["circle", "dotted", "red", "ring", "star", "striped"]),
    ("content", files!["nudity", "violence"]),
    (
        "styles",
        files![
            "caravaggio",
            "cezanne",
            "hokusai",
            "klimt",
            "monet",
            "munch",
            "picasso",
            "rembrandt",
            "van-gogh",
            "warhol",
        ],
    ),
    (
        "objects",
        files![
            "cassette-player",
            "chain-saw",
            "church",
            "english-springer",
            "french-horn",
            "garbage-truck",
            "gas-pump",
            "golf-ball",
            "parachute",
            "tench",
        ],
    ),
];

fn files() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    GROUPS.iter().flat_map(|(_, files)| files.iter())
}

/// The text of a shipped file.
pub(super) fn source(name: &str) -> Option<&'static str> {
    files().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The names of the shipped files, sorted.
pub(super) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = files().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// The names by group, a line each, for messages.
pub(super) fn listing() -> String {
    let line = |(group, files): &(&str, Files)| {
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        format!("\n    {group}: {}", names.join(", "))
    };
    GROUPS.iter().map(line).collect()
}
