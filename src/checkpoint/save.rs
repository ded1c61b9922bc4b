//! The edited model as a folder: what was not edited byte for byte, the UNet in the types it came in.

use super::UNET_WEIGHTS;
use super::copy::{Copying, copy};
use super::disk;
use super::dtype::encode;
use super::files::ModelFiles;
use super::single_file::{CONFIGS, TensorFile};
use super::weights::WeightFiles;
use super::write::{Source, Streamed, write_file, write_streamed};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
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
    save_edited_as(files, changed, into, metadata, Copying::default())
}

/// As [`save_edited`]; `copying` says how files that were not edited get there.
///
/// # Errors
/// As [`save_edited`].
pub fn save_edited_as(
    files: &ModelFiles,
    changed: &BTreeMap<String, Tensor>,
    into: &Path,
    metadata: &BTreeMap<String, String>,
    copying: Copying,
) -> Result<Vec<String>> {
    let inventory = files.inventory()?;
    let unet = WeightFiles::find(files, UNET_WEIGHTS)?;
    let mut written = BTreeSet::new();
    for rel in &inventory.model {
        check_interrupted()?;
        let target = into.join(rel);
        if let Some(folder) = target.parent() {
            disk::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let part = matches!(files, ModelFiles::Single(file) if file.weights(rel).is_some());
        let done = match unet.shards.contains(rel) {
            true => rewrite(files, rel, changed, &target, metadata, &mut written)?,
            false => part && rewrite(files, rel, &BTreeMap::new(), &target, &BTreeMap::new(), &mut written)?,
        };
        if rel == "model_index.json" && !inventory.absent.is_empty() {
            write_index(files, &inventory.absent, &target)?;
        } else if !done {
            copy(files, rel, &target, copying)?;
        }
    }
    check_written(changed, |name| written.contains(name), &files.describe(unet.name()))?;
    Ok(inventory.left_out)
}

/// A changed tensor has the shape of what it stands for.
pub(super) fn check_shape(file: &str, name: &str, from: &[usize], to: &[usize]) -> Result<()> {
    match from == to {
        true => Ok(()),
        false => Err(Error::file(file, format!("{name} is {from:?}, but the edited tensor is {to:?}"))),
    }
}

/// Every changed tensor was written.
pub(super) fn check_written(
    changed: &BTreeMap<String, Tensor>,
    written: impl Fn(&str) -> bool,
    file: &str,
) -> Result<()> {
    match changed.keys().find(|name| !written(name)) {
        Some(name) => Err(Error::Weights(format!("{file}: has no tensor named {name}"))),
        None => Ok(()),
    }
}

/// A changed tensor's bytes in the type that it had.
pub(super) fn rounded(name: &str, tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    encode(tensor, dtype).map_err(|what| Error::Numeric(format!("{name} {what}")))
}

/// What the UNet's file (or the single file) says of how it was erased: its metadata `erase.*`.
///
/// # Errors
/// If it cannot be read.
pub fn erase_metadata(files: &ModelFiles) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for rel in &WeightFiles::find(files, UNET_WEIGHTS)?.shards {
        all.extend(TensorFile::open(files, rel)?.whole_metadata()?);
    }
    all.retain(|key, _| key.starts_with("erase.") && key != CONFIGS);
    Ok(all)
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
    let views = source.tensors()?;
    if !source.is_part() && !views.iter().any(|(name, _)| changed.contains_key(name)) {
        return Ok(false);
    }
    let mut tensors = Vec::with_capacity(views.len());
    for (name, view) in &views {
        let bytes = match changed.get(name) {
            None => Source::Ready(Cow::Borrowed(view.data())),
            Some(tensor) => {
                check_shape(&files.describe(rel), name, view.shape(), tensor.dims())?;
                written.insert(name.clone());
                let dtype = view.dtype();
                Source::Made(Box::new(move || Ok(Cow::Owned(rounded(name, tensor, dtype)?))))
            }
        };
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        tensors.push(Streamed { name: Cow::Borrowed(name), dtype, shape, bytes, of: Some(source.bytes()) });
    }
    let mut all = source.metadata()?;
    all.insert("format".into(), "pt".into());
    all.extend(metadata.clone());
    write_streamed(target, tensors, &all)?;
    Ok(true)
}
