//! Patches: the difference between a model's files before and after, applied to one to give the other, byte for byte, in both
//! directions. `docs/patch-format.md` describes the file.

mod apply;
mod blocks;
mod contents;
mod create;
mod index;
mod numbers;
mod rebuild;
mod sections;

pub use apply::{Applied, apply, reverse};
pub use create::{Encoded, Summary, create};
pub use index::Layout;
pub(crate) use index::is_patch;

use super::files::Bytes;
use crate::Result;
use contents::Contents;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The longest small file, or header of a file of weights, that a patch holds, in bytes.
const TEXT_LIMIT: usize = 16 << 20;

/// What a patch says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// How the two models lie on disk.
    pub layout: Layout,
    /// The hash of the model that it starts from.
    pub base_sha256: String,
    /// The hash of the model that it makes.
    pub result_sha256: String,
    /// Tensors that change.
    pub tensors: usize,
    /// Bytes of the patch.
    pub bytes: u64,
    /// What keeps it from being reversed, if something does.
    pub dropped: Option<String>,
    /// All of its metadata: with `erase.*`, method and concept.
    pub metadata: BTreeMap<String, String>,
}

impl Info {
    /// In words, as `inspect` says it.
    pub fn describe(&self) -> String {
        let layout = match self.layout {
            Layout::Folder => "a folder in diffusers' layout",
            Layout::SingleFile => "a single file",
        };
        let (n, s) = (self.tensors, if self.tensors == 1 { "" } else { "s" });
        let reversible = if self.dropped.is_none() { "reversible" } else { "not reversible" };
        format!("patch of this program for {layout}: {n} tensor{s} changed, {reversible}")
    }
}

/// Reads what a patch says of itself; its changes are not read.
///
/// # Errors
/// If the file cannot be read, is no patch, one of another version, or damaged.
pub fn open(path: &Path) -> Result<Info> {
    info(&Bytes::open(path)?, path)
}

/// As [`open`], of bytes that are there.
pub(super) fn info(bytes: &[u8], path: &Path) -> Result<Info> {
    Ok(Contents::read(bytes, path)?.info(bytes.len() as u64))
}

/// For fuzzers: reads a patch and makes all that it changes from `source`, a safetensors file.
///
/// # Errors
/// If anything is wrong with it.
#[doc(hidden)]
pub fn read_all(bytes: &[u8], source: &[u8]) -> Result<()> {
    rebuild::everything(&Contents::read(bytes, Path::new("fuzzed.safetensors"))?, source)
}
