//! The one error type: what went wrong, in which file or tensor, and what to do about it.

use std::path::{Path, PathBuf};

/// Everything that can go wrong, worded for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read but its content is wrong.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The tensors of a checkpoint do not fit the network that its config describes.
    #[error("{0}")]
    Weights(String),
    /// Settings, flags or a concept file that make no sense.
    #[error("{0}")]
    Usage(String),
    /// A computation gave something that must not be used (NaN, a missing gradient).
    #[error("{0}")]
    Numeric(String),
    /// The user asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// A tensor operation failed: a bug in this program, or out of memory.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A function for `map_err` that says which file an I/O error is about.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, what: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), what: what.to_string() }
    }

    /// A setting that makes no sense.
    pub fn usage(what: impl std::fmt::Display) -> Self {
        Self::Usage(what.to_string())
    }
}
