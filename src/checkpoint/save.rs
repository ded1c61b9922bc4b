//! The edited model as a folder: what was not edited byte for byte, the UNet in the types it came in.

use super::UNET_WEIGHTS;
use super::dtype::encode;
use super::files::ModelFiles;
use super::single_file::TensorFile;
use super::weights::WeightFiles;
use super::write::{TensorBytes, write_file, write_tensors};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::Tensor;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Writes a model whose UNet has the `changed` tensors into the existing folder `into`; returns what of the source folder
/// was left out (see [`super::Inventory::left_out`]).
///
/// The UNet keeps its file names. A file with a changed tensor is rewritten: that tensor in the type it had (rounded to
/// nearest), the others' bytes as they were, the file's metadata with `format: pt` and then `metadata` added. A shard
/// without a changed tensor, its index, and all other files are copied; only a `model_index.json` that names components which
/// are not there gets null in their places. A single file becomes a folder: its tensors keep their type and bytes and get
/// diffusers' names.
///
/// # Errors
/// If a changed tensor is not in the UNet's files, has another shape, or a value that its type cannot hold.
pub fn save_edited(
    files: &ModelFiles,
    changed: &BTreeMap<String, Tensor>,
    into: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let inventory = files.inventory()?;
    let unet = WeightFiles::find(files, UNET_WEIGHTS)?;
    let mut written = BTreeSet::new();
    for rel in &inventory.model {
        check_interrupted()?;
        let target = into.join(rel);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let part = matches!(files, ModelFiles::Single(file) if file.weights(rel).is_some());
        let done = match unet.shards.contains(rel) {
            true => rewrite(files, rel, changed, &target, metadata, &mut written)?,
            false => part && rewrite(files, rel, &BTreeMap::new(), &target, &BTreeMap::new(), &mut written)?,
        };
        if rel == "model_index.json" && !inventory.absent.is_empty() {
            write_index(files, &inventory.absent, &target)?;
        } else if !done {
            copy(files, rel, &target)?;
        }
    }
    match changed.keys().find(|name| !written.contains(*name)) {
        Some(name) => Err(Error::Weights(format!("{}: has no tensor named {name}", files.describe(unet.name())))),
        None => Ok(inventory.left_out),
    }
}

/// Writes `model_index.json` with null, as diffusers has it, in place of each component that is not there.
fn write_index(files: &ModelFiles, absent: &[String], target: &Path) -> Result<()> {
    let rel = "model_index.json";
    let wrong = |e| Error::file(files.describe(rel), format!("not a JSON object: {e}"));
    let mut index: Map<String, Value> = serde_json::from_slice(&files.read(rel)?).map_err(wrong)?;
    for (_, class) in index.iter_mut().filter(|(name, _)| absent.contains(name)) {
        *class = json!([null, null]);
    }
    let text = serde_json::to_string_pretty(&index).map_err(wrong)?;
    write_file(target, format!("{text}\n").as_bytes())
}

/// Bytes copied between two looks at whether the user interrupts.
const COPIED: u64 = 64 << 20;

/// Copies a file of a model.
pub(super) fn copy(files: &ModelFiles, rel: &str, target: &Path) -> Result<()> {
    let ModelFiles::Folder(root) = files else { return write_file(target, &files.read(rel)?) };
    let source = root.join(rel);
    let mut from = fs::File::open(&source).map_err(Error::io(&source))?;
    let size = from.metadata().map_err(Error::io(&source))?.len();
    let mut to = fs::File::create(target).map_err(Error::write(target, size as usize))?;
    loop {
        check_interrupted()?;
        let copied = std::io::copy(&mut (&mut from).take(COPIED), &mut to).map_err(|e| match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::write(target, size as usize)(e),
            _ => Error::file(&source, format!("cannot copy to {}: {e}", target.display())),
        })?;
        if copied < COPIED {
            return Ok(());
        }
    }
}

/// Rewrites one file of weights if a changed tensor is in it, or it is a part of a single file; says whether.
fn rewrite(
    files: &ModelFiles,
    rel: &str,
    changed: &BTreeMap<String, Tensor>,
    target: &Path,
    metadata: &BTreeMap<String, String>,
    written: &mut BTreeSet<String>,
) -> Result<bool> {
    let source = TensorFile::open(files, rel)?;
    let malformed = |what: String| Error::file(files.describe(rel), what);
    let views = source.tensors()?;
    if !source.is_part() && !views.iter().any(|(name, _)| changed.contains_key(name)) {
        return Ok(false);
    }
    let mut tensors = Vec::with_capacity(views.len());
    for (name, view) in &views {
        let bytes = match changed.get(name) {
            None => Cow::Borrowed(view.data()),
            Some(tensor) if tensor.dims() != view.shape() => {
                let (from, to) = (view.shape(), tensor.dims());
                return Err(malformed(format!("{name} is {from:?}, but the edited tensor is {to:?}")));
            }
            Some(tensor) => {
                written.insert(name.clone());
                let bytes = encode(tensor, view.dtype()).map_err(|what| Error::Numeric(format!("{name} {what}")))?;
                Cow::Owned(bytes)
            }
        };
        tensors.push(TensorBytes { name, dtype: view.dtype(), shape: view.shape(), bytes });
    }
    let mut all = source.metadata()?;
    all.insert("format".into(), "pt".into());
    all.extend(metadata.clone());
    write_tensors(target, tensors, &all)?;
    Ok(true)
}
