//! A grid: variants of the method's settings, shipped or from a file.

use crate::erase::Settings;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::Path;

/// The shipped grids by name.
pub const GRIDS: [(&str, &str); 2] =
    [("ablation", include_str!("grids/ablation.toml")), ("presets", include_str!("grids/presets.toml"))];

/// Settings with a name.
#[derive(Debug, Clone)]
pub struct Variant {
    /// What the table calls it.
    pub name: String,
    /// What it shows, if the grid says.
    pub note: String,
    /// The settings, whole.
    pub settings: Settings,
}

/// Variants to compare; the first is what the others are compared with.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Its name.
    pub name: String,
    /// The variants, in the order of the table.
    pub variants: Vec<Variant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    variant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default = "balanced")]
    preset: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    set: Map<String, Value>,
}

fn balanced() -> String {
    "balanced".into()
}

impl Grid {
    /// A shipped grid by name, or a file.
    ///
    /// # Errors
    /// If there is none, or it does not parse, or names a setting that does not exist: the message says which.
    pub fn resolve(name: &str) -> Result<Self> {
        if let Some((name, text)) = GRIDS.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !path.exists() {
            let known: Vec<_> = GRIDS.iter().map(|(name, _)| *name).collect();
            return Err(Error::usage(format!("--grid {name}: neither a file nor one of {}", known.join(", "))));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let stem = path.file_stem().map_or_else(|| "grid".into(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&stem, &text).map_err(|e| Error::file(path, e))
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|e| Error::usage(format!("grid {name}: {e}")))?;
        let mut seen = HashSet::new();
        let variants = file.variant.into_iter().map(|entry| {
            let settings = Settings::preset(&entry.preset).and_then(|preset| preset.with(&entry.set));
            let settings = settings.map_err(|e| Error::usage(format!("grid {name}, variant {:?}: {e}", entry.name)))?;
            if !seen.insert(entry.name.clone()) {
                return Err(Error::usage(format!("grid {name} has two variants {:?}", entry.name)));
            }
            Ok(Variant { name: entry.name, note: entry.note, settings })
        });
        let variants = variants.collect::<Result<Vec<_>>>()?;
        if variants.is_empty() {
            return Err(Error::usage(format!("grid {name} has no variant")));
        }
        Ok(Self { name: name.to_string(), variants })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_grids_parse_and_start_with_the_default() {
        for (name, _) in GRIDS {
            let grid = Grid::resolve(name).unwrap();
            let default = serde_json::to_value(Settings::preset("balanced").unwrap()).unwrap();
            assert_eq!(serde_json::to_value(&grid.variants[0].settings).unwrap(), default, "{name}");
            for (i, a) in grid.variants.iter().enumerate() {
                for b in &grid.variants[..i] {
                    let [x, y] = [a, b].map(|v| serde_json::to_value(&v.settings).unwrap());
                    assert_ne!(x, y, "{name}: {} and {} are the same", a.name, b.name);
                }
            }
        }
    }

    #[test]
    fn settings_that_do_not_exist_or_make_no_sense_are_named() {
        for (set, expected) in [
            ("lamda = 1.0", "lamda"),
            ("\"projection.marg\" = 1.0", "projection.marg"),
            ("kept = 1.0", "kept"),
            ("train_scope = \"{a\"", "train_scope"),
            ("init = \"zero\"", "init"),
        ] {
            let text = format!("[[variant]]\nname = \"a\"\n[variant.set]\n{set}\n");
            let error = Grid::parse("g", &text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("\"a\""), "{error}");
        }
        assert!(Grid::parse("g", "variant = []").is_err());
        assert!(Grid::parse("g", "[[variant]]\nname='a'\n[[variant]]\nname='a'").is_err());
        let error = Grid::resolve("abblation").unwrap_err().to_string();
        assert!(error.contains("ablation, presets"), "{error}");
    }
}
