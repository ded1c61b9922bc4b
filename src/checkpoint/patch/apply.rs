//! The other model of a patch, made from the one that is there: checked before, and checked again before it is put in place.

use super::contents::Contents;
use super::index::{Change, File, Layout, SINGLE, Side};
use super::numbers::Direction;
use super::rebuild::{self, Sink};
use crate::checkpoint::copy::{Copying, copy};
use crate::checkpoint::files::{Bytes, ModelFiles};
use crate::checkpoint::hash::{hex, sha256_each, sha256_file, sha256_of_list};
use crate::checkpoint::write::{Output, atomically, write_file};
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

/// What was made.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Applied {
    /// The hash of the model that was made, as the patch has it.
    pub sha256: String,
    /// Files of that model.
    pub files: usize,
    /// Those that the patch changed.
    pub changed_files: usize,
}

/// Writes the model that `patch` makes of its base, byte for byte: into the existing folder `into`, or, of a single file, as the
/// file `into`, which appears whole or not at all.
///
/// # Errors
/// If `patch` is none, or damaged, or `base` is not the model that it was made from (the message says what it is instead, if
/// that is known), or something cannot be read or written.
pub fn apply(base: &ModelFiles, patch: &Path, into: &Path, progress: &mut dyn Progress) -> Result<Applied> {
    run(base, patch, into, Direction::Forward, progress)
}

/// Writes the base that `patch` was made from, byte for byte, from the model that it makes; see [`apply`].
///
/// # Errors
/// As [`apply`], and if the base has something that neither the result nor the patch has.
pub fn reverse(result: &ModelFiles, patch: &Path, into: &Path, progress: &mut dyn Progress) -> Result<Applied> {
    run(result, patch, into, Direction::Reverse, progress)
}

fn run(
    files: &ModelFiles,
    patch: &Path,
    into: &Path,
    direction: Direction,
    progress: &mut dyn Progress,
) -> Result<Applied> {
    let bytes = Bytes::open(patch)?;
    let contents = Contents::read(&bytes, patch)?;
    if let (Direction::Reverse, Some(dropped)) = (direction, contents.index.dropped()) {
        return Err(contents.wrong(format!(
            "cannot be reversed: its base has {dropped}, which neither the result nor the patch has; keep the base, or take it \
             from where it came from"
        )));
    }
    progress.event(Event::Stage { name: "checking the model", steps: 1 });
    check_source(files, &contents, direction)?;
    progress.event(Event::Step { loss: None });
    let list: Vec<_> = contents.files(direction.target()).collect();
    match files {
        ModelFiles::Single(file) => {
            progress.event(Event::Stage { name: "writing the file", steps: 1 });
            let source = Bytes::open(file.path())?;
            let promised = contents.index.model_hash(direction.target());
            atomically(into, source.len(), |output| {
                let mut sink = Hashed { output, into, source: &source, patch: &bytes, hash: Sha256::new() };
                rebuild::weights(&contents, SINGLE, &source, direction, &mut sink)?;
                let found = hex(&sink.hash.finalize());
                if found == promised { Ok(()) } else { Err(broken(&contents, SINGLE)) }
            })?;
            progress.event(Event::Step { loss: None });
        }
        ModelFiles::Folder(_) | ModelFiles::Embedded { .. } => {
            progress.event(Event::Stage { name: "writing the model", steps: list.len() });
            for (file, _) in &list {
                write(files, (&contents, &bytes), file, into, direction)?;
                progress.event(Event::Step { loss: None });
            }
            progress.event(Event::Stage { name: "checking the result", steps: 1 });
            let is_whole = |(file, hash): &(&File, &str)| Ok(sha256_file(into.join(&file.path))? == *hash);
            let whole: Vec<bool> = list.par_iter().map(is_whole).collect::<Result<_>>()?;
            if let Some(((file, _), _)) = list.iter().zip(whole).find(|(_, whole)| !whole) {
                return Err(broken(&contents, &file.path));
            }
            progress.event(Event::Step { loss: None });
        }
    }
    Ok(Applied {
        sha256: contents.index.model_hash(direction.target()),
        files: list.len(),
        changed_files: list.iter().filter(|(file, _)| file.change.is_some()).count(),
    })
}

fn broken(patch: &Contents<'_>, path: &str) -> Error {
    patch.wrong(format!("damaged: {path} would not have the hash that the patch promises; get the patch again"))
}

/// Writes one file of a folder, with the patch and its map.
fn write(
    files: &ModelFiles,
    (patch, map): (&Contents<'_>, &Bytes),
    file: &File,
    into: &Path,
    direction: Direction,
) -> Result<()> {
    let (path, target) = (file.path.as_str(), into.join(&file.path));
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    match file.change {
        None => copy(files, path, &target, Copying::Copy),
        Some(Change::Text) => {
            let source = file.hash(direction.source()).map(|_| files.map(path)).transpose()?;
            let text = rebuild::text(patch, path, source.as_deref().unwrap_or_default(), direction)?;
            write_file(&target, &text)
        }
        Some(Change::Weights) => {
            let source = files.map(path)?;
            let output = fs::File::create(&target).map_err(Error::write(&target, source.len()))?;
            let mut output = BufWriter::with_capacity(1 << 20, output);
            let mut sink = Plain { output: &mut output, into: &target, source: &source, patch: map };
            rebuild::weights(patch, path, &source, direction, &mut sink)?;
            output.flush().map_err(Error::write(&target, source.len()))
        }
    }
}

/// A file of a folder that appears whole or not at all.
struct Plain<'a> {
    output: &'a mut dyn Write,
    into: &'a Path,
    source: &'a Bytes,
    patch: &'a Bytes,
}

impl Sink for Plain<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(Error::write(self.into, self.source.len()))
    }

    fn done_with(&mut self, part: &[u8]) {
        [self.source, self.patch].iter().for_each(|map| map.release(part));
    }
}

/// A file whose hash must be known before it is in its place.
struct Hashed<'a> {
    output: &'a mut dyn Output,
    into: &'a Path,
    source: &'a Bytes,
    patch: &'a Bytes,
    hash: Sha256,
}

impl Sink for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (output, hash) = (&mut self.output, &mut self.hash);
        hash.update(bytes);
        output.write_all(bytes).map_err(Error::write(self.into, self.source.len()))
    }

    fn done_with(&mut self, part: &[u8]) {
        [self.source, self.patch].iter().for_each(|map| map.release(part));
    }
}

/// Whether the files are those of the model that the patch starts from.
fn check_source(files: &ModelFiles, patch: &Contents<'_>, direction: Direction) -> Result<()> {
    let (layout, model) = (patch.index.layout, files.describe(""));
    match (files, layout) {
        (ModelFiles::Single(_), Layout::Folder) => {
            return Err(patch.wrong(format!("is for a folder in diffusers' layout, but {model} is a single file")));
        }
        (ModelFiles::Folder(_) | ModelFiles::Embedded { .. }, Layout::SingleFile) => {
            return Err(patch.wrong(format!("is for a single file, but {model} is a folder")));
        }
        _ => {}
    }
    let (found, each) = hashes(files)?;
    let expected = patch.index.model_hash(direction.source());
    if found != expected {
        let other = found == patch.index.model_hash(direction.target());
        let what = match (direction, other) {
            (Direction::Forward, true) => format!(
                "is already patched: its hash {found} is that of the patch's result; there is nothing to do (--reverse gives \
                 the base back)"
            ),
            (Direction::Reverse, true) => format!(
                "is the patch's base, not its result: its hash is {found}; there is nothing to reverse (without --reverse the \
                 patch is applied)"
            ),
            (Direction::Forward, false) => format!(
                "is not the model that the patch was made from: its hash is {found}, the base's is {expected}{}; take the \
                 model that the patch belongs to, every file as it came",
                differing(patch, &each, direction.source())
            ),
            (Direction::Reverse, false) => format!(
                "is not what the patch makes: its hash is {found}, the result's is {expected}{}; take the model as it was \
                 when it was patched",
                differing(patch, &each, direction.source())
            ),
        };
        return Err(Error::file(model, what));
    }
    let is_beside = |file: &&File| file.beside && direction == Direction::Reverse;
    let beside: Vec<_> = patch.index.files.iter().filter(is_beside).map(|file| file.path.clone()).collect();
    let wrong = |path: &String, what: &str| {
        Err(Error::file(
            files.describe(path),
            format!("{what}: it is part of the base, which cannot be given back without it"),
        ))
    };
    if let Some(path) = beside.iter().find(|path| !files.contains(path)) {
        return wrong(path, "is missing");
    }
    let found = sha256_each(files, &beside)?;
    let is_other = |(path, hash): &(&String, String)| {
        patch.index.file(path).and_then(|file| file.hash(Side::Result)) != Some(hash)
    };
    match beside.iter().zip(found).find(is_other) {
        Some((path, _)) => wrong(path, "was changed"),
        None => Ok(()),
    }
}

/// The hash of a model, and of each file that counts.
pub(super) fn hashes(files: &ModelFiles) -> Result<(String, BTreeMap<String, String>)> {
    if let ModelFiles::Single(file) = files {
        let hash = sha256_file(file.path())?;
        return Ok((hash.clone(), BTreeMap::from([(SINGLE.to_string(), hash)])));
    }
    let list = files.list()?;
    let each: BTreeMap<_, _> = list.iter().cloned().zip(sha256_each(files, &list)?).collect();
    Ok((sha256_of_list(each.iter().map(|(path, hash)| (path.as_str(), hash.as_str()))), each))
}

/// Which files are not as they should be, for a message: ` (unet/config.json differs)`.
fn differing(patch: &Contents<'_>, found: &BTreeMap<String, String>, side: Side) -> String {
    if patch.index.layout == Layout::SingleFile {
        return String::new();
    }
    let expected: BTreeMap<_, _> = patch
        .files(side)
        .filter(|(file, _)| side == Side::Base || !file.beside)
        .map(|(file, hash)| (&file.path, hash))
        .collect();
    let mut said: Vec<String> = Vec::new();
    for (path, hash) in &expected {
        match found.get(*path) {
            None => said.push(format!("{path} is missing")),
            Some(found) if found != hash => said.push(format!("{path} differs")),
            Some(_) => {}
        }
    }
    said.extend(found.keys().filter(|path| !expected.contains_key(path)).map(|path| format!("{path} is new")));
    let more = said.len().saturating_sub(3);
    said.truncate(3);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" ({}{more})", said.join(", "))
}
