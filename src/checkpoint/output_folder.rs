//! A folder that appears whole or not at all.

use super::disk;
use super::temporary::{Temporary, is_alive};
use super::write::sync_folder;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A result being written: a hidden folder beside the target, renamed to it by [`OutputFolder::commit`].
///
/// Dropped without a commit, it is removed, and so are the parents that were made for it. What a killed process left is
/// removed by the next `create` of the same target.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    // before `parents`, as fields are dropped in this order
    temporary: Temporary,
    overwrite: bool,
    parents: Parents,
}

/// Folders that were made for a result, deepest first; removed on drop unless something is in them.
#[derive(Debug, Default)]
struct Parents(Vec<PathBuf>);

impl Parents {
    fn create(parent: &Path) -> Result<Self> {
        let absent = parent.ancestors().take_while(|folder| fs::symlink_metadata(folder).is_err());
        let made = Self(absent.map(Path::to_path_buf).collect());
        fs::create_dir_all(parent).map_err(|e| unwritable(parent, e))?;
        Ok(made)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        self.0.iter().for_each(|folder| drop(fs::remove_dir(folder))); // those that are not there or not empty stay
    }
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
        let mut parents = Parents::create(parent)?;
        sweep(parent, name)?;
        check_target(&target, overwrite)?;
        let temporary = parent.join(format!(".{name}.partial-{}", std::process::id()));
        let Some(temporary) = Temporary::register(temporary) else {
            return Err(Error::file(target, "is already being written by this process"));
        };
        let made = match fs::create_dir(temporary.path()) {
            // another process made the parent, failed, and removed it just now
            Err(e) if e.kind() == ErrorKind::NotFound => {
                parents.0.extend(std::mem::take(&mut Parents::create(parent)?.0));
                fs::create_dir(temporary.path())
            }
            made => made,
        };
        made.map_err(|e| unwritable(parent, e))?;
        Ok(Self { target: target.clone(), temporary, overwrite, parents })
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Makes everything durable and moves it to the target; an old folder there is deleted last.
    ///
    /// # Errors
    /// If something cannot be synced or moved, or the user interrupts; then the target is as it was before (and the new
    /// files are removed).
    pub fn commit(mut self) -> Result<()> {
        sync_tree(self.path())?;
        check_target(&self.target, self.overwrite)?;
        let parent = self.target.parent().unwrap_or(Path::new("."));
        check_interrupted()?; // the last chance: from here on the result is there
        let replaced = self.temporary.moving(|temporary| put_in_place(temporary, &self.target))?;
        self.parents.0.clear();
        sync_folder(parent)?;
        if replaced {
            // the old folder has taken the temporary one's place
            fs::remove_dir_all(self.path()).map_err(|e| {
                let what = format!("the result is complete, but the old folder is left: {e}; delete it by hand");
                Error::file(self.path(), what)
            })?;
        }
        Ok(())
    }
}

/// Moves `temporary` to `target`. If a folder that is not empty stands there, the two change places: says whether.
fn put_in_place(temporary: &Path, target: &Path) -> Result<bool> {
    if fs::symlink_metadata(target).is_err() || fs::remove_dir(target).is_ok() {
        disk::rename(temporary, target).map_err(Error::io(target))?; // nothing, or an empty folder
        return Ok(false);
    }
    #[cfg(target_os = "linux")]
    if disk::exchange(temporary, target).is_ok() {
        return Ok(true);
    }
    // a system or file system that cannot exchange: if we are killed in between, the next `create` restores the old one
    let (parent, name) = (target.parent().unwrap_or(Path::new(".")), target.file_name().unwrap_or_default());
    let old = parent.join(format!(".{}.old-{}", name.to_string_lossy(), std::process::id()));
    disk::rename(target, &old).map_err(Error::io(target))?;
    if let Err(source) = disk::rename(temporary, target) {
        let _ = disk::rename(&old, target); // if this fails too, the next `create` restores it
        return Err(Error::io(target)(source));
    }
    disk::rename(&old, temporary).map_err(Error::io(&old))?;
    Ok(true)
}

fn unwritable(parent: &Path, e: std::io::Error) -> Error {
    if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return Error::io(parent)(e);
    }
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
    for entry in fs::read_dir(parent).map_err(|e| unwritable(parent, e))? {
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

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        check_interrupted()?;
        let entry = entry.map_err(Error::io(folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(folder))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() && cfg!(unix) {
            fs::File::open(&path).and_then(|file| disk::sync(&file)).map_err(Error::io(&path))?;
        }
    }
    sync_folder(folder)
}
