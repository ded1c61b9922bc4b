//! The kinds of files that an erased model can be written as.

use std::fmt;
use std::str::FromStr;

/// What an erased model is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// A folder in diffusers' layout.
    Diffusers,
    /// One file with the original names, as A1111 and ComfyUI read it.
    SingleFile,
}

/// Every format, in the order in which they are written.
pub const FORMATS: [Format; 2] = [Format::Diffusers, Format::SingleFile];

impl Format {
    /// Its name, as `--format` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::SingleFile => "single-file",
        }
    }

    /// Its file in the folder of a result; none for the folder itself.
    pub fn file(self) -> Option<&'static str> {
        match self {
            Self::Diffusers => None,
            Self::SingleFile => Some(crate::checkpoint::ERASED),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || FORMATS.map(Self::name).join(", ");
        let found = FORMATS.into_iter().find(|format| format.name() == text.to_lowercase().replace('_', "-"));
        found.ok_or_else(|| format!("{text} is not known; choose from {}", known()))
    }
}
