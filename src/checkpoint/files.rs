//! The files of one model, wherever they are: a diffusers folder, a single file, or bytes embedded in the program.

use super::UNET_WEIGHTS;
use super::malformed::{is_lfs_pointer, not_text};
use super::single_file::SingleFile;
use super::weights::WeightFiles;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// How deep a component's folder may be nested; a loop of symlinks ends here.
const MAX_DEPTH: usize = 8;

/// Where a model's files are. Paths into it are relative, with `/`: `unet/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelFiles {
    /// A folder in diffusers' layout, with a `model_index.json`.
    Folder(PathBuf),
    /// One file with the original names, read as if it were a folder.
    Single(Arc<SingleFile>),
    /// Files that are part of this program.
    Embedded {
        /// The model's name, for messages.
        name: &'static str,
        /// Relative path and content, in order of path.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// What of a folder is the model, and what else lies there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// The files of the model, in order: they make its hash, and a saved model has each of them.
    pub model: Vec<String>,
    /// What a saved model leaves out: other formats and variants of the UNet (they still hold the concept), single-file
    /// checkpoints, folders that `model_index.json` does not name (these end with `/`); of a single file, tensors.
    pub left_out: Vec<String>,
    /// Components that `model_index.json` names but that are not there, such as a safety checker that was not fetched: a
    /// saved `model_index.json` has null in their places.
    pub absent: Vec<String>,
}

impl ModelFiles {
    /// The content of a file.
    ///
    /// # Errors
    /// If there is none, or it cannot be read, or a Git-LFS pointer stands in its place.
    pub fn read(&self, rel: &str) -> Result<Cow<'static, [u8]>> {
        self.try_read(rel)?.ok_or_else(|| self.missing(rel))
    }

    /// The content of a file, or `None` if there is none.
    ///
    /// # Errors
    /// If it is there but cannot be read, or a Git-LFS pointer stands in its place.
    pub fn try_read(&self, rel: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Folder(root) => {
                let path = root.join(inside(rel)?);
                let bytes = match fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(e) if is_absent(&e) => return Ok(None),
                    Err(e) => return Err(Error::Io { path, source: e }),
                };
                let wrong = match is_text(rel) {
                    true => not_text(&bytes),
                    false => is_lfs_pointer(&bytes).then_some(super::malformed::LFS_POINTER),
                };
                if let Some(what) = wrong.filter(|_| !is_top_level(rel) || rel == "model_index.json") {
                    return Err(Error::file(path, what));
                }
                Ok(Some(Cow::Owned(bytes)))
            }
            Self::Single(file) => Ok(file.text(rel).cloned()),
            Self::Embedded { .. } => Ok(self.embedded(rel).map(Cow::Borrowed)),
        }
    }

    /// Whether this file is there.
    pub fn contains(&self, rel: &str) -> bool {
        match self {
            Self::Folder(root) => inside(rel).is_ok_and(|rel| root.join(rel).is_file()),
            Self::Single(file) => file.text(rel).is_some() || file.weights(rel).is_some(),
            Self::Embedded { .. } => self.embedded(rel).is_some(),
        }
    }

    /// The files of the model, in order of their relative paths (see [`Inventory::model`]).
    pub fn list(&self) -> Result<Vec<String>> {
        Ok(self.inventory()?.model)
    }

    /// The files of the model and what else lies beside them.
    ///
    /// Of a folder these are `model_index.json`, README, LICENSE and NOTICE files, and the folders of the components that
    /// `model_index.json` names; of the UNet's folder the weights that [`WeightFiles::find`] chooses and no others. Hidden
    /// files are never listed. Of an embedded model it is everything.
    pub fn inventory(&self) -> Result<Inventory> {
        let root = match self {
            Self::Folder(root) => root,
            Self::Single(file) => {
                return Ok(Inventory {
                    model: file.list(),
                    left_out: file.left_out().to_vec(),
                    ..Inventory::default()
                });
            }
            Self::Embedded { files, .. } => {
                let model = files.iter().map(|(rel, _)| rel.to_string()).collect();
                return Ok(Inventory { model, ..Inventory::default() });
            }
        };
        let components = self.components()?;
        let weights = WeightFiles::find(self, UNET_WEIGHTS)?;
        let absent = components.iter().filter(|name| !root.join(name).is_dir()).cloned().collect();
        let mut inventory = Inventory { absent, ..Inventory::default() };
        for (name, is_folder) in entries(root)? {
            match is_folder {
                true if components.contains(&name) => self.walk(&name, &weights, &mut inventory, 0)?,
                true => inventory.left_out.push(format!("{name}/")),
                false if is_top_level(&name) => inventory.model.push(name),
                false => inventory.left_out.push(name),
            }
        }
        inventory.model.sort();
        inventory.left_out.sort();
        Ok(inventory)
    }

    /// The components that `model_index.json` names and does not set to null.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, or names a component that is not a plain folder name.
    pub fn components(&self) -> Result<BTreeSet<String>> {
        let rel = "model_index.json";
        let index: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&self.read(rel)?)
            .map_err(|e| Error::file(self.describe(rel), format!("not a JSON object: {e}")))?;
        let mut names = BTreeSet::new();
        for (name, value) in &index {
            let Some(class) = value.as_array().filter(|_| !name.starts_with('_')) else { continue };
            if class.iter().all(serde_json::Value::is_null) {
                continue;
            }
            if name.starts_with('.') || name.contains(['/', '\\', ':']) {
                return Err(Error::file(self.describe(rel), format!("{name:?} is not a component's name")));
            }
            names.insert(name.clone());
        }
        Ok(names)
    }

    /// The file as a message should call it: its path, or the embedded model's name and the path within.
    pub fn describe(&self, rel: &str) -> String {
        match self {
            Self::Folder(root) => root.join(rel).display().to_string(),
            Self::Single(file) if rel.is_empty() || file.weights(rel).is_some() => file.path().display().to_string(),
            Self::Single(file) => format!("{} (read as {rel})", file.path().display()),
            Self::Embedded { name, .. } => format!("{name} (embedded)/{rel}"),
        }
    }

    /// Whether this is a single file.
    pub fn is_single(&self) -> bool {
        matches!(self, Self::Single(_))
    }

    /// What the user should be told about how the model was read.
    pub fn notes(&self) -> &[String] {
        match self {
            Self::Single(file) => file.notes(),
            Self::Folder(_) | Self::Embedded { .. } => &[],
        }
    }

    /// The content of a file without reading all of it now.
    pub(super) fn map(&self, rel: &str) -> Result<Bytes> {
        match self {
            Self::Folder(root) => {
                let path = root.join(inside(rel)?);
                if fs::metadata(&path).is_err_and(|e| is_absent(&e)) {
                    Err(self.missing(rel))
                } else {
                    Bytes::open(&path)
                }
            }
            Self::Single(file) if file.weights(rel).is_some() => Bytes::open(file.path()),
            Self::Single(_) => Err(self.missing(rel)),
            Self::Embedded { .. } => self.embedded(rel).map(Bytes::Static).ok_or_else(|| self.missing(rel)),
        }
    }

    fn embedded(&self, rel: &str) -> Option<&'static [u8]> {
        let Self::Embedded { files, .. } = self else { return None };
        files.iter().find(|(name, _)| *name == rel).map(|(_, bytes)| *bytes)
    }

    fn missing(&self, rel: &str) -> Error {
        Error::file(self.describe(rel), "no such file; a diffusers model has it, so the folder is incomplete")
    }

    fn walk(&self, rel: &str, unet: &WeightFiles, found: &mut Inventory, depth: usize) -> Result<()> {
        let Self::Folder(root) = self else { return Ok(()) };
        if depth > MAX_DEPTH {
            return Err(Error::file(
                self.describe(rel),
                format!("nested more than {MAX_DEPTH} deep; is a link circular?"),
            ));
        }
        for (name, is_folder) in entries(&root.join(rel))? {
            let rel = format!("{rel}/{name}");
            if is_folder {
                self.walk(&rel, unet, found, depth + 1)?;
            } else if !rel.starts_with("unet/") || unet.contains(&rel) || is_text(&name) {
                found.model.push(rel);
            } else {
                found.left_out.push(rel);
            }
        }
        Ok(())
    }
}

/// The content of a file: mapped, or part of the program.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Ok(Self::Static(&[])); // an empty file cannot be mapped
        }
        // SAFETY: the map is only read, and lives for one load or save; that nothing else shortens the file meanwhile is asked
        // of the user in the docs of `load_tensors`.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Self::Mapped(map))
    }

    /// Lets the system take back the memory that a part of a mapped file lies in; it is read again if it is asked for.
    pub(super) fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let (start, end) = (map.as_ptr() as usize, map.as_ptr() as usize + map.len());
            let from = part.as_ptr() as usize;
            if (start..end).contains(&from) && from + part.len() <= end && !part.is_empty() {
                // SAFETY: the map is a file's and only read, so that what is dropped comes back as it was. A failure changes
                // nothing but the memory that is used.
                let _ =
                    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from - start, part.len()) };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

/// `rel` as a path, if it stays inside the folder it is joined to: names in a model's JSON files come from strangers.
pub(super) fn inside(rel: &str) -> Result<&Path> {
    let path = Path::new(rel);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if plain && !rel.is_empty() { Ok(path) } else { Err(Error::file(path, "leads outside the model's folder")) }
}

fn is_absent(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Names in a folder, and whether each is a folder (links are followed: Hub caches consist of them); no hidden ones.
fn entries(folder: &Path) -> Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|name| Error::file(folder.join(name), "a file name that is not UTF-8; rename it"))?;
        if name.starts_with('.') || name == "__pycache__" {
            continue;
        }
        let kind = fs::metadata(entry.path()).map_err(Error::io(entry.path()))?;
        found.push((name, kind.is_dir()));
    }
    Ok(found)
}

/// Whether a file beside the components belongs to the model.
pub(crate) fn is_top_level(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    name == "model_index.json" || ["README", "LICENSE", "LICENCE", "NOTICE"].iter().any(|p| upper.starts_with(p))
}

/// Whether a file beside the UNet's weights cannot hold weights. The indices of shards that are not used are left out too.
fn is_text(name: &str) -> bool {
    !name.contains(".index.") && [".json", ".md", ".txt"].iter().any(|ending| name.ends_with(ending))
}
