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
    /// What changed alone, to be applied to the base and taken back; see [`super::patch`].
    Patch,
    /// Factors of what changed, to be loaded beside the base; see [`super::lora`].
    Lora,
}

/// Every format, in the order in which they are written.
pub const FORMATS: [Format; 4] = [Format::Diffusers, Format::SingleFile, Format::Patch, Format::Lora];

impl Format {
    /// Its name, as `--format` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::SingleFile => "single-file",
            Self::Patch => "patch",
            Self::Lora => "lora",
        }
    }

    /// Whether it is a whole model.
    pub fn is_model(self) -> bool {
        matches!(self, Self::Diffusers | Self::SingleFile)
    }

    /// Its file in the folder of a result; none for the folder itself.
    pub fn file(self) -> Option<&'static str> {
        match self {
            Self::Diffusers => None,
            Self::SingleFile => Some(crate::checkpoint::ERASED),
            Self::Patch => Some("erased-patch.safetensors"),
            Self::Lora => Some("erased-lora.safetensors"),
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
