//! A model in the Hub's cache, in the layout of Python's huggingface_hub, so that either program uses what the other fetched.
//!
//! `models--OWNER--NAME/` has `blobs/ETAG` (content by its hash), `snapshots/COMMIT/PATH` (links to blobs) and `refs/REVISION`
//! (a commit); `.locks/models--OWNER--NAME/ETAG.lock` beside it is held while a blob is fetched. What is ours alone lies in
//! `.erase-concept/`: the listing of a commit, which blobs were verified, and a folder of links to exactly the files that
//! are used, whatever else other programs put into the snapshot.

use super::environment::Hub;
use super::listing::{Entry, Listing, is_hash};
use super::verify::difference;
use crate::checkpoint::{sha256_hex, write_file_atomic};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The folder for what is not Python's.
const OWN: &str = ".erase-concept";

/// How often a lock that another process holds is asked for.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// One model's part of the cache.
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
    symlinks: bool,
    /// What was verified by this process, for caches that cannot be written.
    verified: RefCell<BTreeMap<String, String>>,
}

/// What the cache has of a file.
pub(super) enum State {
    /// It is there, with the size and the hash that it should have, as far as these are known.
    Whole(PathBuf),
    /// It is there, but wrong.
    Damaged(PathBuf, String),
    /// It is not there.
    Absent,
}

impl Repository {
    /// `name` is `OWNER/NAME`.
    pub fn new(hub: &Hub, name: &str) -> Self {
        let folder = format!("models--{}", name.replace('/', "--"));
        let locks = hub.cache.join(".locks").join(&folder);
        Self { root: hub.cache.join(folder), locks, symlinks: hub.symlinks, verified: RefCell::default() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob belongs.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where what has come of a blob waits for the rest.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last looked up.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    /// Notes which commit a revision stands for.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        make_parent(&path)?;
        write_file_atomic(&path, commit.as_bytes())
    }

    /// The folders that the first file needs.
    pub fn prepare(&self, commit: &str) -> Result<()> {
        for folder in [self.root.join("blobs"), self.snapshot(commit), self.locks.clone()] {
            fs::create_dir_all(&folder).map_err(|e| match e.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Error::file(
                    &folder,
                    format!("cannot be made: {e}; set HF_HUB_CACHE to a folder that can be written"),
                ),
                _ => Error::Io { path: folder, source: e },
            })?;
        }
        Ok(())
    }

    /// The files of a commit as far as they are known here: our listing, Python's, or what is in the snapshot.
    pub fn listing(&self, commit: &str) -> Option<Listing> {
        let kept = [self.root.join(OWN), self.root.join("trees")];
        let read = |folder: &PathBuf| {
            let text = fs::read(folder.join(format!("{commit}.json"))).ok()?;
            Listing::from_tree(&serde_json::from_slice(&text).ok()?)
        };
        if let Some(listing) = kept.iter().find_map(read) {
            return Some(listing);
        }
        let mut found = Listing::default();
        self.walk(&self.snapshot(commit), "", &mut found);
        (!found.0.is_empty()).then_some(found)
    }

    /// Keeps a listing, where that is possible.
    pub fn keep_listing(&self, commit: &str, listing: &Listing) {
        let path = self.root.join(OWN).join(format!("{commit}.json"));
        if !path.exists() && make_parent(&path).is_ok() {
            let _ = write_file_atomic(&path, listing.to_tree().to_string().as_bytes());
        }
    }

    fn walk(&self, folder: &Path, prefix: &str, found: &mut Listing) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let rel = format!("{prefix}{name}");
            if path.is_dir() && prefix.matches('/').count() < 4 {
                self.walk(&path, &format!("{rel}/"), found);
            } else if path.is_file() {
                let target = fs::read_link(&path).ok();
                let etag = target.and_then(|target| Some(target.file_name()?.to_str()?.to_string()));
                found.0.insert(rel, Entry { size: None, etag: etag.filter(|etag| is_hash(etag)) });
            }
        }
    }

    /// What is there of a file. A blob is hashed when it is met first, and again when its size or time of change is no longer
    /// what it was then.
    pub fn state(&self, commit: &str, rel: &str, entry: &Entry) -> Result<State> {
        let blob = entry.etag.as_ref().map(|etag| self.blob(etag));
        // without symbolic links the content may be in the snapshot alone
        let places = blob.into_iter().chain([self.snapshot(commit).join(rel)]);
        let Some(path) = places.into_iter().find(|path| path.is_file()) else { return Ok(State::Absent) };
        let found = fs::metadata(&path).map_err(Error::io(&path))?.len();
        if let Some(size) = entry.size.filter(|size| *size != found) {
            return Ok(State::Damaged(path, format!("it has {found} bytes, not {size}")));
        }
        let Some(etag) = &entry.etag else { return Ok(State::Whole(path)) };
        if self.is_verified(&path, etag) {
            return Ok(State::Whole(path));
        }
        match difference(&path, etag)? {
            Some(what) => Ok(State::Damaged(path, what)),
            None => {
                self.mark_verified(&path, etag);
                Ok(State::Whole(path))
            }
        }
    }

    /// Whether [`Repository::state`] would have to read the file.
    pub fn is_unverified(&self, entry: &Entry) -> bool {
        let path = entry.etag.as_ref().map(|etag| (self.blob(etag), etag));
        path.is_some_and(|(path, etag)| path.is_file() && !self.is_verified(&path, etag))
    }

    fn is_verified(&self, path: &Path, etag: &str) -> bool {
        let noted = || fs::read_to_string(self.root.join(OWN).join("verified").join(etag)).ok();
        let noted = self.verified.borrow().get(etag).cloned().or_else(noted);
        noted.is_some() && noted == stamp(path)
    }

    /// Notes, where that is possible, that a blob has the hash that is its name.
    pub fn mark_verified(&self, path: &Path, etag: &str) {
        let note = self.root.join(OWN).join("verified").join(etag);
        let Some(stamp) = stamp(path) else { return };
        if make_parent(&note).is_ok() {
            let _ = write_file_atomic(&note, stamp.as_bytes());
        }
        self.verified.borrow_mut().insert(etag.to_string(), stamp);
    }

    /// Waits for the right to fetch a blob; `waiting` is called once if another process has it.
    pub fn lock(&self, etag: &str, waiting: &mut dyn FnMut()) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let mut said = false;
        loop {
            check_interrupted()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut said, true) {
                        waiting();
                    }
                    std::thread::sleep(LOCK_EVERY);
                }
                // a file system without locks: content is verified in any case
                Err(fs::TryLockError::Error(_)) => return Ok(file),
            }
        }
    }

    /// Puts a file into the snapshot, as a link to its content or as the system allows.
    pub fn link(&self, commit: &str, rel: &str, content: &Path, etag: Option<&str>) -> Result<()> {
        let place = self.snapshot(commit).join(rel);
        if place == content || is_same_file(&place, content) || self.is_good_copy(&place, etag) {
            return Ok(());
        }
        make_parent(&place)?;
        // a new link or copy takes the place of an old one in one step
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let temporary = place.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let target = self.target(content, 2 + rel.matches('/').count());
        let linked = self.symlinks && target.is_some_and(|target| symlink(&target, &temporary).is_ok());
        if !linked && fs::hard_link(content, &temporary).is_err() {
            fs::copy(content, &temporary).map_err(Error::write(&place, 0))?;
        }
        fs::rename(&temporary, &place).map_err(Error::io(&place))
    }

    /// Whether a copy of a blob (where there are no links at all) has the content that it should have.
    fn is_good_copy(&self, place: &Path, etag: Option<&str>) -> bool {
        let is_file = fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_file());
        let Some(etag) = etag.filter(|_| is_file) else { return false };
        let note = format!("{etag}-copy");
        if self.is_verified(place, &note) {
            return true;
        }
        let good = matches!(difference(place, etag), Ok(None));
        if good {
            self.mark_verified(place, &note);
        }
        good
    }

    /// A folder with links to `files` (relative path, content) and nothing else; the snapshot, where there can be none.
    pub fn view(&self, commit: &str, files: &[(String, PathBuf)]) -> PathBuf {
        self.try_view(commit, files).unwrap_or_else(|| self.snapshot(commit))
    }

    fn try_view(&self, commit: &str, files: &[(String, PathBuf)]) -> Option<PathBuf> {
        let targets: Option<Vec<_>> = files
            .iter()
            .map(|(rel, content)| Some((rel, self.target(content, 2 + rel.matches('/').count())?)))
            .collect();
        let targets = targets.filter(|_| self.symlinks)?;
        let name = format!("{commit}-{}", &sha256_hex(format!("{targets:?}").as_bytes())[..8]);
        let folder = self.root.join(OWN).join(&name);
        if folder.is_dir() {
            return Some(folder);
        }
        fs::create_dir_all(self.root.join(OWN)).ok()?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".view-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777)); // less the umask, as any new folder
        let new = builder.tempdir_in(self.root.join(OWN)).ok()?;
        for (rel, target) in &targets {
            let place = new.path().join(rel);
            make_parent(&place).ok()?;
            symlink(target, &place).ok()?;
        }
        match fs::rename(new.path(), &folder) {
            Ok(()) => drop(new.keep()),
            Err(_) if folder.is_dir() => {} // another process was faster
            Err(_) => return None,
        }
        Some(folder)
    }

    /// The way from a folder `depth` below the model's to its content.
    fn target(&self, content: &Path, depth: usize) -> Option<PathBuf> {
        let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
        target.push(content.strip_prefix(&self.root).ok()?);
        Some(target)
    }
}

/// A whole commit's hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hash(revision)
}

/// Size and time of change of a file.
fn stamp(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}\n", metadata.len(), changed.as_nanos()))
}

fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io(folder))
}

/// Whether two paths lead to one file: through links, or as names of the same.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        id(a).is_some() && id(a) == id(b)
    }
    #[cfg(not(unix))]
    {
        let real = |path: &Path| fs::canonicalize(path).ok();
        real(a).is_some() && real(a) == real(b)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, place: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(windows)]
fn symlink(target: &Path, place: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, place)
}

/// Bytes that are free where a folder is or will be, where the system tells.
pub(crate) fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = folder.ancestors().find(|folder| folder.is_dir())?;
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Chosen files that a listing has, with what is known of them.
pub(super) fn known<'a>(
    listing: &'a Listing,
    chosen: &'a BTreeSet<String>,
) -> impl Iterator<Item = (&'a String, &'a Entry)> {
    chosen.iter().filter_map(|rel| Some((rel, listing.0.get(rel)?)))
}
