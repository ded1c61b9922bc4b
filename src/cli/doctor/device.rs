//! The device that is tested or timed, and what goes there.

use crate::checkpoint::{Precision, load_component, load_model};
use crate::nn::{DeviceChoice, ParamStore};
use crate::sd::{StableDiffusion, TextEncoder, Vae};
use crate::{Result, hub};
use candle_core::{DType, Device, DeviceLocation};
use std::sync::Arc;

/// Opens the device of this name; without one (or with `auto`) the first NVIDIA GPU.
///
/// # Errors
/// If there is no such device, or this build cannot use it.
pub(super) fn open(name: Option<&str>) -> Result<Device> {
    let choice = match name.map(str::parse).transpose()? {
        None | Some(DeviceChoice::Auto) => DeviceChoice::Cuda(0),
        Some(choice) => choice,
    };
    Ok(choice.open(false)?.device().clone())
}

/// The same device, opened once more.
///
/// # Errors
/// As [`open`].
pub(super) fn again(device: &Device) -> Result<Device> {
    let choice = match device.location() {
        DeviceLocation::Cuda { gpu_id } => DeviceChoice::Cuda(gpu_id),
        DeviceLocation::Metal { gpu_id } => DeviceChoice::Metal(gpu_id),
        DeviceLocation::Cpu => DeviceChoice::Cpu,
    };
    Ok(choice.open(false)?.device().clone())
}

/// What the device is called.
pub(super) fn name(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.cuda_stream().context().name().unwrap_or_else(|_| "a CUDA GPU".into()),
        Device::Cpu => super::system::processor().map_or_else(|| "the CPU".into(), |name| format!("the CPU ({name})")),
        _ => "a GPU".into(),
    }
}

/// Lets products of `f32` matrices round to TF32, or not.
pub(super) fn allow_tf32(allow: bool) {
    candle_core::cuda::set_gemm_reduced_precision_f32(allow);
}

/// These parameters there, none of them trainable; matrices and convolutions as `precision` says, unless they are `exact`.
pub(super) fn moved_as(
    params: &ParamStore,
    device: &Device,
    precision: Precision,
    exact: &dyn Fn(&str) -> bool,
) -> Result<ParamStore> {
    let tensors = params.tensors().iter().map(|(name, x)| {
        let x = x.to_device(device)?;
        let kept = if exact(name) { DType::F32 } else { precision.kept_as(x.dims()) };
        Ok((name.clone(), x.to_dtype(kept)?))
    });
    Ok(ParamStore::new(tensors.collect::<Result<_>>()?))
}

/// These parameters there, as they are.
pub(super) fn moved(params: &ParamStore, device: &Device) -> Result<ParamStore> {
    moved_as(params, device, Precision::F32, &|_| true)
}

/// The demo with its networks there.
pub(super) fn demo_on(device: &Device, precision: Precision) -> Result<StableDiffusion> {
    let model = load_model(&hub::demo())?.model;
    let there = |params: &ParamStore| moved_as(params, device, precision, &|_| false);
    let (text, text_params) = load_component(&hub::demo(), "text_encoder", "model.safetensors")?;
    let (vae, vae_params) = load_component(&hub::demo(), "vae", "diffusion_pytorch_model.safetensors")?;
    Ok(StableDiffusion {
        unet_params: there(&model.unet_params)?,
        text_encoder: Arc::new(TextEncoder::new(&text, &there(&text_params)?)?),
        vae: Arc::new(Vae::new(&vae, &there(&vae_params)?)?),
        copies: Vec::new(),
        ..model
    })
}

/// The most bytes that tensors there had at once since [`reset_peak`], if that is counted.
pub(super) fn peak(device: &Device) -> Option<u64> {
    used(device, None)
}

/// From here on, [`peak`] counts anew.
pub(super) fn reset_peak(device: &Device) {
    used(device, Some(0));
}

/// Gives what is not in use there back to the driver, for another process.
pub(super) fn release(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Some(pool) = pool(device) {
        // SAFETY: the pool is a living device's, and so lives.
        let _ = unsafe { candle_core::cuda::cudarc::driver::result::mem_pool::trim_to(pool, 0) };
    }
    let _ = device;
}

/// The pool that tensors come from, when all work is done.
#[cfg(feature = "cuda")]
fn pool(device: &Device) -> Option<candle_core::cuda::cudarc::driver::sys::CUmemoryPool> {
    let Device::Cuda(cuda) = device else { return None };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().ok()?;
    stream.synchronize().ok()?;
    if !context.has_async_alloc() {
        return None;
    }
    // SAFETY: the device is that of a living context.
    unsafe { candle_core::cuda::cudarc::driver::result::device::get_mem_pool(context.cu_device()) }.ok()
}

/// Reads the pool's high-water mark of bytes in use, or sets it (the driver sets it to what is in use now).
#[cfg(feature = "cuda")]
fn used(device: &Device, set: Option<u64>) -> Option<u64> {
    use candle_core::cuda::cudarc::driver::{
        result::mem_pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
    };
    let pool = pool(device)?;
    let mut bytes = set.unwrap_or(0);
    let value = (&raw mut bytes).cast();
    // SAFETY: the pool is a living device's, and the attribute is a 64-bit number.
    unsafe {
        match set {
            Some(_) => mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, value).ok()?,
            None => mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, value).ok()?,
        }
    }
    Some(bytes)
}

#[cfg(not(feature = "cuda"))]
fn used(_: &Device, _: Option<u64>) -> Option<u64> {
    None
}
