//! A folder that appears whole or not at all.

use super::write::sync_folder;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Temporary folders that this process is writing: one with our pid and not among them was left by a dead process that
/// had the same pid (in a container that is likely).
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A result being written: a hidden folder beside the target, renamed to it by [`OutputFolder::commit`].
///
/// Dropped without a commit, it is removed. What a killed process left is removed by the next `create` of the same target.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    temporary: PathBuf,
    overwrite: bool,
}

impl OutputFolder {
    /// Prepares to write `target`; creates its parent if needed. An empty folder may stand there already.
    ///
    /// # Errors
    /// If `target` is a file or a link, or a folder that is not empty (unless `overwrite`), or holds the current folder,
    /// or the parent cannot be written.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        let target = std::path::absolute(target).map_err(Error::io(target))?;
        let (parent, name) = match (target.parent(), target.file_name().and_then(|name| name.to_str())) {
            (Some(parent), Some(name)) if !target.ends_with("..") => (parent, name),
            _ => return Err(Error::file(target, "not a name for a new folder; choose another")),
        };
        fs::create_dir_all(parent).map_err(|e| unwritable(parent, &e))?;
        sweep(parent, name)?;
        check_target(&target, overwrite)?;
        let temporary = parent.join(format!(".{name}.partial-{}", std::process::id()));
        if !live(|live| live.insert(temporary.clone())) {
            return Err(Error::file(target, "is already being written by this process"));
        }
        let folder = Self { target: target.clone(), temporary, overwrite };
        fs::create_dir(&folder.temporary).map_err(|e| unwritable(parent, &e))?;
        Ok(folder)
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Makes everything durable and moves it to the target; an old folder there is deleted last.
    ///
    /// # Errors
    /// If something cannot be synced or moved; then the target is as it was before (and the new files are removed).
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.temporary)?;
        check_target(&self.target, self.overwrite)?;
        let parent = self.target.parent().unwrap_or(Path::new("."));
        if fs::symlink_metadata(&self.target).is_err() || fs::remove_dir(&self.target).is_ok() {
            fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target))?; // nothing, or an empty folder
            return sync_folder(parent);
        }
        let name = self.target.file_name().unwrap_or_default().to_string_lossy();
        let old = parent.join(format!(".{name}.old-{}", std::process::id()));
        fs::rename(&self.target, &old).map_err(Error::io(&self.target))?;
        if let Err(source) = fs::rename(&self.temporary, &self.target) {
            let _ = fs::rename(&old, &self.target); // if this fails too, the next `create` restores it
            return Err(Error::Io { path: self.target.clone(), source });
        }
        sync_folder(parent)?;
        fs::remove_dir_all(&old).map_err(|e| {
            Error::file(&old, format!("the result is complete, but the old folder is left: {e}; delete it by hand"))
        })
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.temporary); // after a commit there is nothing at this path
        live(|live| live.remove(&self.temporary));
    }
}

fn live<T>(f: impl FnOnce(&mut BTreeSet<PathBuf>) -> T) -> T {
    f(&mut LIVE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn unwritable(parent: &Path, e: &std::io::Error) -> Error {
    Error::file(parent, format!("cannot create a folder here: {e}; choose another place for the output"))
}

/// Whether the target may be written; asked when the work begins and once more when it ends.
fn check_target(target: &Path, overwrite: bool) -> Result<()> {
    let kind = match fs::symlink_metadata(target) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path: target.to_path_buf(), source }),
    };
    if kind.is_symlink() {
        return Err(Error::file(target, "is a symbolic link; name the folder itself, or choose another"));
    }
    if !kind.is_dir() {
        return Err(Error::file(target, "is a file; the output is a folder, choose another name"));
    }
    if fs::read_dir(target).map_err(Error::io(target))?.next().is_none() {
        return Ok(());
    }
    if !overwrite {
        return Err(Error::file(target, "is there already and is not empty; choose another name, or pass --overwrite"));
    }
    let (current, real) = (std::env::current_dir(), fs::canonicalize(target).map_err(Error::io(target))?);
    if current.and_then(fs::canonicalize).is_ok_and(|current| current.starts_with(&real)) {
        return Err(Error::file(target, "holds the current folder and will not be replaced; choose another name"));
    }
    Ok(())
}

/// Cleans up what dead processes left beside the target; puts an old folder back if the new one never arrived.
fn sweep(parent: &Path, name: &str) -> Result<()> {
    let (partial, old) = (format!(".{name}.partial-"), format!(".{name}.old-"));
    let target = parent.join(name);
    for entry in fs::read_dir(parent).map_err(|e| unwritable(parent, &e))? {
        let path = entry.map_err(Error::io(parent))?.path();
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let pid = |prefix: &str| file_name.strip_prefix(prefix).and_then(|pid| pid.parse::<u32>().ok());
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        let writer = |pid: u32| parent.join(format!("{partial}{pid}"));
        let stale = |pid: u32| is_folder && !is_alive(pid, &writer(pid));
        if pid(&partial).is_some_and(stale) {
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        } else if pid(&old).is_some_and(stale) {
            if fs::symlink_metadata(&target).is_ok() {
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            } else {
                fs::rename(&path, &target).map_err(Error::io(&path))?;
            }
        }
    }
    Ok(())
}

/// Whether the process of this number may still be writing `temporary`. Where it cannot be known, it may.
fn is_alive(pid: u32, temporary: &Path) -> bool {
    if pid == std::process::id() {
        return live(|live| live.contains(temporary));
    }
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(folder))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() && cfg!(unix) {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        }
    }
    sync_folder(folder)
}
