//! Runs of bytes whose length the reader knows, as they are or compressed; and rising places, as the gaps between them.
//!
//! Zstandard, since it is as near to the entropy of such bytes as anything at its speed (most are noise, with a distribution),
//! decodes into a buffer of known size without taking more, and is the same everywhere.

use std::io::Error as IoError;
use zstd::bulk::{Compressor, Decompressor};

/// Zstandard's effort. There is nothing to find but the distribution of bytes; more effort finds repetitions that are none, and
/// gives longer results (2 % with level 3, of f32).
const LEVEL: i32 = 1;
/// Its effort for texts, which are small.
const TEXT_LEVEL: i32 = 19;
/// What begins a dictionary that was trained; any other is content alone.
const TRAINED: &[u8] = b"\x37\xa4\x30\xec";

const ZERO: u8 = 0;
const RAW: u8 = 1;
const PACKED: u8 = 2;

/// What is wrong with a section, in words.
pub(super) type Read<T> = Result<T, String>;

const CUT: &str = "is cut off";

/// Writes sections; keeps zstd's tables between them.
pub(super) struct Writer(Compressor<'static>);

impl Writer {
    pub fn new() -> Result<Self, IoError> {
        Ok(Self(Compressor::new(LEVEL)?))
    }

    /// The shortest section for these bytes.
    pub fn section(&mut self, bytes: &[u8]) -> Result<Vec<u8>, IoError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(vec![ZERO]);
        }
        let packed = self.0.compress(bytes)?;
        Ok(match packed.len() + 4 < bytes.len() {
            true => [&[PACKED][..], &length(packed.len()), &packed].concat(),
            false => [&[RAW], bytes].concat(),
        })
    }

    /// Rising places, as the gaps between them: their number and, if there are any, the length of the gaps, and these.
    pub fn places(&mut self, places: &[u32]) -> Result<Vec<u8>, IoError> {
        if places.is_empty() {
            return Ok(length(0).to_vec());
        }
        let (mut gaps, mut next) = (Vec::with_capacity(places.len()), 0);
        for place in places {
            let mut gap = place - next;
            while gap >= 0x80 {
                gaps.push(gap as u8 | 0x80);
                gap >>= 7;
            }
            gaps.push(gap as u8);
            next = place + 1;
        }
        Ok([&length(places.len())[..], &length(gaps.len()), &self.section(&gaps)?].concat())
    }
}

fn length(n: usize) -> [u8; 4] {
    (n as u32).to_le_bytes() // of a block, so that it fits
}

/// Reads sections from bytes that a stranger may have written; keeps zstd's tables between them.
pub(super) struct Reader(Decompressor<'static>);

impl Reader {
    pub fn new() -> Read<Self> {
        Decompressor::new().map(Self).map_err(|e| e.to_string())
    }

    /// The `n` bytes of the section that `rest` begins with; `rest` is then what follows.
    pub fn section(&mut self, rest: &mut &[u8], n: usize) -> Read<Vec<u8>> {
        match take(rest, 1)?[0] {
            ZERO => Ok(vec![0; n]),
            RAW => Ok(take(rest, n)?.to_vec()),
            PACKED => {
                let packed = number(rest)?;
                let packed = take(rest, packed)?;
                let mut bytes = Vec::with_capacity(n);
                self.0.decompress_to_buffer(packed, &mut bytes).map_err(|e| format!("does not unpack ({e})"))?;
                if bytes.len() == n { Ok(bytes) } else { Err(format!("unpacks to {} bytes, not {n}", bytes.len())) }
            }
            other => Err(format!("has a section of kind {other}, which is not known")),
        }
    }

    /// Rising places below `n`.
    pub fn places(&mut self, rest: &mut &[u8], n: usize) -> Read<Vec<usize>> {
        let count = number(rest)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = number(rest)?;
        if count > n || bytes > count.saturating_mul(5) {
            return Err(format!("lists {count} places in {bytes} bytes, of {n} that there are"));
        }
        let gaps = self.section(rest, bytes)?;
        let (mut places, mut next, mut gap, mut shift) = (Vec::with_capacity(count), 0usize, 0usize, 0);
        for byte in gaps {
            gap |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 != 0 && shift < 35 {
                continue;
            }
            let place = next + gap;
            if place >= n || places.len() == count {
                return Err("lists a place beyond its end".into());
            }
            places.push(place);
            (next, gap, shift) = (place + 1, 0, 0);
        }
        if places.len() == count { Ok(places) } else { Err("lists fewer places than it says".into()) }
    }
}

/// The first `n` bytes; `rest` is then what follows.
pub(super) fn take<'a>(rest: &mut &'a [u8], n: usize) -> Read<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n).ok_or(CUT)?;
    *rest = left;
    Ok(taken)
}

/// A length of four bytes.
pub(super) fn number(rest: &mut &[u8]) -> Read<usize> {
    let bytes = take(rest, 4)?;
    Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| CUT)?) as usize)
}

/// A text, compressed with the help of another that it is much like: its length, then zstd's frame.
pub(super) fn pack_text(text: &[u8], like: &[u8]) -> Result<Vec<u8>, IoError> {
    let packed = Compressor::with_dictionary(TEXT_LEVEL, dictionary(like))?.compress(text)?;
    Ok([&length(text.len())[..], &packed].concat())
}

/// The inverse of [`pack_text`], for texts of at most `limit` bytes.
pub(super) fn unpack_text(mut packed: &[u8], like: &[u8], limit: usize) -> Read<Vec<u8>> {
    let n = number(&mut packed)?;
    if n.max(like.len()) > limit {
        return Err(format!(
            "is a text of {n} bytes beside one of {}, more than the {limit} that there may be",
            like.len()
        ));
    }
    let mut reader = Decompressor::with_dictionary(dictionary(like)).map_err(|e| e.to_string())?;
    let mut text = Vec::with_capacity(n);
    reader.decompress_to_buffer(packed, &mut text).map_err(|e| format!("does not unpack ({e})"))?;
    if text.len() == n { Ok(text) } else { Err(format!("unpacks to {} bytes, not {n}", text.len())) }
}

fn dictionary(like: &[u8]) -> &[u8] {
    if like.starts_with(TRAINED) { &[] } else { like }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(bytes: &[u8]) -> Vec<u8> {
        let section = Writer::new().unwrap().section(bytes).unwrap();
        let mut rest = &[&section[..], b"more"].concat()[..];
        assert_eq!(Reader::new().unwrap().section(&mut rest, bytes.len()).unwrap(), bytes);
        assert_eq!(rest, b"more");
        section
    }

    #[test]
    fn each_kind_of_section_comes_back() {
        let mut random = crate::diffusion::Generator::new(5);
        let noise: Vec<u8> = (0..1000).map(|_| random.below(256) as u8).collect();
        let skewed: Vec<u8> = noise.iter().map(|byte| byte >> 6).collect();
        for (bytes, kind, most) in [(&noise, RAW, 1001), (&skewed, PACKED, 400), (&vec![0; 99], ZERO, 1)] {
            let section = there_and_back(bytes);
            assert!(section[0] == kind && section.len() <= most, "kind {} in {} bytes", section[0], section.len());
        }
        there_and_back(&[]);
        there_and_back(&[7]);
    }

    #[test]
    fn places_come_back() {
        for places in [vec![], vec![0], vec![0, 17, 145, 20_000, 199_999], (0..1000).map(|i| 3 * i).collect()] {
            let written = Writer::new().unwrap().places(&places).unwrap();
            assert!(written.len() <= 40, "{} bytes", written.len());
            let mut rest = &written[..];
            let found = Reader::new().unwrap().places(&mut rest, 200_000).unwrap();
            assert!(found.iter().map(|place| *place as u32).eq(places.iter().copied()) && rest.is_empty());
        }
    }

    #[test]
    fn damaged_sections_are_refused_and_take_no_more_than_they_may() {
        let mut writer = Writer::new().unwrap();
        let read = |bytes: &[u8], n| Reader::new().unwrap().section(&mut &bytes[..], n).map(|found| found.len());
        let places = |bytes: &[u8], n| Reader::new().unwrap().places(&mut &bytes[..], n).map(|found| found.len());
        let bomb = writer.0.compress(&[1; 1 << 20]).unwrap();
        let bomb = [&[PACKED][..], &length(bomb.len()), &bomb].concat();
        assert_eq!(read(&bomb, 1 << 20), Ok(1 << 20));
        let beyond = writer.places(&[1, 9]).unwrap();
        assert_eq!(places(&beyond, 10), Ok(2));
        let endless = [&length(1)[..], &length(5), &[RAW, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
        for (found, what) in [
            (read(&bomb, 1000), "does not unpack"),
            (read(&bomb, (1 << 20) + 1), "unpacks to 1048576 bytes"),
            (read(&bomb[..20], 1 << 20), CUT),
            (read(&[9], 5), "kind 9"),
            (read(&[RAW, 1], 5), CUT),
            (read(&[], 5), CUT),
            (places(&beyond, 9), "beyond its end"),
            (places(&endless, 100), "beyond its end"),
            (places(&[9, 0, 0, 0, 9, 0, 0, 0, RAW], 5), "lists 9 places"),
            (places(&[1, 0, 0, 0, 9, 0, 0, 0, RAW], 5), "in 9 bytes"),
            (places(&[2, 0, 0, 0, 1, 0, 0, 0, RAW, 0], 5), "fewer places"),
            (places(&[1, 0, 0, 0, 2, 0, 0, 0, RAW, 0, 0], 5), "beyond its end"),
            (places(&[1, 0, 0], 5), CUT),
        ] {
            assert!(found.as_ref().is_err_and(|e| e.contains(what)), "{what}: {found:?}");
        }
    }

    #[test]
    fn a_text_needs_little_beside_one_that_it_is_like() {
        let words: Vec<String> = (0..3000u32).map(|i| format!("{:x}", i.wrapping_mul(2_654_435_761))).collect();
        let (like, text) = (words.join(" "), words.join(" ").replacen("0 ", "0 new ", 1));
        let packed = pack_text(text.as_bytes(), like.as_bytes()).unwrap();
        assert!(packed.len() < 100 && pack_text(text.as_bytes(), b"").unwrap().len() > 5000);
        assert_eq!(unpack_text(&packed, like.as_bytes(), text.len()).unwrap(), text.as_bytes());
        let trained = [TRAINED, b"not a dictionary"].concat();
        assert_eq!(unpack_text(&pack_text(b"x", &trained).unwrap(), &trained, 20).unwrap(), b"x");
        for (packed, like, limit, what) in [
            (&packed[..], like.as_str(), text.len() - 1, "more than the"),
            (&pack_text(b"x", b"xy").unwrap(), "xy", 1, "more than the"),
            (&packed[..packed.len() - 4], &like, text.len(), "does not unpack"),
            (&packed, "", text.len(), "does not unpack"),
            (&packed[..3], &like, text.len(), CUT),
        ] {
            let found = unpack_text(packed, like.as_bytes(), limit);
            assert!(found.as_ref().is_err_and(|e| e.contains(what)), "{what}: {found:?}");
        }
    }
}
