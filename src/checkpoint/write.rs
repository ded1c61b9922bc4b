//! Safetensors and other single files, written whole or not at all, the same bytes for the same content.
//!
//! The writer is our own because the crate's puts `__metadata__` in random order and does not sync.

use super::temporary::{Temporary, file_prefix};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::path::Path;

/// One tensor to be written.
pub(super) struct TensorBytes<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// Little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Writes a safetensors file: `__metadata__` first, tensors in descending order of type and then by name (as the
/// reference writer), the header padded with spaces to a multiple of 8 bytes.
///
/// Each tensor is its type, its shape and its little-endian bytes.
///
/// # Errors
/// If a tensor's bytes do not fit its shape, or the file cannot be written; then nothing is at `path` that was not there.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let bytes = Cow::Borrowed(bytes.as_slice());
        TensorBytes { name, dtype: *dtype, shape, bytes }
    });
    write_tensors(path, tensors.collect(), metadata)
}

/// As [`write_safetensors`], from borrowed bytes.
pub(super) fn write_tensors(
    path: &Path,
    mut tensors: Vec<TensorBytes<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.name.cmp(b.name)));
    let header = header(path, &tensors, metadata)?;
    let size = 8 + header.len() + tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
    atomically(path, size, |file| {
        let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()];
        for bytes in start.into_iter().chain(tensors.iter().map(|tensor| &*tensor.bytes)) {
            check_interrupted()?;
            file.write_all(bytes).map_err(Error::write(path, size))?;
        }
        Ok(())
    })
}

fn header(path: &Path, tensors: &[TensorBytes<'_>], metadata: &BTreeMap<String, String>) -> Result<String> {
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{}", json(path, metadata)?));
    }
    let mut offset = 0;
    for tensor in tensors {
        let elements = tensor.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
        if elements.and_then(|n| n.checked_mul(tensor.dtype.bitsize())).map(|bits| bits / 8) != Some(tensor.bytes.len())
        {
            let (len, shape, dtype) = (tensor.bytes.len(), tensor.shape, tensor.dtype);
            return Err(Error::file(path, format!("{}: {len} bytes do not make {shape:?} of {dtype:?}", tensor.name)));
        }
        let end = offset + tensor.bytes.len();
        entries.push(format!(
            "{}:{{\"dtype\":{},\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            json(path, &tensor.name)?,
            json(path, &tensor.dtype)?,
            json(path, &tensor.shape)?,
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok(header)
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::file(path, e))
}

/// Writes `bytes` to `path`: a reader sees the old file or the whole new one, never a part.
///
/// # Errors
/// If it cannot be written; then what was at `path` is still there.
pub fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(path, bytes.len(), |file| file.write_all(bytes).map_err(Error::write(path, bytes.len())))
}

/// Writes `bytes` to `path`, for files of a folder that itself appears whole or not at all.
///
/// # Errors
/// If it cannot be written; a full disk is said with the size that is needed.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(Error::write(path, bytes.len()))
}

/// A file that is being written, and whose start can be written last.
pub(super) trait Output: Write + Seek {}

impl<T: Write + Seek> Output for T {}

/// Writes a sibling of `path`, syncs it, renames it to `path`, syncs the folder. `size` is for messages.
pub(super) fn atomically(path: &Path, size: usize, write: impl FnOnce(&mut dyn Output) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| Error::file(path, "not the name of a file"))?;
    let prefix = file_prefix(&name.to_string_lossy());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask, as any new file
    let failed = || Error::write(path, size);
    let temporary = builder.tempfile_in(folder).map_err(failed())?;
    let _ = temporary.as_file().try_lock(); // tells other containers that it is being written
    let registered = Temporary::register(temporary.path().to_path_buf());
    let mut buffered = std::io::BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffered)?;
    buffered.flush().map_err(failed())?;
    drop(buffered);
    temporary.as_file().sync_all().map_err(failed())?;
    let moved = match &registered {
        Some(registered) => registered.moving(|_| temporary.persist(path)),
        None => temporary.persist(path),
    };
    moved.map_err(|e| failed()(e.error))?;
    sync_folder(folder)
}

/// Makes the names in a folder durable (where the system lets a folder be opened).
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))?;
    }
    Ok(())
}
