//! A file of a model, as it is, in another place.

use super::disk;
use super::files::ModelFiles;
use super::write::write_file;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// How files that were not edited get into the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Copying {
    /// They are copied; where the file system can do it, the copy shares the original's blocks until one of them is changed.
    #[default]
    Copy,
    /// They become second names of the same files, where both lie on one file system: whoever changes one in place changes both.
    Link,
}

/// Bytes copied between two looks at whether the user interrupts.
const PIECE: u64 = 64 << 20;

/// Copies one file of a model.
///
/// # Errors
/// If it cannot be read or written; a full disk is said with the size that is needed.
pub(super) fn copy(files: &ModelFiles, rel: &str, target: &Path, how: Copying) -> Result<()> {
    let ModelFiles::Folder(root) = files else { return write_file(target, &files.read(rel)?) };
    // in the Hub's cache, names are links to the files
    let source = fs::canonicalize(root.join(rel)).map_err(Error::io(root.join(rel)))?;
    let shared = match how {
        Copying::Link => disk::hard_link(&source, target),
        Copying::Copy => disk::reflink(&source, target),
    };
    if shared.is_ok() {
        return Ok(());
    }
    let mut from = fs::File::open(&source).map_err(Error::io(&source))?;
    let size = from.metadata().map_err(Error::io(&source))?.len();
    let mut to = fs::File::create(target).map_err(Error::write(target, size as usize))?;
    loop {
        check_interrupted()?;
        let copied = disk::copy(&mut from, PIECE, &mut to).map_err(|e| match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::write(target, size as usize)(e),
            _ => Error::file(&source, format!("cannot copy to {}: {e}", target.display())),
        })?;
        if copied < PIECE {
            return Ok(());
        }
    }
}
