//! A patch's file, opened: everything in it is checked before anything is done with it.

use super::Info;
use super::index::{self, Change, File, INDEX, Index, Side};
use crate::checkpoint::malformed::parse;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// What a patch holds, in the bytes of its file.
pub(super) struct Contents<'a> {
    /// What the file is called in messages.
    described: &'a Path,
    pub metadata: BTreeMap<String, String>,
    pub index: Index,
    /// By name: texts (`base:PATH`, `result:PATH`) and tensors (`PATH:TENSOR`).
    parts: BTreeMap<String, &'a [u8]>,
}

impl<'a> Contents<'a> {
    /// Reads everything but the changes themselves.
    ///
    /// # Errors
    /// If these bytes are no patch, one of another version, or a damaged one.
    pub fn read(bytes: &'a [u8], described: &'a Path) -> Result<Self> {
        Self::checked(bytes, described).map_err(|what| Error::file(described, what))
    }

    fn checked(bytes: &'a [u8], described: &'a Path) -> std::result::Result<Self, String> {
        let parsed = parse(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap_or_default().into_iter().collect();
        index::check_format(&metadata)?;
        let mut parts = BTreeMap::new();
        for (name, view) in parsed.iter() {
            if view.dtype() != Dtype::U8 || view.shape().len() != 1 {
                return Err(format!("damaged: its part {name:?} is no row of bytes; get the patch again"));
            }
            parts.insert(name.to_string(), view.data());
        }
        let index = Index::read(parts.remove(INDEX).ok_or("damaged: it has no index; get the patch again")?)?;
        let contents = Self { described, metadata, index, parts };
        for (key, side) in [("patch.base_sha256", Side::Base), ("patch.result_sha256", Side::Result)] {
            let (told, found) = (contents.metadata.get(key), contents.index.model_hash(side));
            if told != Some(&found) {
                return Err(format!("damaged: its {key} is not that of its files ({found}); get the patch again"));
            }
        }
        match contents.parts.keys().find(|name| !contents.is_known(name)) {
            Some(name) => {
                Err(format!("damaged: its part {name:?} belongs to no file that changes; get the patch again"))
            }
            None => Ok(contents),
        }
    }

    /// Whether the index has a place for a part of this name.
    fn is_known(&self, name: &str) -> bool {
        let Some((first, rest)) = name.split_once(':') else { return false };
        match (first, self.index.file(first)) {
            (_, Some(file)) if file.change == Some(Change::Weights) => true,
            ("base" | "result", _) => self.index.file(rest).is_some_and(|file| file.change.is_some()),
            _ => false,
        }
    }

    /// A text: a small file, or the header of a file of weights.
    pub fn text(&self, side: Side, path: &str) -> Option<&'a [u8]> {
        let side = match side {
            Side::Base => "base",
            Side::Result => "result",
        };
        self.parts.get(&format!("{side}:{path}")).copied()
    }

    /// How a tensor changes, if it does.
    pub fn tensor(&self, path: &str, name: &str) -> Option<&'a [u8]> {
        self.parts.get(&format!("{path}:{name}")).copied()
    }

    /// The files of one of the models, and their hashes.
    pub fn files(&self, side: Side) -> impl Iterator<Item = (&File, &str)> {
        self.index.files.iter().filter_map(move |file| Some((file, file.hash(side)?)))
    }

    /// What there is to say of the patch, which has so many bytes.
    pub fn info(&self, bytes: u64) -> Info {
        let weights = self.index.files.iter().filter(|file| file.change == Some(Change::Weights));
        let prefixes: Vec<String> = weights.map(|file| format!("{}:", file.path)).collect();
        let tensors = self.parts.keys().filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).count();
        Info {
            layout: self.index.layout,
            base_sha256: self.index.model_hash(Side::Base),
            result_sha256: self.index.model_hash(Side::Result),
            tensors,
            bytes,
            dropped: self.index.dropped(),
            metadata: self.metadata.clone(),
        }
    }

    /// An error about this patch.
    pub fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::file(self.described, what)
    }

    /// An error about a part of this patch.
    pub fn damaged(&self, part: &str, what: impl std::fmt::Display) -> Error {
        self.wrong(format!("damaged: its change of {part} {what}; get the patch again"))
    }
}
