//! Temporary files and folders: which of them this process is writing, and what dead processes left.

use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What this process is writing: a path with our pid and not among these was left by a dead process that had the same pid
/// (in a container that is likely).
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file or folder; whatever is at its path when this is dropped is removed.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// Takes a path for this process; `None` if it already has it.
    pub fn register(path: PathBuf) -> Option<Self> {
        let is_new = live().insert(path.clone());
        if is_new { Some(Self(path)) } else { None } // not `then_some`, which would make one in any case, and drop it
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs `f`, which moves what is at the path, so that [`abandon`] happens before or after it.
    pub fn moving<T>(&self, f: impl FnOnce(&Path) -> T) -> T {
        let _live = live();
        f(&self.0)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(&self.0);
        live().remove(&self.0);
    }
}

fn remove(path: &Path) {
    // a file that a thread writes meanwhile may need a second go
    for _ in 0..3 {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => return,
        };
        if removed.is_ok() {
            return;
        }
    }
}

/// Removes everything temporary that this process is writing. From now on nothing is begun or moved into its place: the
/// caller must end the process.
pub fn abandon() {
    let live = live();
    live.iter().for_each(|path| remove(path));
    std::mem::forget(live); // whoever would move a result into its place now waits for the end
}

/// Whether the process of this number may still be writing `temporary`. Where it cannot be known, it may.
pub(super) fn is_alive(pid: u32, temporary: &Path) -> bool {
    if pid == std::process::id() {
        return live().contains(temporary);
    }
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
}

/// The start of the name of a temporary file for `name`; a random ending follows.
pub(super) fn file_prefix(name: &str) -> String {
    format!(".{name}.partial-{}-", std::process::id())
}

/// Removes from `folder` what killed processes left of single files that were being written there.
///
/// # Errors
/// If the folder cannot be read or such a file cannot be removed.
pub fn sweep_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with('.'));
        let Some((_, rest)) = name.and_then(|name| name.rsplit_once(".partial-")) else { continue };
        let Some(Ok(pid)) = rest.split_once('-').map(|(pid, _)| pid.parse::<u32>()) else { continue };
        if !is_alive(pid, &path) && !is_locked(&path) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path)(e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a process that we cannot see (in another container) still writes this file.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
}
