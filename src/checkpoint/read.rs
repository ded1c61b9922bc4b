//! A component's weights as named `f32` tensors, checked before anything uses them.

use super::dtype::{Decoded, decode};
use super::files::ModelFiles;
use super::precision::{Loading, Precision};
use super::single_file::TensorFile;
use super::weights::WeightFiles;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;

/// The weights of one component.
pub struct Component {
    /// Every floating-point tensor.
    pub tensors: BTreeMap<String, Tensor>,
    /// The type each tensor has in the file; integer buffers (`position_ids`) are here and not in `tensors`.
    pub dtypes: BTreeMap<String, Dtype>,
    /// The files that were read.
    pub files: WeightFiles,
}

/// Reads the weights whose plain name is `rel` (see [`WeightFiles::find`]) and converts them to `f32`.
///
/// Files in a folder are memory-mapped while this runs: they must not be changed by anything else meanwhile.
///
/// # Errors
/// A missing or malformed file, a NaN or infinity in a weight: the message names the file, the tensor and the remedy.
pub fn load_tensors(files: &ModelFiles, rel: &str) -> Result<Component> {
    load_tensors_on(files, rel, &Device::Cpu)
}

/// As [`load_tensors`], onto this device.
///
/// # Errors
/// As [`load_tensors`].
pub fn load_tensors_on(files: &ModelFiles, rel: &str, device: &Device) -> Result<Component> {
    load_tensors_as(files, rel, &Loading { device, ..Loading::default() }, &|_| true, None)
}

/// As [`load_tensors`], onto the device that `loading` says; matrices and convolutions are kept in its precision unless they are
/// `exact`. Tensors whose bytes are those of `beside` are taken from there: the files of another model that was loaded in the same
/// way, and its tensors.
///
/// # Errors
/// As [`load_tensors`].
pub(super) fn load_tensors_as(
    files: &ModelFiles,
    rel: &str,
    loading: &Loading<'_>,
    exact: &(dyn Fn(&str) -> bool + Sync),
    beside: Option<(&ModelFiles, &BTreeMap<String, Tensor>)>,
) -> Result<Component> {
    let other = beside.map(|(files, _)| open(files, rel)).transpose()?.unwrap_or_default();
    let other: Vec<_> = other.iter().filter_map(|file| Some((file, file.tensors().ok()?))).collect();
    let other: BTreeMap<_, _> = other
        .into_iter()
        .flat_map(|(file, views)| views.into_iter().map(move |(name, view)| (name, (file, view))))
        .collect();
    let found = WeightFiles::find(files, rel)?;
    let mut component = Component { tensors: BTreeMap::new(), dtypes: BTreeMap::new(), files: found.clone() };
    let mut holder = BTreeMap::new();
    for shard in &found.shards {
        let file = TensorFile::open(files, shard)?;
        let views = file.tensors()?;
        let convert = |(name, view): &(String, TensorView<'_>)| -> Result<Converted> {
            check_interrupted()?;
            let shared = beside.and_then(|(_, tensors)| tensors.get(name)).filter(|_| same(&other, name, view));
            let converted = match shared {
                Some(tensor) => Converted::Tensor(tensor.clone()),
                None => match decode(view.dtype(), view.data()) {
                    Decoded::Floats(values) => {
                        let precision = if exact(name) { Precision::F32 } else { loading.precision };
                        Converted::Tensor(precision.keep(values, view.shape(), loading.device)?)
                    }
                    other => Converted::None(other),
                },
            };
            file.release(view.data());
            Ok(converted)
        };
        let converted: Vec<_> = views.par_iter().map(convert).collect::<Result<_>>()?;
        for ((name, view), decoded) in views.into_iter().zip(converted) {
            if let Some(other) = holder.insert(name.clone(), shard) {
                let what = format!("{name} is also in {other}; the shards do not belong together, download them again");
                return Err(Error::file(files.describe(shard), what));
            }
            match decoded {
                Converted::Tensor(tensor) => {
                    component.tensors.insert(name.clone(), tensor);
                }
                Converted::None(Decoded::Integers) => {}
                Converted::None(Decoded::NotFinite) => {
                    let what =
                        format!("{name} has a value that is NaN or infinite; download or export the weights again");
                    return Err(Error::file(files.describe(shard), what));
                }
                Converted::None(_) => {
                    let what = format!(
                        "{name} is stored as {:?}, which is not read; use float32, float16 or bfloat16 weights",
                        view.dtype()
                    );
                    return Err(Error::file(files.describe(shard), what));
                }
            }
            component.dtypes.insert(name, view.dtype());
        }
    }
    for (name, shard) in &found.weight_map {
        if holder.get(name) != Some(&shard) {
            let what = format!("says that {name} is in {shard}, but it is not; download the shards again");
            return Err(Error::file(files.describe(found.name()), what));
        }
    }
    Ok(component)
}

/// What became of a tensor's bytes.
enum Converted {
    Tensor(Tensor),
    None(Decoded),
}

/// Whether every tensor of the weights whose plain name is `rel` is byte for byte the same in two models.
pub(super) fn same_weights(a: &ModelFiles, b: &ModelFiles, rel: &str) -> Result<bool> {
    let (a, b) = (open(a, rel)?, open(b, rel)?);
    let views = |files: &[TensorFile]| -> Result<usize> {
        files.iter().try_fold(0, |sum, file| Ok(sum + file.tensors()?.len()))
    };
    if views(&a)? != views(&b)? {
        return Ok(false);
    }
    let mut others = BTreeMap::new();
    for file in &b {
        others.extend(file.tensors()?.into_iter().map(|(name, view)| (name, (file, view))));
    }
    for file in &a {
        for (name, view) in file.tensors()? {
            let same = same(&others, &name, &view);
            file.release(view.data());
            if !same {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The weight files whose plain name is `rel`.
pub(super) fn open(files: &ModelFiles, rel: &str) -> Result<Vec<TensorFile>> {
    WeightFiles::find(files, rel)?.shards.iter().map(|shard| TensorFile::open(files, shard)).collect()
}

/// Whether a tensor has the same type, shape and bytes there.
fn same(there: &BTreeMap<String, (&TensorFile, TensorView<'_>)>, name: &str, view: &TensorView<'_>) -> bool {
    let Some((file, here)) = there.get(name) else { return false };
    let same = here.dtype() == view.dtype() && here.shape() == view.shape() && here.data() == view.data();
    file.release(here.data());
    same
}
