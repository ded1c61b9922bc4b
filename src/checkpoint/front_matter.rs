//! What a model's README says at its top, for machines: YAML between two lines of dashes.

use super::files::ModelFiles;
use crate::Result;

/// Under which terms a model is given away, as its README says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct License {
    /// The Hub's name of it, such as `creativeml-openrail-m`, or `other`.
    pub id: String,
    /// Its own name, where the Hub has none.
    pub name: Option<String>,
    /// Where its text is.
    pub link: Option<String>,
}

impl License {
    /// The licence of a model: what its `README.md` says; `None` if it has none or it says nothing.
    ///
    /// # Errors
    /// If the file is there but cannot be read.
    pub fn of(files: &ModelFiles) -> Result<Option<Self>> {
        if matches!(files, ModelFiles::Embedded { .. }) {
            // it is a part of this program
            return Ok(Some(Self { id: "mit".into(), ..Self::default() }));
        }
        let Some(bytes) = files.try_read("README.md")? else { return Ok(None) };
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    fn parse(readme: &str) -> Option<Self> {
        let lines: Vec<&str> = readme.trim_start_matches('\u{feff}').lines().collect();
        let (first, rest) = lines.split_first()?;
        if first.trim_end() != "---" {
            return None;
        }
        let end = rest.iter().position(|line| line.trim_end() == "---")?;
        let value = |key: &str| {
            let line = rest[..end].iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            let text = line.trim().trim_matches(['"', '\'']).trim();
            // it becomes a value of other files: one word or one line, nothing that could end it
            let plain = !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control);
            plain.then(|| text.to_string())
        };
        Some(Self { id: value("license")?, name: value("license_name"), link: value("license_link") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_taken_from_between_the_dashes() {
        let readme = "---\nlicense: creativeml-openrail-m\ntags:\n- license: no\n---\nlicense: mit\n";
        assert_eq!(License::parse(readme).unwrap().id, "creativeml-openrail-m");
        let own = "---\r\nlicense: \"other\"\r\nlicense_name: 'my terms'\r\nlicense_link: LICENSE.md\r\n---\r\n";
        let own = License::parse(own).unwrap();
        assert_eq!((own.id.as_str(), own.name.as_deref()), ("other", Some("my terms")));
        for nothing in
            ["", "# a model\nlicense: mit\n", "---\nlicense: mit\n", "---\ntags: x\n---\n", "---\nlicense:\n---\n"]
        {
            assert_eq!(License::parse(nothing), None, "{nothing:?}");
        }
    }
}
