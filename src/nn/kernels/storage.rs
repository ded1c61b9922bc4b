//! From candle's tensors to slices.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Whether the fused `f32` CPU kernels apply to all of these.
pub fn fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32 && x.device().is_cpu())
}

/// The elements of a contiguous operand.
pub fn cpu<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused op got an operand that is not contiguous"),
    }
}

/// The elements of a contiguous tensor, from `Tensor::storage_and_layout`.
pub fn slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => cpu(storage, layout),
        _ => bail!("a fused op got an operand that is not in main memory"),
    }
}
