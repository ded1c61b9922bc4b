//! What the machine is: processor, memory, folders.

use crate::hub::free_space;
use std::path::{Path, PathBuf};

/// The processor's name, where the system tells (Linux).
pub(super) fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of memory that are free or can be freed at once (Linux).
pub(super) fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bytes that are free on the disk of the nearest folder of `path` that is there (Unix).
pub(super) fn disk_free(path: &Path) -> Option<u64> {
    free_space(&existing(path))
}

/// Whether a file can be made there, or in the nearest folder above that is there; or why not.
pub(super) fn writable(path: &Path) -> Result<(), String> {
    let folder = existing(path);
    let probe = tempfile::Builder::new().prefix(".erase-concept-doctor").tempfile_in(&folder);
    probe.map(drop).map_err(|e| e.to_string())
}

/// `path`, or the nearest folder above it that is there.
fn existing(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|folder| folder.is_dir() && !folder.as_os_str().is_empty());
    there.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Models in the Hub's cache, and bytes of all files there (links are not followed: they lead to files that are counted).
pub(super) fn contents(cache: &Path) -> (usize, u64) {
    let names = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder)
            .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default()
    };
    let is_model = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
    let models = names(cache).iter().filter(|path| is_model(path)).count();
    let (mut folders, mut bytes) = (vec![cache.to_path_buf()], 0u64);
    while let Some(folder) = folders.pop() {
        for path in names(&folder) {
            match std::fs::symlink_metadata(&path) {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => bytes += kind.len(),
                _ => {}
            }
        }
    }
    (models, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_counted_once_though_links_lead_to_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, snapshot) =
            (folder.path().join("models--a--b/blobs"), folder.path().join("models--a--b/snapshots/1"));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(blobs.join("x"), [0; 1000]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(blobs.join("x"), snapshot.join("unet")).unwrap();
        std::fs::write(folder.path().join("version.txt"), "1").unwrap();
        assert_eq!(contents(folder.path()), (1, 1001));
        assert_eq!(contents(&folder.path().join("nowhere")), (0, 0));
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(writable(&folder.path().join("a/b/c")), Ok(()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(existing(Path::new("not-there")), Path::new("."));
        if cfg!(target_os = "linux") {
            assert!(disk_free(&folder.path().join("a/b")).is_some_and(|free| free > 0));
            assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
