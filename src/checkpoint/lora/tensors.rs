//! A UNet's tensors, one at a time: what is not looked at stays in the file.

use super::super::UNET_WEIGHTS;
use super::super::dtype::{Decoded, decode};
use super::super::files::ModelFiles;
use super::super::read::open;
use super::super::single_file::TensorFile;
use super::super::weights::WeightFiles;
use crate::{Error, Result};
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;

/// The mapped weights of a model's UNet.
pub(super) struct UnetFiles {
    files: Vec<TensorFile>,
    described: String,
}

/// Tensors by diffusers' name.
pub(super) type Views<'a> = BTreeMap<String, (TensorView<'a>, &'a TensorFile)>;

impl UnetFiles {
    /// Maps them.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub(super) fn open(model: &ModelFiles) -> Result<Self> {
        let described = model.describe(WeightFiles::find(model, UNET_WEIGHTS)?.name());
        Ok(Self { files: open(model, UNET_WEIGHTS)?, described })
    }

    /// Every tensor.
    ///
    /// # Errors
    /// If a file is damaged.
    pub(super) fn views(&self) -> Result<Views<'_>> {
        let mut all = BTreeMap::new();
        for file in &self.files {
            all.extend(file.tensors()?.into_iter().map(|(name, view)| (name, (view, file))));
        }
        Ok(all)
    }

    /// The file, or the index of its shards, as a message should call it.
    pub(super) fn described(&self) -> &str {
        &self.described
    }

    /// The numbers of a tensor.
    ///
    /// # Errors
    /// If one is NaN or infinite, or they are of a type that is not read.
    pub(super) fn floats(&self, name: &str, (view, file): &(TensorView<'_>, &TensorFile)) -> Result<Vec<f32>> {
        let floats = floats(view).map_err(|what| Error::file(&self.described, format!("{name} {what}")));
        file.release(view.data());
        floats
    }
}

/// The numbers of a tensor.
///
/// # Errors
/// In words without its name: if one is NaN or infinite, or they are of a type that is not read.
pub(super) fn floats(view: &TensorView<'_>) -> std::result::Result<Vec<f32>, String> {
    match decode(view.dtype(), view.data()) {
        Decoded::Floats(values) => Ok(values),
        Decoded::NotFinite => Err("has a value that is NaN or infinite; download or export the weights again".into()),
        Decoded::Integers | Decoded::Unsupported => {
            Err(format!("is stored as {:?}; float32, float16 or bfloat16 weights are read", view.dtype()))
        }
    }
}
