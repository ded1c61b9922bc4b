//! Safetensors and other single files, written whole or not at all, the same bytes for the same content.
//!
//! The writer is our own because the crate's puts `__metadata__` in random order and does not sync.

use super::disk;
use super::files::Bytes;
use super::hash::hex;
use super::temporary::{Temporary, file_prefix};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// One tensor to be written.
pub(super) struct TensorBytes<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// Little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// One tensor to be written, whose bytes are made when its turn comes: no more than one is in memory at a time.
pub(super) struct Streamed<'a> {
    pub name: Cow<'a, str>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Source<'a>,
    /// The mapped file that the bytes lie in: its memory is given back once they are written.
    pub of: Option<&'a Bytes>,
}

/// Where a tensor's bytes come from.
pub(super) enum Source<'a> {
    /// They are there.
    Ready(Cow<'a, [u8]>),
    /// They have to be made, each time the same.
    Made(Box<dyn Fn() -> Result<Cow<'a, [u8]>> + 'a>),
}

/// In the metadata, stands for the hash of the tensors' bytes as they follow each other in the file, which is known when they are
/// written: `0x` and 64 lower-case hexadecimal digits, as modelspec has it.
pub(super) const HASH_OF_TENSORS: &str = "0x0000000000000000000000000000000000000000000000000000000000000000";

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
    tensors: Vec<TensorBytes<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let streamed = tensors.into_iter().map(|tensor| Streamed {
        name: Cow::Borrowed(tensor.name),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
        bytes: Source::Ready(tensor.bytes),
        of: None,
    });
    write_streamed(path, streamed.collect(), metadata)
}

/// As [`write_safetensors`], one tensor after the other; where the metadata say [`HASH_OF_TENSORS`], it is put in.
pub(super) fn write_streamed(
    path: &Path,
    mut tensors: Vec<Streamed<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let (header, sizes) = header(path, &tensors, metadata)?;
    let size = 8 + header.len() + sizes.iter().sum::<usize>();
    let hash_at: Vec<u64> = header.match_indices(HASH_OF_TENSORS).map(|(at, _)| 8 + at as u64).collect();
    atomically(path, size, |file| {
        let failed = || Error::write(path, size);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
        file.write_all(header.as_bytes()).map_err(failed())?;
        let mut hasher = Sha256::new();
        for (tensor, size) in tensors.iter().zip(sizes) {
            check_interrupted()?;
            let made;
            let bytes: &[u8] = match &tensor.bytes {
                Source::Ready(bytes) => bytes,
                Source::Made(make) => {
                    made = make()?;
                    &made
                }
            };
            if bytes.len() != size {
                return Err(unfit(path, tensor, bytes.len()));
            }
            if !hash_at.is_empty() {
                hasher.update(bytes);
            }
            file.write_all(bytes).map_err(failed())?;
            if let Some(source) = tensor.of {
                source.release(bytes);
            }
        }
        let hash = format!("0x{}", hex(&hasher.finalize()));
        for at in hash_at {
            file.seek(SeekFrom::Start(at)).map_err(failed())?;
            file.write_all(hash.as_bytes()).map_err(failed())?;
        }
        Ok(())
    })
}

/// The header, and the size of each tensor.
fn header(path: &Path, tensors: &[Streamed<'_>], metadata: &BTreeMap<String, String>) -> Result<(String, Vec<usize>)> {
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{}", json(path, metadata)?));
    }
    let (mut offset, mut sizes) = (0, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        let elements = tensor.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
        let size = elements.and_then(|n| n.checked_mul(tensor.dtype.bitsize())).map(|bits| bits / 8);
        let ready = match &tensor.bytes {
            Source::Ready(bytes) => Some(bytes.len()),
            Source::Made(_) => size,
        };
        let (Some(size), true) = (size, size == ready) else {
            return Err(unfit(path, tensor, ready.unwrap_or(0)));
        };
        let end = offset + size;
        entries.push(format!(
            "{}:{{\"dtype\":{},\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            json(path, &tensor.name)?,
            json(path, &tensor.dtype)?,
            json(path, &tensor.shape)?,
        ));
        sizes.push(size);
        offset = end;
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok((header, sizes))
}

fn unfit(path: &Path, tensor: &Streamed<'_>, len: usize) -> Error {
    let (name, shape, dtype) = (&tensor.name, &tensor.shape, tensor.dtype);
    Error::file(path, format!("{name}: {len} bytes do not make {shape:?} of {dtype:?}"))
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
    disk::write(path, bytes).map_err(Error::write(path, bytes.len()))
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
    let mut buffered = std::io::BufWriter::with_capacity(1 << 20, disk::Writing::new(temporary.as_file()));
    write(&mut buffered)?;
    buffered.flush().map_err(failed())?;
    drop(buffered);
    disk::sync(temporary.as_file()).map_err(failed())?;
    let mut temporary = temporary.into_temp_path();
    let mut move_into_place = || {
        let moved = disk::rename(&temporary, path);
        temporary.disable_cleanup(moved.is_ok());
        moved
    };
    let moved = match &registered {
        Some(registered) => registered.moving(|_| move_into_place()),
        None => move_into_place(),
    };
    moved.map_err(failed())?;
    sync_folder(folder)
}

/// Makes the names in a folder durable (where the system lets a folder be opened).
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        std::fs::File::open(folder).and_then(|file| disk::sync(&file)).map_err(Error::io(folder))?;
    }
    Ok(())
}
