//! One file of one model, from the same file of the other and the patch.

use super::TEXT_LIMIT;
use super::blocks::{self, blocks};
use super::contents::Contents;
use super::index::Side;
use super::numbers::{Direction, Numbers};
use super::sections::{Read, Reader, unpack_text};
use crate::Result;
use crate::checkpoint::header;
use crate::checkpoint::malformed::parse;
use crate::progress::check_interrupted;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use std::borrow::Cow;

/// Pieces that are worked on at a time.
const GROUP: usize = 32;

/// What becomes of the bytes of a file, in order.
pub(super) trait Sink {
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// These bytes of the source or of the patch are not needed any more.
    fn done_with(&mut self, _part: &[u8]) {}
}

/// A part of a file of weights.
struct Piece<'a> {
    tensor: &'a str,
    source: &'a [u8],
    /// Unless it is copied.
    change: Option<(Numbers, &'a [u8])>,
}

impl Direction {
    /// The model that is there.
    pub(super) fn source(self) -> Side {
        match self {
            Self::Forward => Side::Base,
            Self::Reverse => Side::Result,
        }
    }

    /// The model that is made.
    pub(super) fn target(self) -> Side {
        match self {
            Self::Forward => Side::Result,
            Self::Reverse => Side::Base,
        }
    }
}

/// A small file; `source` is the same file of the other model, or nothing.
///
/// # Errors
/// If the patch is damaged.
pub(super) fn text(patch: &Contents<'_>, path: &str, source: &[u8], direction: Direction) -> Result<Vec<u8>> {
    let packed = patch.text(direction.target(), path).ok_or_else(|| patch.damaged(path, "is missing"))?;
    unpack_text(packed, source, TEXT_LIMIT).map_err(|what| patch.damaged(path, what))
}

/// A file of weights; `source` is the same file of the other model, whole.
///
/// # Errors
/// If the patch is damaged or does not fit the source, or the user interrupts.
pub(super) fn weights(
    patch: &Contents<'_>,
    path: &str,
    source: &[u8],
    direction: Direction,
    sink: &mut dyn Sink,
) -> Result<()> {
    let unfit = |what: &str| patch.damaged(path, what);
    let parsed = parse(source).map_err(|what| unfit(&format!("does not fit: the file is {what}")))?;
    let old = header_of(source);
    let header = match patch.text(direction.target(), path) {
        Some(packed) => Cow::Owned(unpack_text(packed, old, TEXT_LIMIT).map_err(|what| unfit(&what))?),
        None => Cow::Borrowed(old),
    };
    header::check(&header, usize::MAX).map_err(|what| unfit(&format!("has a broken header ({what})")))?;
    let target: Metadata = serde_json::from_slice(&header).map_err(|e| unfit(&format!("has a broken header ({e})")))?;
    let names = target.offset_keys();
    let pieces = pieces(patch, path, &parsed, &target, &names)?;
    sink.write(&(header.len() as u64).to_le_bytes())?;
    sink.write(&header)?;
    for group in pieces.chunks(GROUP) {
        check_interrupted()?;
        let made = group.par_iter().map_init(Reader::new, |reader, piece| piece.make(reader, direction));
        let made = made.collect::<std::result::Result<Vec<_>, _>>();
        for bytes in made.map_err(|(tensor, what)| patch.damaged(&format!("{path}:{tensor}"), what))? {
            sink.write(&bytes)?;
        }
        for piece in group {
            sink.done_with(piece.source);
            piece.change.iter().for_each(|(_, change)| sink.done_with(change));
        }
    }
    Ok(())
}

/// The JSON of a safetensors file that was parsed before.
pub(super) fn header_of(file: &[u8]) -> &[u8] {
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    file.get(8..).and_then(|rest| rest.get(..usize::try_from(length).ok()?)).unwrap_or_default()
}

/// The target's tensors in the order in which they lie in the file.
fn pieces<'a>(
    patch: &Contents<'a>,
    path: &str,
    source: &SafeTensors<'a>,
    target: &Metadata,
    names: &'a [String],
) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::new();
    for name in names {
        let unfit = |what: String| patch.damaged(&format!("{path}:{name}"), what);
        let view = source.tensor(name).map_err(|e| unfit(format!("has no tensor to start from ({e})")))?;
        let same = target.info(name).is_some_and(|info| info.dtype == view.dtype() && info.shape == view.shape());
        if !same {
            return Err(unfit(format!("is of another type or shape than {:?} {:?}", view.dtype(), view.shape())));
        }
        let parts = blocks(view.dtype(), view.data());
        match patch.tensor(path, name) {
            None => pieces.extend(parts.map(|source| Piece { tensor: name, source, change: None })),
            Some(change) => {
                let numbers = Numbers::of(view.dtype());
                let changes = blocks::split(change, parts.size_hint().0).map_err(unfit)?;
                let with = |(source, change)| Piece { tensor: name, source, change: Some((numbers, change)) };
                pieces.extend(parts.zip(changes).map(with));
            }
        }
    }
    Ok(pieces)
}

impl<'a> Piece<'a> {
    fn make(
        &self,
        reader: &mut Read<Reader>,
        direction: Direction,
    ) -> std::result::Result<Cow<'a, [u8]>, (&'a str, String)> {
        let Some((numbers, change)) = self.change else { return Ok(Cow::Borrowed(self.source)) };
        let reader = reader.as_mut().map_err(|what| (self.tensor, what.clone()))?;
        let made = blocks::decode(reader, numbers, change, self.source, direction);
        made.map(Cow::Owned).map_err(|what| (self.tensor, what))
    }
}

/// For fuzzers: every change of a patch, with `source` as every file, and nowhere to go.
pub(super) fn everything(patch: &Contents<'_>, source: &[u8]) -> Result<()> {
    struct Nowhere;
    impl Sink for Nowhere {
        fn write(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }
    }
    let mut first = Ok(());
    for file in &patch.index.files {
        for direction in [Direction::Forward, Direction::Reverse] {
            let found = match file.change {
                Some(super::index::Change::Weights) => weights(patch, &file.path, source, direction, &mut Nowhere),
                Some(super::index::Change::Text) if file.hash(direction.target()).is_some() => {
                    text(patch, &file.path, b"", direction).map(drop)
                }
                _ => Ok(()),
            };
            first = first.and(found);
        }
    }
    first
}
