//! NVIDIA's GPUs, through CUDA's driver.

use super::{ComputeDevice, DeviceChoice, Gpu};
use crate::{Error, Result};
use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUmemPool_attribute};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result};
use std::sync::Arc;

/// How many GPUs there are; why that cannot be told.
pub(super) fn count() -> std::result::Result<usize, String> {
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(why) => Err(in_words(&why)),
    }
}

/// Opens GPU `n`: one stream, whatever the threads.
///
/// # Errors
/// If there is none of this number, or the driver refuses.
pub(super) fn open(n: usize) -> Result<ComputeDevice> {
    let there = count().map_err(|why| {
        Error::usage(format!(
            "--device cuda:{n}: no NVIDIA GPU can be used: {why}; is the driver installed, and does `nvidia-smi` show the GPU? Say \
             --device cpu to go on without"
        ))
    })?;
    if n >= there {
        return Err(Error::usage(match there {
            0 => format!(
                "--device cuda:{n}: this machine shows no NVIDIA GPU (CUDA_VISIBLE_DEVICES may hide it); say --device cpu"
            ),
            _ => {
                format!("--device cuda:{n}: there are {there} GPUs, cuda:0 to cuda:{}; choose one of these", there - 1)
            }
        }));
    }
    let failed = |why: String| {
        Error::usage(format!(
            "--device cuda:{n} cannot be used: {why}; see what else runs there with `nvidia-smi`, choose another GPU, or say \
             --device cpu"
        ))
    };
    let device = Device::new_cuda_with_stream(n).map_err(|e| failed(e.to_string()))?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: events order the work of several streams. All work of this device is on its one stream, in the order in which it is
    // asked for, from whatever thread; nothing in this program makes a second stream. Another opening of the GPU has its own, and what
    // goes from one to the other goes through the host's memory (`nn::across`), which waits for the first.
    unsafe { cuda.disable_event_tracking() };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    let memory = context.mem_get_info().map_err(|e| failed(in_words(&e)))?;
    let name = context.name().map_err(|e| failed(in_words(&e)))?;
    keep_freed(context).map_err(|e| failed(in_words(&e)))?;
    Ok(ComputeDevice {
        device: device.clone(),
        choice: DeviceChoice::Cuda(n),
        name: format!("cuda {name}"),
        memory: Some((memory.0 as u64, memory.1 as u64)),
        ..ComputeDevice::cpu()
    })
}

/// Lets freed memory stay with this process: it would be given back whenever the host waits for the GPU, and taken anew.
fn keep_freed(context: &Arc<CudaContext>) -> std::result::Result<(), DriverError> {
    let Some(pool) = pool(context)? else { return Ok(()) };
    let mut all = u64::MAX;
    // SAFETY: the pool is the device's own, which lives as long as the device; the attribute is a 64-bit number.
    unsafe {
        result::mem_pool::set_attribute(
            pool,
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )
    }
}

/// The pool that tensors come from, if the device has such.
fn pool(context: &CudaContext) -> std::result::Result<Option<sys::CUmemoryPool>, DriverError> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the device is that of a living context.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.map(Some)
}

/// The most bytes that tensors had, and that the pool took for them.
pub(super) fn peak_memory(device: &Device) -> Option<(u64, u64)> {
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let pool = pool(stream.context()).ok()??;
    let read = |attribute| {
        let mut bytes = 0u64;
        // SAFETY: as in `keep_freed`; both attributes are 64-bit numbers.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.ok()?;
        Some(bytes)
    };
    let used = read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
    Some((used, read(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?))
}

/// Every GPU.
pub(super) fn gpus() -> std::result::Result<Vec<Gpu>, String> {
    (0..count()?).map(|n| gpu(n).map_err(|why| format!("cuda:{n}: {}", in_words(&why)))).collect()
}

fn gpu(n: usize) -> std::result::Result<Gpu, DriverError> {
    let context = CudaContext::new(n)?;
    let (free, total) = context.mem_get_info()?;
    let (major, minor) = context.compute_capability()?;
    Ok(Gpu {
        device: DeviceChoice::Cuda(n).to_string(),
        name: context.name()?,
        driver: driver(),
        compute_capability: format!("{major}.{minor}"),
        total_bytes: total as u64,
        free_bytes: free as u64,
    })
}

/// The driver's version as its kernel module tells it (Linux), and the newest CUDA that it knows.
fn driver() -> String {
    let mut cuda = 0;
    // SAFETY: writes one number.
    let known = unsafe { sys::cuDriverGetVersion(&mut cuda) }.result().is_ok();
    let cuda = if known { format!("CUDA {}.{}", cuda / 1000, cuda % 1000 / 10) } else { "CUDA unknown".into() };
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    match module.lines().next().unwrap_or_default().split_whitespace().find(is_version) {
        Some(version) => format!("{version}, {cuda}"),
        None => cuda,
    }
}

/// What the driver says, by name and in its own words.
fn in_words(why: &DriverError) -> String {
    let text = |c: std::result::Result<&std::ffi::CStr, DriverError>| c.map(|c| c.to_string_lossy().into_owned()).ok();
    match (text(why.error_name()), text(why.error_string())) {
        (Some(name), Some(words)) => format!("{words} ({name})"),
        _ => format!("{:?}", why.0),
    }
}
