//! Whether content is what its etag says.

use crate::progress::check_interrupted;
use crate::{Error, Result};
use sha1::Digest as _;
use sha1::Sha1;
use sha2::Sha256;
use std::io::Read;
use std::path::Path;

/// Hashes content as the Hub names it: SHA-256 for large files (LFS), for small ones SHA-1 as git takes it of a blob.
pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// For content of `size` bytes that should have this etag.
    pub fn new(etag: &str, size: u64) -> Self {
        if etag.len() == 64 {
            return Self::Sha256(Sha256::new());
        }
        let mut hash = Sha1::new();
        hash.update(format!("blob {size}\0"));
        Self::Git(hash)
    }

    /// More content.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    /// The hash of all content in lower-case hexadecimal digits, and what it is called.
    pub fn finish(self) -> (String, &'static str) {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hash) => (hex(&hash.finalize()), "SHA-256"),
            Self::Git(hash) => (hex(&hash.finalize()), "git SHA-1"),
        }
    }

    /// The content of a file, piece by piece.
    pub fn update_from(&mut self, path: &Path) -> Result<()> {
        let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            check_interrupted()?;
            match file.read(&mut buffer).map_err(Error::io(path))? {
                0 => return Ok(()),
                n => self.update(&buffer[..n]),
            }
        }
    }
}

/// What is wrong with a file that should have this etag, in words.
pub(super) fn difference(path: &Path, etag: &str) -> Result<Option<String>> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let mut hasher = Hasher::new(etag, size);
    hasher.update_from(path)?;
    let (found, kind) = hasher.finish();
    Ok((found != etag).then(|| format!("its {kind} is {found}, not {etag}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_lfs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `printf 'hello\n' | git hash-object --stdin`, and `| sha256sum`
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let lfs = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(difference(&path, git).unwrap(), None);
        assert_eq!(difference(&path, lfs).unwrap(), None);
        std::fs::write(&path, "hello!").unwrap();
        assert!(difference(&path, git).unwrap().unwrap().contains("git SHA-1 is "));
        assert!(difference(&path, lfs).unwrap().unwrap().ends_with(&format!("not {lfs}")));
    }
}
