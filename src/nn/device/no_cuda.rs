//! What a build without the feature `cuda` has in place of NVIDIA's GPUs: none.

use super::{ComputeDevice, DeviceChoice, Gpu};
use crate::Result;
use candle_core::Device;

pub(super) fn count() -> std::result::Result<usize, String> {
    Ok(0)
}

pub(super) fn open(n: usize) -> Result<ComputeDevice> {
    DeviceChoice::Cuda(n).check()?;
    Ok(ComputeDevice::cpu())
}

pub(super) fn gpus() -> std::result::Result<Vec<Gpu>, String> {
    Ok(Vec::new())
}

pub(super) fn peak_memory(_: &Device) -> Option<(u64, u64)> {
    None
}
