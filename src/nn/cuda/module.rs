//! The kernels of `kernels/*.cu`, loaded once for each device.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use std::sync::{Arc, Mutex, PoisonError};

/// Of all kernels, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

macro_rules! names {
    ($($name:ident = $function:literal),+ $(,)?) => {
        /// A kernel.
        #[derive(Clone, Copy)]
        pub enum Name {
            $($name),+
        }
        /// In the order of [`Name`].
        const FUNCTIONS: &[&str] = &[$($function),+];
    };
}

names! {
    Activation = "activation",
    ActivationGrad = "activation_grad",
    Geglu = "geglu",
    GegluGrad = "geglu_grad",
    Add = "add",
    AddPerMap = "add_per_map",
    FillRows = "fill_rows",
    FillMaps = "fill_maps",
    ToBf16 = "to_bf16",
    Concat = "concat",
    Swap = "swap",
    Upsample = "upsample",
    UpsampleGrad = "upsample_grad",
    ColumnSums = "column_sums",
    MapSums = "map_sums",
    ColumnsF32 = "columns_f32",
    ColumnsBf16 = "columns_bf16",
    ColumnsGrad = "columns_grad",
    GroupSums = "group_sums",
    GroupNorm = "group_norm",
    GroupGradSums = "group_grad_sums",
    GroupNormGrad = "group_norm_grad",
    GroupWeightGrad = "group_weight_grad",
    LayerNorm = "layer_norm",
    LayerNormGrad = "layer_norm_grad",
    LayerWeightGrad = "layer_weight_grad",
    HeadsApartF32 = "heads_apart_f32",
    HeadsApartBf16 = "heads_apart_bf16",
    HeadsTogether = "heads_together",
    SoftmaxF32 = "softmax_f32",
    SoftmaxBf16 = "softmax_bf16",
    AttentionDelta = "attention_delta",
    SoftmaxGradF32 = "softmax_grad_f32",
    SoftmaxGradBf16 = "softmax_grad_bf16",
    Flash16 = "flash_16",
    Flash32 = "flash_32",
    Flash48 = "flash_48",
    Flash64 = "flash_64",
    Flash80 = "flash_80",
    Flash128 = "flash_128",
    Flash160 = "flash_160",
    FlashKeys16 = "flash_keys_16",
    FlashKeys32 = "flash_keys_32",
    FlashKeys48 = "flash_keys_48",
    FlashKeys64 = "flash_keys_64",
    FlashKeys80 = "flash_keys_80",
    FlashKeys128 = "flash_keys_128",
    FlashKeys160 = "flash_keys_160",
    FlashQueries16 = "flash_queries_16",
    FlashQueries32 = "flash_queries_32",
    FlashQueries48 = "flash_queries_48",
    FlashQueries64 = "flash_queries_64",
    FlashQueries80 = "flash_queries_80",
    FlashQueries128 = "flash_queries_128",
    FlashQueries160 = "flash_queries_160",
    FlipF32 = "flip_f32",
    FlipBf16 = "flip_bf16",
}

/// A device's kernels.
pub struct Kernels(Vec<CudaFunction>);

static LOADED: Mutex<Vec<(DeviceId, Arc<Kernels>)>> = Mutex::new(Vec::new());

impl Kernels {
    /// Those of `device`, loaded when first asked for.
    ///
    /// # Errors
    /// If the driver refuses them: it is older than the toolkit, or the GPU than what the program was built for.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kernels)) = loaded.iter().find(|(id, _)| *id == device.id()) {
            return Ok(kernels.clone());
        }
        let load = |name: &&str| {
            let function = device.get_or_load_custom_func(name, "erase-concept", PTX)?;
            Ok(function.into_cuda_function())
        };
        let kernels = Arc::new(Self(FUNCTIONS.iter().map(load).collect::<Result<_>>()?));
        loaded.push((device.id(), kernels.clone()));
        Ok(kernels)
    }

    /// One of them.
    pub fn get(&self, name: Name) -> &CudaFunction {
        &self.0[name as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_kernel_and_every_kernel_has_a_name() {
        let mut entries: Vec<&str> = PTX
            .lines()
            .filter_map(|line| line.split(".entry ").nth(1))
            .map(|rest| rest.trim_end_matches('(').trim())
            .collect();
        let mut names = FUNCTIONS.to_vec();
        entries.sort_unstable();
        names.sort_unstable();
        assert_eq!(entries, names);
    }
}
