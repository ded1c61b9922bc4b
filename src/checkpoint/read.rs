//! A component's weights as named `f32` tensors, checked before anything uses them.

use super::dtype::{Decoded, decode};
use super::files::ModelFiles;
use super::malformed::parse;
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
    /// Every floating-point tensor, in `f32` on the CPU.
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
    let found = WeightFiles::find(files, rel)?;
    let mut component = Component { tensors: BTreeMap::new(), dtypes: BTreeMap::new(), files: found.clone() };
    let mut holder = BTreeMap::new();
    for shard in &found.shards {
        let bytes = files.map(shard)?;
        let parsed = parse(&bytes).map_err(|what| Error::file(files.describe(shard), what))?;
        let mut views: Vec<_> = parsed.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0)); // so that which error comes first does not depend on a hash map
        let convert = |(_, view): &(String, TensorView<'_>)| -> Result<Decoded> {
            check_interrupted()?;
            Ok(decode(view.dtype(), view.data()))
        };
        let converted: Vec<_> = views.par_iter().map(convert).collect::<Result<_>>()?;
        for ((name, view), decoded) in views.into_iter().zip(converted) {
            if let Some(other) = holder.insert(name.clone(), shard) {
                let what = format!("{name} is also in {other}; the shards do not belong together, download them again");
                return Err(Error::file(files.describe(shard), what));
            }
            match decoded {
                Decoded::Floats(values) => {
                    let tensor = Tensor::from_vec(values, view.shape(), &Device::Cpu)?;
                    component.tensors.insert(name.clone(), tensor);
                }
                Decoded::Integers => {}
                Decoded::NotFinite => {
                    let what =
                        format!("{name} has a value that is NaN or infinite; download or export the weights again");
                    return Err(Error::file(files.describe(shard), what));
                }
                Decoded::Unsupported => {
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
