//! What is wrong with a file that should hold weights, in words that say what to do.

use super::header;
use safetensors::{SafeTensorError, SafeTensors};

pub(super) const LFS_POINTER: &str = "a Git-LFS pointer stands in place of the file; run `git lfs pull` in the model's \
                                      folder, or download the file itself";

const HTML: &str = "an HTML page instead of the file; the download was answered by a web page (a login or an error?), \
                    download the file itself";

/// The longest header that the safetensors crate reads, in bytes.
const HEADER: usize = 100_000_000;

/// What stands in the place of a text file (a config, a vocabulary), if it is certainly something else.
pub(super) fn not_text(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("the file is empty; download it again"),
        bytes if is_lfs_pointer(bytes) => Some(LFS_POINTER),
        bytes if is_html(bytes) => Some(HTML),
        _ => None,
    }
}

fn is_html(bytes: &[u8]) -> bool {
    let start = bytes[..bytes.len().min(256)].trim_ascii_start().to_ascii_lowercase();
    ["<!doctype", "<html", "<?xml"].iter().any(|sign| start.starts_with(sign.as_bytes()))
}

/// Whether these bytes are what Git leaves where LFS should have put a file.
pub(super) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// Parses a safetensors file, or says what the bytes are instead.
pub(super) fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, String> {
    if let Some(what) = not_weights(bytes) {
        return Err(what);
    }
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
    // a header that is longer than the file, or than any may be, is the crate's to refuse
    if let Some(header) = usize::try_from(header).ok().and_then(|n| bytes[8..].get(..n)).filter(|h| h.len() <= HEADER) {
        header::check(header, bytes.len())
            .map_err(|e| format!("a broken safetensors header ({e}); download it again"))?;
    }
    SafeTensors::deserialize(bytes).map_err(|e| explain(bytes, &e))
}

/// The number of tensors in a safetensors file: all of its header is read and checked, none of its numbers.
///
/// # Errors
/// In words: what is wrong with it.
pub fn read_header(bytes: &[u8]) -> Result<usize, String> {
    Ok(parse(bytes)?.len())
}

/// What a file is that is certainly no safetensors file.
fn not_weights(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        Some("the file is empty; download it again".into())
    } else if is_lfs_pointer(bytes) {
        Some(LFS_POINTER.into())
    } else if is_html(bytes) {
        Some(HTML.into())
    } else if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        Some("a PyTorch pickle, not safetensors; convert it with save_pretrained(..., safe_serialization=True)".into())
    } else if bytes.len() < 8 {
        Some(format!("truncated: {} bytes are no safetensors file; download it again", bytes.len()))
    } else {
        None
    }
}

fn explain(bytes: &[u8], e: &SafeTensorError) -> String {
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
    let present = bytes.len() as u64 - 8;
    match e {
        SafeTensorError::InvalidHeaderLength => format!(
            "truncated: the header should have {header_bytes} bytes, but only {present} are there; download it again"
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            let found = present.saturating_sub(header_bytes);
            match data_bytes(&bytes[8..], header_bytes) {
                Some(expected) if found < expected => format!(
                    "truncated: the tensors should have {expected} bytes, but only {found} are there; download it again"
                ),
                _ => format!("the file does not end where its tensors end ({found} bytes of data); download it again"),
            }
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeader(_) => {
            format!("not a safetensors file ({e}); check that this is the file meant, or download it again")
        }
        e => format!("a broken safetensors header ({e}); download it again"),
    }
}

/// How many bytes of tensors the header promises.
fn data_bytes(after_length: &[u8], header_bytes: u64) -> Option<u64> {
    let header = after_length.get(..usize::try_from(header_bytes).ok()?)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}
