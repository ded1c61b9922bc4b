//! The hashes of a file as model sites show them, in one pass.

use crate::progress::check_interrupted;
use crate::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Bytes read at a time.
const BLOCK: usize = 4 << 20;
/// Where the oldest hash of A1111's web UI begins.
const V1_START: u64 = 0x10_0000;
/// How many bytes it covers.
const V1_BYTES: u64 = 0x1_0000;

/// Upper-case hexadecimal, as Civitai has them (`files[].hashes`).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Hashes {
    /// First 8 digits of SHA-256 over 64 KiB from 1 MiB on: what A1111's web UI showed first.
    #[serde(rename = "AutoV1")]
    pub auto_v1: String,
    /// First 10 digits of SHA-256 of the file: what A1111's web UI shows.
    #[serde(rename = "AutoV2")]
    pub auto_v2: String,
    /// First 12 digits of SHA-256 over the tensors' bytes, without the header (kohya's `addnet_hash_safetensors`); for
    /// safetensors only.
    #[serde(rename = "AutoV3")]
    pub auto_v3: Option<String>,
    /// SHA-256 of the file.
    #[serde(rename = "SHA256")]
    pub sha256: String,
    /// CRC-32 of the file, as zlib has it.
    #[serde(rename = "CRC32")]
    pub crc32: String,
    /// BLAKE3 of the file, 256 bits.
    #[serde(rename = "BLAKE3")]
    pub blake3: String,
}

/// Reads the file once; `data_start` is where its tensors' bytes begin, if it has any. `read` is called with the bytes of each
/// piece that was read.
///
/// # Errors
/// If it cannot be read, or the user interrupts.
pub(super) fn hashes(path: &Path, data_start: Option<u64>, read: &mut dyn FnMut(u64)) -> Result<Hashes> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut hasher = Hasher::new(data_start);
    let mut buffer = vec![0; BLOCK];
    loop {
        check_interrupted()?;
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hasher.finish()),
            n => {
                hasher.update(&buffer[..n]);
                read(n as u64);
            }
        }
    }
}

/// The same of bytes in memory.
pub(super) fn of_bytes(bytes: &[u8], data_start: Option<u64>) -> Hashes {
    let mut hasher = Hasher::new(data_start);
    bytes.chunks(BLOCK).for_each(|block| hasher.update(block));
    hasher.finish()
}

struct Hasher {
    whole: Sha256,
    data: Sha256,
    old: Sha256,
    crc: crc32fast::Hasher,
    blake: blake3::Hasher,
    data_start: Option<u64>,
    at: u64,
}

impl Hasher {
    fn new(data_start: Option<u64>) -> Self {
        let (crc, blake) = (crc32fast::Hasher::new(), blake3::Hasher::new());
        Self { whole: Sha256::new(), data: Sha256::new(), old: Sha256::new(), crc, blake, data_start, at: 0 }
    }

    fn update(&mut self, bytes: &[u8]) {
        let (at, end) = (self.at, self.at + bytes.len() as u64);
        // what of these bytes lies in from..to of the file
        let part = |from: u64, to: u64| {
            let inside = |place: u64| (place.clamp(at, end) - at) as usize;
            &bytes[inside(from)..inside(to)]
        };
        let (whole, data, crc, blake) = (&mut self.whole, &mut self.data, &mut self.crc, &mut self.blake);
        let tensors = part(self.data_start.unwrap_or(u64::MAX), u64::MAX);
        let rest = || {
            crc.update(bytes);
            blake.update(bytes);
        };
        rayon::join(|| whole.update(bytes), || rayon::join(|| data.update(tensors), rest));
        self.old.update(part(V1_START, V1_START + V1_BYTES));
        self.at = end;
    }

    fn finish(self) -> Hashes {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let sha256 = hex(&self.whole.finalize());
        Hashes {
            auto_v1: hex(&self.old.finalize())[..8].to_string(),
            auto_v2: sha256[..10].to_string(),
            auto_v3: self.data_start.map(|_| hex(&self.data.finalize())[..12].to_string()),
            sha256,
            crc32: format!("{:08X}", self.crc.finalize()),
            blake3: self.blake.finalize().to_hex().to_uppercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let mut total = 0;
        let found = hashes(&path, Some(1), &mut |n| total += n).unwrap();
        assert_eq!(total, 3);
        assert_eq!(found.sha256, "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD");
        assert_eq!((found.auto_v2.as_str(), found.crc32.as_str()), ("BA7816BF8F", "352441C2"));
        // from BLAKE3's test vectors and SHA-256 of nothing, of «bc»
        assert_eq!(found.blake3, "6437B3AC38465133FFB63B75273A8DB548C558465D79DB03FD359C6CD5BD9D85");
        assert_eq!(found.auto_v1, "E3B0C442");
        assert_eq!(found.auto_v3.as_deref(), Some("1E0BBD6C686B"));
        assert_eq!(hashes(&path, None, &mut |_| {}).unwrap().auto_v3, None);
    }
}
