//! The layers on an NVIDIA GPU: products through cuBLAS, everything around them by the kernels in `kernels/*.cu`, which
//! `build.rs` compiles to PTX.
//!
//! Trainable weights, their gradients and what is summed are `f32`. Activations are `f32` or `bf16`, as what goes into a network is: an
//! op's result is of the type of its first operand, and a gradient of the type of what it belongs to. Where one factor of a product
//! is `bf16`, the other is rounded to `bf16` beside it; frozen weights in `f16` are widened to `f32` for each product. Every result is
//! the same bit for bit each time: no atomics, one stream.

pub mod activation;
pub mod attention;
pub mod combine;
pub mod conv2d;
pub mod group_norm;
pub mod layer_norm;
pub mod layout;
pub mod linear;
mod memory;
mod module;
mod product;
pub mod upsample;

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Device, Result, Tensor, bail};
use half::bf16;
pub use memory::{Floats, release};
use memory::{Memory, Operand, Room, input, is_half, operand, output, tensor, weight, weight_input};
use module::{Kernels, Name};
use product::{Matrix, Sizes, product};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Threads of a block.
const THREADS: usize = 256;
/// Blocks at most, where threads take more than one element.
const BLOCKS: usize = 1 << 16;

/// See [`set_half_attention`].
static HALF_ATTENTION: AtomicBool = AtomicBool::new(false);

/// Whether attention multiplies in `bf16` (with sums in `f32`), as networks whose weights are kept in `bf16` do.
pub fn set_half_attention(half: bool) {
    HALF_ATTENTION.store(half, Ordering::Relaxed);
}

/// See [`set_half_attention`].
pub fn half_attention() -> bool {
    HALF_ATTENTION.load(Ordering::Relaxed)
}

/// A GPU with its kernels.
struct Gpu {
    device: CudaDevice,
    stream: Arc<candle_core::cuda_backend::cudarc::driver::CudaStream>,
    kernels: Arc<Kernels>,
}

impl Gpu {
    fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self { device: device.clone(), stream: device.cuda_stream(), kernels: Kernels::of(device) })
    }

    /// The GPU of a tensor.
    fn of(x: &Tensor) -> Result<Self> {
        match x.device() {
            Device::Cuda(device) => Self::new(device),
            _ => bail!("an op of the GPU got an operand that is not there"),
        }
    }

    /// `n` values that the caller writes, every one.
    fn floats(&self, n: usize) -> Result<Floats> {
        // SAFETY: whoever asks writes every value by a kernel on the same stream before one is read.
        unsafe { self.device.alloc::<f32>(n) }
    }

    /// Room for `n` values of either type, as [`Gpu::floats`].
    fn room(&self, n: usize, half: bool) -> Result<Room> {
        let memory = match half {
            // SAFETY: as above.
            true => Memory::Half(unsafe { self.device.alloc::<bf16>(n) }?),
            false => Memory::Whole(self.floats(n)?),
        };
        Ok(Room::of(self, memory))
    }

    /// `x` as it is, or copied to the other type; whoever takes the operand holds the room.
    fn as_type(&self, x: Operand, half: bool) -> Result<Room> {
        if x.half == half {
            return Ok(Room::borrowed(x));
        }
        let room = self.room(x.len, half)?;
        let name = if half { Name::ToBf16 } else { Name::ToF32 };
        each!(self, name, x.len, x.at, room.operand.at, x.len)?;
        Ok(room)
    }

    /// What was computed in one type, as its taker wants it.
    fn given_as(&self, x: Room, half: bool) -> Result<Room> {
        if x.operand.half == half { Ok(x) } else { self.as_type(x.operand, half) }
    }
}

/// Starts a kernel of [`module`]; the arguments are numbers, and addresses as `u64`.
macro_rules! launch {
    ($gpu:expr, $name:expr, $shape:expr, $($argument:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::{LaunchConfig, PushKernelArg}};
        let gpu: &$crate::nn::cuda::Gpu = $gpu;
        let mut launch = gpu.stream.launch_builder(gpu.kernels.get($name)?);
        $(
            let argument = $argument;
            launch.arg(&argument);
        )+
        let (grid_dim, block_dim): $crate::nn::cuda::Grid = $shape;
        let config = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel's signature; each address is of memory that holds as many elements as the
        // sizes beside it say, and that is freed, if at all, later on the same stream.
        unsafe { launch.launch(config) }.w().map(|_| ())
    }};
}
use launch;

/// Starts a kernel in which each thread takes one of `n` elements (or several).
macro_rules! each {
    ($gpu:expr, $name:expr, $n:expr, $($argument:expr),+ $(,)?) => {
        $crate::nn::cuda::launch!($gpu, $name, $crate::nn::cuda::over($n, 1), $($argument),+)
    };
}
use each;

/// Blocks, and threads of each.
type Grid = ((u32, u32, u32), (u32, u32, u32));

/// A grid of `rows` lines, each for `n` elements, of which a thread may take several.
fn over(n: usize, rows: usize) -> Grid {
    ((n.div_ceil(THREADS).clamp(1, BLOCKS) as u32, rows as u32, 1), (THREADS as u32, 1, 1))
}

/// A grid for kernels with a warp for each of `rows` rows.
fn warps(rows: usize) -> Grid {
    ((rows.div_ceil(8) as u32, 1, 1), (32, 8, 1))
}

/// A grid for kernels with 32 x 32 threads for 32 columns.
fn columns(width: usize) -> Grid {
    ((width.div_ceil(32) as u32, 1, 1), (32, 32, 1))
}

impl Gpu {
    /// Where memory lies on the device.
    fn address<T>(&self, slice: &candle_core::cuda_backend::cudarc::driver::CudaSlice<T>) -> u64 {
        use candle_core::cuda_backend::cudarc::driver::DevicePtr;
        slice.device_ptr(&self.stream).0
    }
}
