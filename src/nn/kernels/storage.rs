//! From candle's tensors to slices.

use super::values::Values;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Whether there are kernels for this tensor's device.
fn at_home(x: &Tensor) -> bool {
    x.device().is_cpu() || cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Whether the fused kernels apply to all of these: of `f32`, or on a GPU of `bf16`.
pub fn fused(tensors: &[&Tensor]) -> bool {
    let halved = |x: &Tensor| cfg!(feature = "cuda") && x.dtype() == DType::BF16 && x.device().is_cuda();
    tensors.iter().all(|x| x.dtype() == DType::F32 && at_home(x) || halved(x))
}

/// As [`fused`], for operands that are multiplied by a `weight`, which may be `bf16` or `f16` as long as it is frozen.
pub fn fused_with(weight: &Tensor, others: &[&Tensor]) -> bool {
    let halved = matches!(weight.dtype(), DType::BF16 | DType::F16) && at_home(weight) && !weight.track_op();
    fused(others) && (halved || weight.dtype() == DType::F32 && at_home(weight))
}

/// The elements of a contiguous weight.
pub fn cpu_weight<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Values<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::BF16(values), Some((start, end))) => Ok(Values::Bf16(&values[start..end])),
        (CpuStorage::F16(values), Some((start, end))) => Ok(Values::F16(&values[start..end])),
        _ => Ok(Values::F32(cpu(storage, layout)?)),
    }
}

/// The elements of a contiguous weight, from `Tensor::storage_and_layout`.
pub fn weight<'a>(storage: &'a Storage, layout: &Layout) -> Result<Values<'a>> {
    match storage {
        Storage::Cpu(storage) => cpu_weight(storage, layout),
        _ => bail!("a fused op got an operand that is not in main memory"),
    }
}

/// The elements of a contiguous operand.
pub fn cpu<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused op got an operand that is not contiguous"),
    }
}

/// The elements of a contiguous operand that is written over.
pub fn cpu_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("a fused op got an operand to write over that is not contiguous, or not f32")
    };
    match values.get_mut(start..end) {
        Some(values) => Ok(values),
        None => bail!("a fused op got an operand whose elements were given back"),
    }
}

/// The elements of a contiguous tensor, from `Tensor::storage_and_layout`.
pub fn slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => cpu(storage, layout),
        _ => bail!("a fused op got an operand that is not in main memory"),
    }
}
