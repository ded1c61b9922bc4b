//! SHA-256 of files and of whole models.

use super::files::ModelFiles;
use super::single_file::SingleFile;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;

/// SHA-256 as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file's content, read piece by piece.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        check_interrupted()?;
        match std::io::Read::read(&mut file, &mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The hash of a whole model: SHA-256 over one line `PATH\0HASH\n` for each file of [`ModelFiles::list`], in order of
/// path, where PATH is relative with `/` and HASH is the SHA-256 of the file as 64 lower-case hexadecimal digits.
///
/// Of a single file it is the SHA-256 of the file, as A1111 and Civitai have it; where a file beside it decided how it is read, the
/// hash of a line for the file, whose PATH is empty, and of one for each file that the single file is read as.
pub fn base_sha256(files: &ModelFiles) -> Result<String> {
    if let ModelFiles::Single(file) = files {
        return single_sha256(files, file);
    }
    let list = files.list()?;
    let hashes = sha256_each(files, &list)?;
    Ok(sha256_of_list(list.iter().zip(&hashes).map(|(rel, hash)| (rel.as_str(), hash.as_str()))))
}

/// SHA-256 of each of these files of a folder or of an embedded model.
pub(super) fn sha256_each(files: &ModelFiles, list: &[String]) -> Result<Vec<String>> {
    let one = |rel: &String| match files {
        ModelFiles::Folder(root) => sha256_file(root.join(rel)),
        ModelFiles::Single(_) | ModelFiles::Embedded { .. } => Ok(sha256_hex(&files.read(rel)?)),
    };
    list.par_iter().map(one).collect()
}

/// The hash of a model whose files have these paths and hashes, in order of path.
pub(super) fn sha256_of_list<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let lines: String = files.map(|(rel, hash)| format!("{rel}\0{hash}\n")).collect();
    sha256_hex(lines.as_bytes())
}

fn single_sha256(files: &ModelFiles, file: &SingleFile) -> Result<String> {
    let hash = sha256_file(file.path())?;
    if !file.depends_on_others() {
        return Ok(hash);
    }
    let mut lines = format!("\0{hash}\n");
    for rel in file.list().iter().filter(|rel| file.text(rel).is_some()) {
        lines.push_str(&format!("{rel}\0{}\n", sha256_hex(&files.read(rel)?)));
    }
    Ok(sha256_hex(lines.as_bytes()))
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
