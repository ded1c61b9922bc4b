//! The device that is tested or timed.

use crate::{Error, Result};
use candle_core::Device;

/// Opens `cpu`, `cuda` or `cuda:N`; without a name, the first GPU.
///
/// # Errors
/// If there is no such device, or this build cannot use it.
pub(super) fn open(name: Option<&str>) -> Result<Device> {
    let name = name.unwrap_or("cuda").to_lowercase();
    let number = match name.split_once(':') {
        None => Some(0),
        Some((_, number)) => number.parse().ok(),
    };
    match (name.split(':').next(), number) {
        (Some("cpu"), _) if name == "cpu" => Ok(Device::Cpu),
        (Some("auto"), _) if name == "auto" => cuda(0),
        (Some("cuda"), Some(number)) => cuda(number),
        _ => Err(Error::usage(format!("--device {name} is not a device; choose cuda, cuda:N or cpu"))),
    }
}

fn cuda(number: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        return Err(Error::usage(
            "this program was built for the CPU only, so there is no GPU to test; build it with scripts/build-cuda.sh (or \
             cargo build --release --features cuda), or say --device cpu to see the same checks on the CPU",
        ));
    }
    Device::new_cuda_with_stream(number).map_err(|error| {
        Error::usage(format!(
            "--device cuda:{number} cannot be used: {error}; nvidia-smi lists the GPUs of this machine"
        ))
    })
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
