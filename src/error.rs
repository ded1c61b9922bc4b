//! The one error type: what went wrong, in which file or tensor, and what to do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Everything that can go wrong, worded for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}{}", hint(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no room for a file.
    #[error("{path}: disk full, free {} or choose another --output (for a cached file, another --cache)", size(*.needed))]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, or 0 where that is not known.
        needed: u64,
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
    /// A model on the Hugging Face Hub that is not in the cache and could not be fetched.
    #[error("{0}")]
    Hub(String),
    /// A computation gave something that must not be used (NaN, a missing gradient).
    #[error("{0}")]
    Numeric(String),
    /// The user asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// A GPU has not the memory that a computation takes.
    #[error(
        "the GPU has not enough memory ({0}); say --memory-limit with less than the GPU has, so that the job is planned to fit, keep \
         frozen weights in half the memory (--dtype bf16), lower --batch-size, or end other programs that use the GPU"
    )]
    DeviceMemory(String),
    /// A tensor operation failed: a bug in this program, or out of memory.
    #[error("tensor operation failed: {0}")]
    Tensor(#[source] candle_core::Error),
}

/// What drivers and libraries call a lack of memory.
const OUT_OF_MEMORY: [&str; 4] =
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CallbackErrorOutOfMemory"];

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        match OUT_OF_MEMORY.iter().find(|name| text.contains(**name)) {
            Some(name) => Self::DeviceMemory((*name).to_string()),
            None => Self::Tensor(error),
        }
    }
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A function for `map_err` that says which file an I/O error is about.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::of_io(path, source, 0)
    }

    /// As [`Error::io`], for a file of `bytes` that could not be written.
    pub fn write(path: impl AsRef<Path>, bytes: usize) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::of_io(path, source, bytes as u64)
    }

    fn of_io(path: PathBuf, source: std::io::Error, needed: u64) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { path, needed },
            _ => Self::Io { path, source },
        }
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

/// What to do about an I/O error, where that is not plain from the error.
fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied => "; check who may read and write there, or choose another place",
        ErrorKind::ReadOnlyFilesystem => "; choose a place that can be written",
        ErrorKind::NotADirectory => "; a part of this path is a file, choose another",
        _ => "",
    }
}

/// Bytes in words: `at least 1.5 MiB`.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "some space".into(),
        1..1024 => format!("at least {bytes} bytes"),
        1024..1_048_576 => format!("at least {} KiB", bytes.div_ceil(1024)),
        _ => format!("at least {:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_memory_is_said_with_the_flags_that_help() {
        let failed = |text: &str| Error::from(candle_core::Error::Msg(text.into()).bt()).to_string();
        for cause in
            ["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "CublasError(CUBLAS_STATUS_ALLOC_FAILED)"]
        {
            let message = failed(cause);
            let flags = ["--memory-limit", "--dtype bf16", "--batch-size", "OUT_OF_MEMORY", "ALLOC_FAILED"];
            assert!(flags[..3].iter().all(|flag| message.contains(flag)), "{message}");
            assert!(flags[3..].iter().any(|name| message.contains(name)), "{message}");
        }
        assert!(failed("shapes differ").starts_with("tensor operation failed: shapes differ"));
    }

    #[test]
    fn a_full_disk_is_said_with_file_and_size() {
        let full = || std::io::Error::from(ErrorKind::StorageFull);
        let message = Error::write("out/unet", 3 << 20)(full()).to_string();
        assert!(
            message.starts_with("out/unet: disk full, free at least 3.0 MiB or choose another --output"),
            "{message}"
        );
        assert!(Error::io("out")(full()).to_string().contains("free some space"));
        let quota = std::io::Error::from(ErrorKind::QuotaExceeded);
        assert!(Error::write("a", 1500)(quota).to_string().contains("at least 2 KiB"));
    }
}
