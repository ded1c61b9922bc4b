//! A single file again, with edited tensors in their places and everything else as it was.

use super::convert::to_original;
use super::{CONFIGS, Entry, How, SingleFile, Tensors};
use crate::checkpoint::files::Bytes;
use crate::checkpoint::save::{check_shape, check_written, rounded};
use crate::checkpoint::write::{Source, Streamed, write_streamed};
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Averaged weights that a training keeps beside the ones that are used: `model_ema.decay`, `model_ema.diffusion_model...`.
const AVERAGED: &str = "model_ema.";

/// See [`super::write_edited_single_file`].
pub(super) fn rewrite(
    file: &Arc<SingleFile>,
    changed: &BTreeMap<String, Tensor>,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let described = file.path().display().to_string();
    let wrong = |what: String| Error::file(file.path(), what);
    let mapped = Bytes::open(file.path())?;
    let source = file.tensors(&mapped).map_err(wrong)?;
    let unet: BTreeMap<&str, &Entry> =
        file.table().component("unet").iter().map(|entry| (entry.original.as_str(), entry)).collect();
    let (mut tensors, mut written) = (Vec::new(), BTreeSet::new());
    for name in source.names().into_iter().filter(|name| !name.starts_with(AVERAGED)) {
        let view = source.get(&name).map_err(|what| wrong(format!("{name}: {what}")))?;
        let (dtype, shape, data) = (view.dtype(), view.shape().to_vec(), view.data());
        let edited = unet.get(name.as_str()).and_then(|entry| Some((*entry, changed.get(&entry.diffusers)?)));
        let bytes = match edited {
            None => Source::Ready(Cow::Borrowed(data)),
            Some((entry, tensor)) => {
                let as_diffusers: &[usize] = match entry.how {
                    How::Squeezed => shape.get(..2).unwrap_or(&shape),
                    _ => &shape,
                };
                check_shape(&described, &entry.diffusers, as_diffusers, tensor.dims())?;
                written.insert(entry.diffusers.as_str());
                let how = entry.how;
                Source::Made(Box::new(move || {
                    let wrong = |what: String| Error::Numeric(format!("{} {what}", entry.diffusers));
                    let encoded = rounded(&entry.diffusers, tensor, dtype)?;
                    let original = to_original(&[(how, dtype, tensor.dims(), &encoded)]).map_err(wrong)?;
                    Ok(Cow::Owned(original.2.into_owned()))
                }))
            }
        };
        tensors.push(Streamed { name: Cow::Owned(name), dtype, shape, bytes, of: Some(&mapped) });
    }
    check_written(changed, |name| written.contains(name), &described)?;
    let mut all = own_metadata(file, &mapped)?;
    all.insert("format".into(), "pt".into());
    all.extend(metadata.clone());
    write_streamed(path, tensors, &all)?;
    Ok(file.left_out().iter().filter(|line| line.starts_with(AVERAGED)).cloned().collect())
}

/// The file's metadata. Where a file beside it decided how it is read, what it is read as is written down: the result may be
/// carried elsewhere.
fn own_metadata(file: &Arc<SingleFile>, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let mut all: BTreeMap<String, String> = match file.is_pickle() {
        true => BTreeMap::new(),
        false => {
            let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| Error::file(file.path(), e))?;
            header.metadata().clone().unwrap_or_default().into_iter().collect()
        }
    };
    if file.depends_on_others() && !all.contains_key(CONFIGS) {
        let mut texts = Map::new();
        for rel in super::NEEDED.iter().copied().chain(["text_encoder_2/config.json"]) {
            let Some(text) = file.text(rel) else { continue };
            let value: Value = serde_json::from_slice(text).map_err(|e| Error::file(file.path(), e))?;
            texts.insert(rel.to_string(), value);
        }
        texts.insert(super::SPELLING.to_string(), serde_json::to_value(file.spelling).map_err(Error::usage)?);
        all.insert(CONFIGS.into(), Value::Object(texts).to_string());
    }
    Ok(all)
}

impl Tensors<'_> {
    /// Every tensor's name, in order.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Safetensors(tensors) => tensors.names().into_iter().map(String::from).collect(),
            Self::Pickled(places, _) => places.keys().cloned().collect(),
        };
        names.sort();
        names
    }
}
