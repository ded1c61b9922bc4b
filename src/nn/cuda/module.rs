//! The kernels of `kernels/*.cu`, loaded for a device when first asked for.

use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{Result, bail};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The kernels that `build.rs` compiled, by how their names begin (the first that fits). The driver takes seconds for some, the first
/// time on a machine.
const MODULES: [(&str, &str, &str); 4] = [
    ("flash_f32_", "erase-concept-flash-f32", include_str!(concat!(env!("OUT_DIR"), "/flash_f32.ptx"))),
    ("flash_tf32_", "erase-concept-flash-tf32", include_str!(concat!(env!("OUT_DIR"), "/flash_tf32.ptx"))),
    ("flash_", "erase-concept-flash-bf16", include_str!(concat!(env!("OUT_DIR"), "/flash_bf16.ptx"))),
    ("", "erase-concept", include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"))),
];

macro_rules! names {
    (of either type: { $($either:ident / $half:ident = $name:literal),+ $(,)? } $($single:ident = $function:literal),+ $(,)?) => {
        /// A kernel.
        #[derive(Clone, Copy)]
        pub enum Name {
            $($either, $half,)+
            $($single),+
        }
        /// In the order of [`Name`].
        const FUNCTIONS: &[&str] = &[$(concat!($name, "_f32"), concat!($name, "_bf16"),)+ $($function),+];

        impl Name {
            /// The same for `bf16`, if `half`; where there is but one, that.
            pub fn of(self, half: bool) -> Self {
                match (half, self) {
                    $((true, Self::$either) => Self::$half,)+
                    (_, name) => name,
                }
            }
        }
    };
}

names! {
    of either type: {
        Activation / ActivationBf16 = "activation",
        ActivationGrad / ActivationGradBf16 = "activation_grad",
        Geglu / GegluBf16 = "geglu",
        GegluGrad / GegluGradBf16 = "geglu_grad",
        Add / AddBf16 = "add",
        AddPerMap / AddPerMapBf16 = "add_per_map",
        BiasMaps / BiasMapsBf16 = "bias_maps",
        FillRows / FillRowsBf16 = "fill_rows",
        MoveParts / MovePartsBf16 = "move_parts",
        Swap / SwapBf16 = "swap",
        Upsample / UpsampleBf16 = "upsample",
        UpsampleGrad / UpsampleGradBf16 = "upsample_grad",
        ColumnSums / ColumnSumsBf16 = "column_sums",
        MapSums / MapSumsBf16 = "map_sums",
        SumOfParts / SumOfPartsBf16 = "sum_of_parts",
        Columns / ColumnsBf16 = "columns",
        Columns3x3 / Columns3x3Bf16 = "columns_3x3",
        ColumnsGrad / ColumnsGradBf16 = "columns_grad",
        Flip / FlipBf16 = "flip",
        GroupSums / GroupSumsBf16 = "group_sums",
        GroupNorm / GroupNormBf16 = "group_norm",
        GroupGradSums / GroupGradSumsBf16 = "group_grad_sums",
        GroupNormGrad / GroupNormGradBf16 = "group_norm_grad",
        GroupWeightGrad / GroupWeightGradBf16 = "group_weight_grad",
        LayerNorm / LayerNormBf16 = "layer_norm",
        LayerNormGrad / LayerNormGradBf16 = "layer_norm_grad",
        LayerWeightGrad / LayerWeightGradBf16 = "layer_weight_grad",
        HeadsApart / HeadsApartBf16 = "heads_apart",
        Softmax / SoftmaxBf16 = "softmax",
        SoftmaxGrad / SoftmaxGradBf16 = "softmax_grad",
        AttentionDelta / AttentionDeltaBf16 = "attention_delta",
    }
    ToBf16 = "to_bf16",
    ToF32 = "to_f32",
    F16ToF32 = "f16_to_f32",
    HeadsTogether = "heads_together",
    Flash16 = "flash_16",
    Flash32 = "flash_32",
    Flash40 = "flash_40",
    Flash64 = "flash_64",
    Flash80 = "flash_80",
    Flash128 = "flash_128",
    Flash160 = "flash_160",
    FlashKeys16 = "flash_keys_16",
    FlashKeys32 = "flash_keys_32",
    FlashKeys40 = "flash_keys_40",
    FlashKeys64 = "flash_keys_64",
    FlashKeys80 = "flash_keys_80",
    FlashKeys128 = "flash_keys_128",
    FlashKeys160 = "flash_keys_160",
    FlashQueries16 = "flash_queries_16",
    FlashQueries32 = "flash_queries_32",
    FlashQueries40 = "flash_queries_40",
    FlashQueries64 = "flash_queries_64",
    FlashQueries80 = "flash_queries_80",
    FlashQueries128 = "flash_queries_128",
    FlashQueries160 = "flash_queries_160",
    FlashF3240 = "flash_f32_40",
    FlashF3264 = "flash_f32_64",
    FlashF3280 = "flash_f32_80",
    FlashF32Keys40 = "flash_f32_keys_40",
    FlashF32Keys64 = "flash_f32_keys_64",
    FlashF32Keys80 = "flash_f32_keys_80",
    FlashF32Queries40 = "flash_f32_queries_40",
    FlashF32Queries64 = "flash_f32_queries_64",
    FlashF32Queries80 = "flash_f32_queries_80",
    FlashTf3240 = "flash_tf32_40",
    FlashTf3264 = "flash_tf32_64",
    FlashTf3280 = "flash_tf32_80",
    FlashTf32Keys40 = "flash_tf32_keys_40",
    FlashTf32Keys64 = "flash_tf32_keys_64",
    FlashTf32Keys80 = "flash_tf32_keys_80",
    FlashTf32Queries40 = "flash_tf32_queries_40",
    FlashTf32Queries64 = "flash_tf32_queries_64",
    FlashTf32Queries80 = "flash_tf32_queries_80",
}

/// A device's kernels.
pub struct Kernels {
    device: CudaDevice,
    loaded: Vec<OnceLock<CudaFunction>>,
}

static LOADED: Mutex<Vec<(DeviceId, Arc<Kernels>)>> = Mutex::new(Vec::new());

impl Kernels {
    /// Those of `device`.
    pub fn of(device: &CudaDevice) -> Arc<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kernels)) = loaded.iter().find(|(id, _)| *id == device.id()) {
            return kernels.clone();
        }
        let none = FUNCTIONS.iter().map(|_| OnceLock::new()).collect();
        let kernels = Arc::new(Self { device: device.clone(), loaded: none });
        loaded.push((device.id(), kernels.clone()));
        kernels
    }

    /// One of them, loaded if it is not yet.
    ///
    /// # Errors
    /// If the driver refuses it: it is older than the toolkit, or the GPU than what the program was built for.
    pub fn get(&self, name: Name) -> Result<&CudaFunction> {
        let (place, name) = (&self.loaded[name as usize], FUNCTIONS[name as usize]);
        if let Some(function) = place.get() {
            return Ok(function);
        }
        let Some((_, module, ptx)) = MODULES.iter().find(|(start, ..)| name.starts_with(start)) else {
            bail!("{name} is in no module")
        };
        let function = self.device.get_or_load_custom_func(name, module, ptx)?.into_cuda_function();
        Ok(place.get_or_init(|| function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_kernel_and_every_kernel_has_a_name() {
        let mut entries: Vec<&str> = MODULES
            .iter()
            .flat_map(|(.., ptx)| ptx.lines())
            .filter_map(|line| line.split(".entry ").nth(1))
            .map(|rest| rest.trim_end_matches('(').trim())
            .collect();
        let mut names = FUNCTIONS.to_vec();
        entries.sort_unstable();
        names.sort_unstable();
        assert_eq!(entries, names);
    }
}
