//! What a patch says of itself: its metadata and its list of files, written and checked.

use crate::checkpoint::files::inside;
use crate::checkpoint::hash::sha256_of_list;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Names the format and its version, in the metadata of every patch.
pub(super) const FORMAT_KEY: &str = "patch.format";
/// The only version there is.
pub(super) const FORMAT: &str = "erase-concept.patch/1";
/// The format without its version.
const FAMILY: &str = "erase-concept.patch/";
/// What a single file is called in a patch, whatever its name on disk.
pub(super) const SINGLE: &str = "model.safetensors";
/// The part of a patch that holds the index.
pub(super) const INDEX: &str = "index";
/// The longest index that is read, in bytes. (A model has about twenty files.)
const INDEX_LIMIT: usize = 1 << 20;

/// The most files that a model may have.
const FILES: usize = 1000;

/// How a model lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A folder in diffusers' layout.
    Folder,
    /// One file with the original names.
    SingleFile,
}

/// The two models that a patch lies between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Base,
    Result,
}

/// The files of both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub layout: Layout,
    /// In order of path.
    pub files: Vec<File>,
}

/// A file of either model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub path: String,
    /// Its SHA-256 in the base, if it is there.
    pub base: Option<String>,
    /// Its SHA-256 in the result, if it is there.
    pub result: Option<String>,
    /// It lies in the result's folder, but is no part of that model's hash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// How the patch holds the difference; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Tensors of the base (or, without a name, the whole file) that the result and the patch do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<Dropped>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Change {
    /// Both are safetensors files: two headers, and the tensors that differ.
    Weights,
    /// The content of each side that has the file.
    Text,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dropped {
    pub tensors: usize,
    /// The first of them.
    pub first: String,
}

impl File {
    pub fn hash(&self, side: Side) -> Option<&str> {
        match side {
            Side::Base => self.base.as_deref(),
            Side::Result => self.result.as_deref(),
        }
    }
}

impl Index {
    /// The hash of one of the models, as [`crate::checkpoint::base_sha256`] gives it (of a single file, the file's).
    pub fn model_hash(&self, side: Side) -> String {
        let counted = self.files.iter().filter(|file| side == Side::Base || !file.beside);
        let mut hashes = counted.filter_map(|file| Some((file.path.as_str(), file.hash(side)?)));
        match self.layout {
            Layout::Folder => sha256_of_list(hashes),
            Layout::SingleFile => hashes.next().map_or_else(String::new, |(_, hash)| hash.to_string()),
        }
    }

    /// The file of this path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Reads an index that a stranger may have written.
    ///
    /// # Errors
    /// In words: what no patch has.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > INDEX_LIMIT {
            return Err(format!("its index has {} bytes, more than the {INDEX_LIMIT} that are read", bytes.len()));
        }
        let index: Self = serde_json::from_slice(bytes).map_err(|e| format!("its index: {e}"))?;
        if index.files.len() > FILES {
            return Err(format!(
                "its index names {} files, more than the {FILES} that a model may have",
                index.files.len()
            ));
        }
        let mut paths = BTreeSet::new();
        let is_hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        for file in &index.files {
            let path = &file.path;
            let wrong = |what: &str| Err(format!("its index: {path:?} {what}"));
            if !can_be_named(path) {
                return wrong("leads outside the model, or is no path of a model");
            }
            if !paths.insert(path.as_str()) {
                return wrong("is named twice");
            }
            if ![&file.base, &file.result].into_iter().flatten().all(|hash| is_hash(hash)) {
                return wrong("has a hash that is none");
            }
            let told = match file.change {
                None => file.base.is_some() && (file.base == file.result || file.result.is_none()),
                Some(Change::Weights) => file.base.is_some() && file.result.is_some() && path.ends_with(".safetensors"),
                Some(Change::Text) => file.base.is_some() || file.result.is_some(),
            };
            if !told || (file.change.is_none() && file.result.is_none() && file.dropped.is_none()) {
                return wrong("has hashes that do not go with its change");
            }
        }
        let alone = matches!(&index.files[..], [File { path, change: Some(Change::Weights), .. }] if path == SINGLE);
        if index.layout == Layout::SingleFile && !alone {
            return Err(format!("its index: a single file's has {SINGLE} alone"));
        }
        // a file and a folder of one name
        let is_folder = |path: &str| {
            let below = format!("{path}/");
            paths.range(below.as_str()..).next().is_some_and(|next| next.starts_with(&below))
        };
        match paths.iter().find(|path| is_folder(path)) {
            Some(path) => Err(format!("its index: {path:?} is a file and a folder")),
            None => Ok(index),
        }
    }

    /// What of the base cannot be given back, in words.
    pub fn dropped(&self) -> Option<String> {
        let mut names = self.files.iter().filter_map(|file| file.dropped.as_ref().map(|dropped| (file, dropped)));
        let (file, first) = names.next()?;
        let all = first.tensors + names.map(|(_, dropped)| dropped.tensors).sum::<usize>();
        Some(match all {
            0 => format!("the file {}", file.path),
            1 => format!("the tensor {}", first.first),
            _ => format!("{all} tensors ({}, ...)", first.first),
        })
    }
}

/// Whether a patch may name a file so: parts of names are joined with `:`.
pub(super) fn can_be_named(path: &str) -> bool {
    inside(path).is_ok() && !path.contains(['\\', ':']) && !path.split('/').any(|part| part.is_empty() || part == ".")
}

/// Whether these are the metadata of a patch, of any version.
pub(crate) fn is_patch(metadata: &BTreeMap<String, String>) -> bool {
    metadata.get(FORMAT_KEY).is_some_and(|format| format.starts_with(FAMILY))
}

/// Whether this program reads a patch with these metadata.
///
/// # Errors
/// In words: what it is instead.
pub(super) fn check_format(metadata: &BTreeMap<String, String>) -> Result<(), String> {
    match metadata.get(FORMAT_KEY).map(String::as_str) {
        Some(FORMAT) => Ok(()),
        Some(other) if other.starts_with(FAMILY) => {
            Err(format!("a patch of the format {other:?}, but this program reads {FORMAT}; use a newer version of it"))
        }
        _ => Err("no patch of this program (its metadata have no patch.format)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn hash(digit: &str) -> String {
        digit.repeat(64)
    }

    fn good() -> Value {
        json!({ "layout": "folder", "files": [
            { "path": "README.md", "base": null, "result": hash("a"), "change": "text" },
            { "path": "unet/x.safetensors", "base": hash("a"), "result": hash("b"), "change": "weights" },
            { "path": "vae/x", "base": hash("a"), "result": hash("a") },
        ]})
    }

    #[test]
    fn an_index_is_read_and_what_none_may_say_is_refused() {
        let read = |value: &Value| Index::read(value.to_string().as_bytes());
        let index = read(&good()).unwrap();
        assert_eq!(serde_json::to_value(&index).unwrap(), good());
        let expected = format!("unet/x.safetensors\0{}\nvae/x\0{}\n", hash("a"), hash("a"));
        assert_eq!(index.model_hash(Side::Base), crate::checkpoint::sha256_hex(expected.as_bytes()));
        for (place, value, what) in [
            ("/files/0/path", json!("../x"), "leads outside"),
            ("/files/0/path", json!("/etc/x"), "leads outside"),
            ("/files/0/path", json!("a//b"), "leads outside"),
            ("/files/0/path", json!("a/./b"), "leads outside"),
            ("/files/0/path", json!("c:\\x"), "leads outside"),
            ("/files/0/path", json!(""), "leads outside"),
            ("/files/0/path", json!("vae/x"), "is named twice"),
            ("/files/0/path", json!("vae"), "a file and a folder"),
            ("/files/0/result", json!("A".repeat(64)), "a hash that is none"),
            ("/files/0/result", json!("a"), "a hash that is none"),
            ("/files/0/result", Value::Null, "do not go with"),
            ("/files/1/result", Value::Null, "do not go with"),
            ("/files/2/result", Value::Null, "do not go with"),
            ("/files/2/result", json!(hash("b")), "do not go with"),
            ("/files/1/path", json!("unet/x"), "do not go with"),
            ("/files/1/change", json!("magic"), "unknown variant"),
            ("/layout", json!("single-file"), "alone"),
            ("/layout", json!("floppy"), "unknown variant"),
            ("/files", json!(3), "invalid type"),
        ] {
            let mut bad = good();
            *bad.pointer_mut(place).unwrap() = value;
            let found = read(&bad);
            assert!(found.as_ref().is_err_and(|e| e.contains(what)), "{place}, {what}: {found:?}");
        }
        assert!(Index::read(" ".repeat(INDEX_LIMIT + 1).as_bytes()).unwrap_err().contains("more than"));
    }

    #[test]
    fn versions_are_told_apart() {
        let of = |format: &str| BTreeMap::from([(FORMAT_KEY.to_string(), format.to_string())]);
        assert_eq!(check_format(&of(FORMAT)), Ok(()));
        let newer = of("erase-concept.patch/2");
        assert!(is_patch(&newer) && check_format(&newer).unwrap_err().contains("use a newer version"));
        for other in [of("pt"), BTreeMap::new()] {
            assert!(!is_patch(&other) && check_format(&other).unwrap_err().contains("no patch of this program"));
        }
    }
}
