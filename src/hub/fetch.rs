//! `OWNER/NAME` at a revision to a folder on this machine: what is in the cache is used, what is missing is fetched.

use super::cache::{Repository, State, free_space, is_commit, known};
use super::environment::Hub;
use super::listing::{Entry, Listing};
use super::snapshot::{INDEX, choose, choose_single, no_index};
use crate::checkpoint::check_pipeline;
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[cfg(feature = "hub")]
use super::client::{Client, Failure, not_a_hub};
#[cfg(feature = "hub")]
use super::transfer;

/// The branch where the user names no revision.
pub(super) const DEFAULT_REVISION: &str = "main";

/// How often the bytes that came are told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// A single file of at least so many bytes is worth a bar; a smaller one is there at once.
const SHOWN: u64 = 100_000;

/// What to do about a full disk.
pub(super) const FREE: &str = "free some space, or set HF_HUB_CACHE to a folder on another disk";

/// Where a model came from: it is the same for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// `OWNER/NAME`.
    pub repo: String,
    /// The commit that the revision stood for.
    pub commit: String,
}

/// What a model of the Hub is wanted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A text-to-image model in diffusers' layout.
    Pipeline,
    /// One network in transformers' layout.
    Single,
}

/// What missing files come from.
trait Source {
    /// Size and hash of a file, where the listing has none.
    fn entry(&self, commit: &str, rel: &str) -> Result<Entry>;
    /// Fetches a blob, whose lock is held.
    fn fetch(
        &self,
        repository: &Repository,
        commit: &str,
        rel: &str,
        known: (&str, u64),
        received: &mut dyn FnMut(u64),
    ) -> Result<()>;
}

#[cfg(feature = "hub")]
impl Source for Client<'_> {
    fn entry(&self, commit: &str, rel: &str) -> Result<Entry> {
        self.head(commit, rel).map_err(|failure| match failure {
            Failure::Unreachable(why) => Error::Hub(format!("{rel} could not be looked up: {why}; try again later")),
            Failure::Final(error) => error,
        })
    }

    fn fetch(
        &self,
        repository: &Repository,
        commit: &str,
        rel: &str,
        (etag, size): (&str, u64),
        received: &mut dyn FnMut(u64),
    ) -> Result<()> {
        transfer::fetch(self, repository, &transfer::Wanted { rel, commit, etag, size }, received)
    }
}

/// One commit of one model.
struct Session<'a> {
    hub: &'a Hub,
    name: &'a str,
    what: What,
    repository: &'a Repository,
    commit: String,
    listing: Listing,
    source: Option<&'a dyn Source>,
    progress: &'a mut dyn Progress,
}

/// The folder of a model and where it came from. `name` is `OWNER/NAME`, `revision` a branch, a tag or a commit.
///
/// # Errors
/// If it is not in the cache and cannot be fetched: the message says what was tried, and the ways on.
pub(super) fn fetch(
    hub: &Hub,
    name: &str,
    what: What,
    revision: &str,
    progress: &mut dyn Progress,
) -> Result<(PathBuf, Origin)> {
    let repository = Repository::new(hub, name);
    let cached = |progress: &mut dyn Progress| -> Result<(PathBuf, Origin)> {
        let place = format!("the cache in {}", hub.cache.display());
        let commit = repository.commit(revision);
        let commit = commit.ok_or_else(|| Error::Hub(format!("{place} has no revision {revision:?} of it")))?;
        let listing = repository.listing(&commit);
        let listing = listing.ok_or_else(|| Error::Hub(format!("{place} has nothing of its commit {commit}")))?;
        let mut session = Session { hub, name, what, repository: &repository, commit, listing, source: None, progress };
        session.run(revision)
    };
    if is_commit(revision) && repository.listing(revision).is_some() {
        // a commit never changes: if all of it is here, nobody need be asked
        match cached(progress) {
            Err(Error::Hub(_)) => {}
            done => return done,
        }
    }
    let instead = match what {
        What::Pipeline => "pass --model FOLDER (a folder in diffusers' layout), or use --model demo",
        What::Single => "or name a folder that has it",
    };
    let ways_on = |tried: &str, error: Error| match error {
        Error::Hub(why) => Error::Hub(format!(
            "{name}: {tried}, and {why}. Ways on: run it once with a network (without --offline and HF_HUB_OFFLINE), set \
             HF_HUB_CACHE to a cache that has it, {instead}"
        )),
        error => error,
    };
    if hub.offline {
        return cached(progress).map_err(|error| ways_on("nothing is fetched (offline)", error));
    }
    #[cfg(not(feature = "hub"))]
    return cached(progress).map_err(|error| ways_on("this build of the program downloads nothing", error));
    #[cfg(feature = "hub")]
    {
        let client = Client::new(hub, name)?;
        let info = match client.info(revision) {
            Ok(info) => info,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unreachable(why)) => {
                let found = cached(progress).map_err(|error| ways_on(&format!("cannot be fetched: {why}"), error))?;
                progress.event(Event::Note(&format!("{why}; what the cache has of {name} is used")));
                return Ok(found);
            }
        };
        let commit = info.get("sha").and_then(|sha| sha.as_str()).filter(|sha| is_commit(sha));
        let (commit, listing) = commit.zip(Listing::from_api(&info)).ok_or_else(|| not_a_hub(&hub.endpoint))?;
        let (commit, source) = (commit.to_string(), Some(&client as &dyn Source));
        Session { hub, name, what, repository: &repository, commit, listing, source, progress }.run(revision)
    }
}

impl Session<'_> {
    /// Chooses, fetches and links the files.
    fn run(&mut self, revision: &str) -> Result<(PathBuf, Origin)> {
        let chosen = match self.what {
            What::Pipeline => self.choose_pipeline()?,
            What::Single => {
                let listing = self.listing.clone();
                choose_single(self.name, &listing, &mut |rel| self.content(rel))?
            }
        };
        let fetched = self.complete(&chosen)?;

        let mut files = Vec::new();
        for rel in &chosen {
            let State::Whole(content) = self.state(rel)? else { return Err(self.absent(std::slice::from_ref(rel))) };
            self.repository.link(&self.commit, rel, &content, self.entry(rel).etag.as_deref())?;
            files.push((rel.clone(), content));
        }
        let noted = self.repository.write_ref(revision, &self.commit);
        if fetched {
            noted?; // otherwise the cache may be one that cannot be written
        }
        let origin = Origin { repo: self.name.to_string(), commit: self.commit.clone() };
        let of = if revision == self.commit { String::new() } else { format!(" ({revision})") };
        self.progress.event(Event::Note(&format!("model {} at commit {}{of}", self.name, self.commit)));
        Ok((self.repository.view(&self.commit, &files), origin))
    }

    fn choose_pipeline(&mut self) -> Result<BTreeSet<String>> {
        if !self.listing.0.contains_key(INDEX) {
            return Err(Error::Hub(no_index(self.name, &self.listing)));
        }
        let text = self.content(INDEX)?;
        let place = format!("{} ({INDEX})", self.name);
        let index = serde_json::from_slice(&text).map_err(|e| Error::file(&place, format!("not JSON: {e}")))?;
        check_pipeline(&index, &place)?;
        let listing = self.listing.clone();
        choose(self.name, &listing, &index, &mut |rel| self.content(rel))
    }

    fn entry(&self, rel: &str) -> Entry {
        self.listing.0.get(rel).cloned().unwrap_or_default()
    }

    fn state(&self, rel: &str) -> Result<State> {
        self.repository.state(&self.commit, rel, &self.entry(rel))
    }

    /// A small file's content.
    fn content(&mut self, rel: &str) -> Result<Vec<u8>> {
        self.complete(&BTreeSet::from([rel.to_string()]))?;
        match self.state(rel)? {
            State::Whole(path) => std::fs::read(&path).map_err(Error::io(&path)),
            _ => Err(self.absent(&[rel.to_string()])),
        }
    }

    /// Sees that these files are in the cache; says whether any had to be fetched.
    fn complete(&mut self, chosen: &BTreeSet<String>) -> Result<bool> {
        let missing = self.missing(chosen)?;
        let Some(source) = self.source else {
            return if missing.is_empty() { Ok(false) } else { Err(self.absent(&missing)) };
        };
        for rel in chosen {
            let entry = self.entry(rel);
            if entry.size.is_none() || entry.etag.is_none() {
                self.listing.0.insert(rel.clone(), source.entry(&self.commit, rel)?);
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        let mut wanted = Vec::new();
        for rel in &missing {
            let Entry { size: Some(size), etag: Some(etag) } = self.entry(rel) else {
                let (name, endpoint) = (self.name, &self.hub.endpoint);
                return Err(Error::Hub(format!(
                    "{name}: {endpoint} tells no size and hash of {rel}, so what it sends could not be verified; unset \
                     HF_ENDPOINT, or choose another mirror"
                )));
            };
            wanted.push((rel, etag, size));
        }
        self.check_space(&wanted)?;
        self.repository.prepare(&self.commit)?;
        self.repository.keep_listing(&self.commit, &self.listing);
        let total: u64 = wanted.iter().map(|(.., size)| size).sum();
        let name = format!("fetching {}", self.name);
        let large = wanted.len() > 1 || total >= SHOWN;
        if large {
            self.progress.event(Event::Transfer { name: &name, bytes: total });
        }
        let mut before = 0;
        for (rel, etag, size) in wanted {
            check_interrupted()?;
            let mut told = Instant::now();
            let progress = &mut *self.progress;
            let waiting = || format!("{rel}: another process is fetching it; waiting for that");
            let _lock = self.repository.lock(&etag, &mut || progress.event(Event::Note(&waiting())))?;
            let entry = Entry { size: Some(size), etag: Some(etag.clone()) };
            if !matches!(self.repository.state(&self.commit, rel, &entry)?, State::Whole(_)) {
                let mut received = |bytes: u64| {
                    if large && (told.elapsed() >= TELL_EVERY || bytes == size) {
                        told = Instant::now();
                        progress.event(Event::Received { bytes: before + bytes });
                    }
                };
                source.fetch(self.repository, &self.commit, rel, (&etag, size), &mut received)?;
            }
            before += size;
        }
        if large {
            self.progress.event(Event::Received { bytes: total });
        }
        Ok(true)
    }

    /// Which of these files are not in the cache as they should be; what is damaged is said.
    fn missing(&mut self, chosen: &BTreeSet<String>) -> Result<Vec<String>> {
        let unverified = known(&self.listing, chosen).filter(|(_, entry)| self.repository.is_unverified(entry)).count();
        let tells = unverified > 1;
        if tells {
            self.progress.event(Event::Stage { name: "checking files in the cache", steps: unverified });
        }
        let mut missing = Vec::new();
        for rel in chosen {
            check_interrupted()?;
            let counts = tells && self.repository.is_unverified(&self.entry(rel));
            match self.state(rel)? {
                State::Whole(_) => {}
                State::Absent => missing.push(rel.clone()),
                State::Damaged(path, what) => {
                    let next = if self.source.is_some() { "it is fetched again" } else { "it cannot be used" };
                    let note = format!("{rel} in the cache is damaged ({}: {what}); {next}", path.display());
                    self.progress.event(Event::Note(&note));
                    missing.push(rel.clone());
                }
            }
            if counts {
                self.progress.event(Event::Step { loss: None });
            }
        }
        Ok(missing)
    }

    /// Refuses to begin what would not fit.
    fn check_space(&self, wanted: &[(&String, String, u64)]) -> Result<()> {
        let part =
            |etag: &str| std::fs::metadata(self.repository.incomplete(etag)).map_or(0, |metadata| metadata.len());
        let needed: u64 = wanted.iter().map(|(_, etag, size)| size.saturating_sub(part(etag))).sum();
        match free_space(self.repository.root()) {
            Some(free) if free < needed => Err(Error::Hub(format!(
                "{}: {} are to be fetched, but only {} are free in {}; {FREE}",
                self.name,
                size(needed),
                size(free),
                self.hub.cache.display()
            ))),
            _ => Ok(()),
        }
    }

    fn absent(&self, missing: &[String]) -> Error {
        let shown: Vec<&str> = missing.iter().take(3).map(String::as_str).collect();
        let more = if missing.len() > 3 { format!(" and {} more", missing.len() - 3) } else { String::new() };
        let files = shown.join(", ");
        Error::Hub(format!(
            "the cache in {} has not all of its commit {} whole: {files}{more} is missing or damaged",
            self.hub.cache.display(),
            self.commit
        ))
    }
}

/// Bytes in words.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
