//! One blob from the Hub to the cache: gone on from where an earlier attempt ended, and in its place only once size and hash
//! are right.

use super::cache::Repository;
use super::client::{Again, Answer, Attempt, Client};
use super::fetch::FREE;
use super::verify::{Hasher, difference};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// An attempt that brought so much counts as the first: the next starts with the shortest wait.
const PROGRESS: u64 = 1 << 20;

/// What is fetched.
pub(super) struct Wanted<'a> {
    /// Its path in the model.
    pub rel: &'a str,
    pub commit: &'a str,
    pub etag: &'a str,
    pub size: u64,
}

/// A file that is being written.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    hasher: Hasher,
    /// Bytes that are there.
    length: u64,
}

/// How content came.
enum Came {
    /// All of it.
    Whole,
    /// It is not what was promised, in words.
    Wrong(String),
}

/// Fetches a blob; `received` is told how many of its bytes are there. The caller holds the blob's lock.
///
/// # Errors
/// If the server refuses, cannot be reached again and again, or sends the wrong content twice; nothing wrong is ever at
/// the blob's place, and what has come stays for the next run.
pub(super) fn fetch(
    client: &Client<'_>,
    repository: &Repository,
    wanted: &Wanted<'_>,
    received: &mut dyn FnMut(u64),
) -> Result<()> {
    let incomplete = repository.incomplete(wanted.etag);
    let blob = repository.blob(wanted.etag);
    let mut wrong_before = None;
    loop {
        let came = attempts(client, &incomplete, wanted, received)?;
        match (came, wrong_before) {
            (Came::Whole, _) => break,
            (Came::Wrong(what), None) => {
                fs::remove_file(&incomplete).map_err(Error::io(&incomplete))?;
                wrong_before = Some(what);
            }
            (Came::Wrong(what), Some(_)) => {
                let _ = fs::remove_file(&incomplete);
                let rel = wanted.rel;
                return Err(Error::Hub(format!(
                    "{rel}: what was sent is not the file that the Hub lists, twice: {what}. Nothing was kept; try again later, \
                     or check HF_ENDPOINT and the proxy if there is one"
                )));
            }
        }
    }
    if let Err(e) = fs::rename(&incomplete, &blob) {
        // where a file system knows no locks, another process may have been faster
        if !matches!(difference(&blob, wanted.etag), Ok(None)) {
            return Err(Error::io(&blob)(e));
        }
    }
    repository.mark_verified(&blob, wanted.etag);
    Ok(())
}

/// Attempts until the content is there, right or wrong.
fn attempts(
    client: &Client<'_>,
    incomplete: &Path,
    wanted: &Wanted<'_>,
    received: &mut dyn FnMut(u64),
) -> Result<Came> {
    let mut partial = Partial::open(incomplete, wanted)?;
    received(partial.length);
    let mut tried = 0;
    loop {
        let before = partial.length;
        let again = match attempt(client, &mut partial, wanted, received)? {
            Ok(Came::Whole) => {
                let hasher = std::mem::replace(&mut partial.hasher, Hasher::new(wanted.etag, wanted.size));
                let (found, kind) = hasher.finish();
                if found != wanted.etag {
                    return Ok(Came::Wrong(format!("its {kind} is {found}, not {}", wanted.etag)));
                }
                partial.file.sync_all().map_err(disk(incomplete, wanted))?;
                return Ok(Came::Whole);
            }
            Ok(wrong) => return Ok(wrong),
            Err(again) => again,
        };
        tried = if partial.length >= before + PROGRESS { 1 } else { tried + 1 };
        if client.is_enough(tried, &again) {
            return Err(client.gave_up(wanted.rel, tried, &again));
        }
        client.wait(tried, &again)?;
    }
}

/// One request for what is missing.
fn attempt(
    client: &Client<'_>,
    partial: &mut Partial<'_>,
    wanted: &Wanted<'_>,
    received: &mut dyn FnMut(u64),
) -> Attempt<Came> {
    if partial.length == wanted.size {
        return Ok(Ok(Came::Whole));
    }
    let url = client.address(wanted.commit, wanted.rel);
    let mut answer = match client.request(&url, false, partial.length)? {
        Ok(answer) => answer,
        Err(again) => return Ok(Err(again)),
    };
    if answer.status == 416 {
        partial.restart(wanted)?; // nothing after what we have: then that is not a part of this file
        received(0);
        return Ok(Err(Again::because("the server has no more of it")));
    }
    if let Some(again) = client.refusal(&answer, wanted.rel, wanted.commit)? {
        return Ok(Err(again));
    }
    let total = match (answer.status, range(&answer)) {
        (206, Some((start, total))) if start == partial.length => total,
        (206, _) => {
            partial.restart(wanted)?;
            received(0);
            return Ok(Err(Again::because("the server sent another part than it was asked for")));
        }
        _ => {
            // the whole file, whatever was asked for
            if partial.length > 0 {
                partial.restart(wanted)?;
                received(0);
            }
            answer.header("content-length").and_then(|length| length.parse().ok())
        }
    };
    if let Some(total) = total.filter(|total| *total != wanted.size) {
        return Ok(Ok(Came::Wrong(format!("it has {total} bytes, not {}", wanted.size))));
    }
    let mut body = answer.body.as_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        check_interrupted()?;
        match body.read(&mut buffer) {
            Ok(0) if partial.length == wanted.size => return Ok(Ok(Came::Whole)),
            Ok(0) => return Ok(Err(Again::because(cut(partial.length, wanted.size)))),
            Ok(n) if partial.length + n as u64 > wanted.size => {
                return Ok(Ok(Came::Wrong(format!("it has more than {} bytes", wanted.size))));
            }
            Ok(n) => {
                partial.append(&buffer[..n], wanted)?;
                received(partial.length);
            }
            Err(e) => return Ok(Err(Again::because(format!("{}: {e}", cut(partial.length, wanted.size))))),
        }
    }
}

fn cut(length: u64, size: u64) -> String {
    format!("the connection ended after {length} of {size} bytes")
}

/// Start and total of a `Content-Range: bytes 5-9/10`.
fn range(answer: &Answer) -> Option<(u64, Option<u64>)> {
    let (range, total) = answer.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

impl<'a> Partial<'a> {
    /// What an earlier attempt left, or a new file.
    fn open(path: &'a Path, wanted: &Wanted<'_>) -> Result<Self> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(disk(path, wanted))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let mut partial = Self { path, file, hasher: Hasher::new(wanted.etag, wanted.size), length };
        if length > wanted.size {
            partial.restart(wanted)?;
        } else {
            partial.hasher.update_from(path)?;
            partial.file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        }
        Ok(partial)
    }

    fn restart(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(Error::io(self.path))?;
        (self.length, self.hasher) = (0, Hasher::new(wanted.etag, wanted.size));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], wanted: &Wanted<'_>) -> Result<()> {
        self.file.write_all(bytes).map_err(disk(self.path, wanted))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// A full disk in words that fit a cache.
fn disk(path: &Path, wanted: &Wanted<'_>) -> impl FnOnce(std::io::Error) -> Error {
    let (path, size) = (path.to_path_buf(), wanted.size);
    move |e| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::file(path, format!("disk full while {size} bytes were fetched; {FREE}, and run again to go on"))
        }
        _ => Error::Io { path, source: e },
    }
}
