//! From candle's tensors to addresses, and back.

use super::{Gpu, Name, each};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

/// Memory on the device.
pub type Floats = CudaSlice<f32>;
/// As [`Floats`].
pub type Halves = CudaSlice<bf16>;

/// Contiguous elements on the device. Whoever holds one holds what it lies in.
#[derive(Clone, Copy)]
pub struct Operand {
    /// Address of the first element.
    pub at: u64,
    /// Elements.
    pub len: usize,
    /// Whether they are `bf16`.
    pub half: bool,
}

impl Operand {
    /// From element `i` on, as an address.
    pub fn from(&self, i: usize) -> u64 {
        self.at + (i * if self.half { 2 } else { 4 }) as u64
    }
}

/// The elements of a contiguous operand of an op.
pub fn operand(storage: &CudaStorage, layout: &Layout) -> Result<Operand> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused op got an operand that is not contiguous")
    };
    let stream = storage.device().cuda_stream();
    let (at, half) = match &storage.slice {
        CudaStorageSlice::F32(slice) => (slice.device_ptr(&stream).0, false),
        CudaStorageSlice::BF16(slice) => (slice.device_ptr(&stream).0, true),
        _ => bail!("a fused op got an operand that is neither f32 nor bf16"),
    };
    let there = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.len(),
        CudaStorageSlice::BF16(slice) => slice.len(),
        _ => 0,
    };
    if end > there {
        bail!("a fused op got an operand whose elements were given back");
    }
    let whole = Operand { at, len: end - start, half };
    Ok(Operand { at: whole.from(start), ..whole })
}

/// As [`operand`], from `Tensor::storage_and_layout`.
pub fn input(storage: &Storage, layout: &Layout) -> Result<Operand> {
    match storage {
        Storage::Cuda(storage) => operand(storage, layout),
        _ => bail!("an op of the GPU got an operand that is not there"),
    }
}

/// As [`operand`], of a frozen weight, which may be `f16` too: that is widened to `f32` beside it, for as long as the room is held.
pub fn weight(gpu: &Gpu, storage: &CudaStorage, layout: &Layout) -> Result<Room> {
    let CudaStorageSlice::F16(slice) = &storage.slice else { return Ok(Room::borrowed(operand(storage, layout)?)) };
    let within = layout.contiguous_offsets().filter(|(_, end)| *end <= slice.len());
    let Some((start, end)) = within else {
        bail!("a fused op got a weight that is not contiguous, or whose elements were given back")
    };
    let (at, room) = (gpu.address(slice) + 2 * start as u64, gpu.room(end - start, false)?);
    each!(gpu, Name::F16ToF32, room.operand.len, at, room.operand.at, room.operand.len)?;
    Ok(room)
}

/// As [`weight`], from `Tensor::storage_and_layout`.
pub fn weight_input(gpu: &Gpu, storage: &Storage, layout: &Layout) -> Result<Room> {
    match storage {
        Storage::Cuda(storage) => weight(gpu, storage, layout),
        _ => bail!("an op of the GPU got an operand that is not there"),
    }
}

/// Memory of one type or the other.
pub enum Memory {
    Whole(Floats),
    Half(Halves),
}

/// An operand, and the memory that it lies in as long as this is held.
pub struct Room {
    pub operand: Operand,
    memory: Option<Memory>,
}

impl Room {
    /// An operand that someone else holds.
    pub fn borrowed(operand: Operand) -> Self {
        Self { operand, memory: None }
    }

    /// All of a memory.
    pub fn of(gpu: &Gpu, memory: Memory) -> Self {
        let (at, len, half) = match &memory {
            Memory::Whole(slice) => (gpu.address(slice), slice.len(), false),
            Memory::Half(slice) => (gpu.address(slice), slice.len(), true),
        };
        Self { operand: Operand { at, len, half }, memory: Some(memory) }
    }

    fn storage(self, gpu: &Gpu) -> Result<CudaStorage> {
        match self.memory {
            Some(Memory::Whole(slice)) => Ok(f32::wrap_cuda_slice(slice, gpu.device.clone())),
            Some(Memory::Half(slice)) => Ok(bf16::wrap_cuda_slice(slice, gpu.device.clone())),
            None => bail!("a fused op gave what is not its own"),
        }
    }
}

/// What an op's forward pass gives.
pub fn output(gpu: &Gpu, values: Room, shape: impl Into<Shape>) -> Result<(CudaStorage, Shape)> {
    Ok((values.storage(gpu)?, shape.into()))
}

/// A tensor without a graph, as gradients are.
pub fn tensor(gpu: &Gpu, values: Room, shape: impl Into<Shape>) -> Result<Tensor> {
    let storage = Storage::Cuda(values.storage(gpu)?);
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// Whether a tensor is of `bf16`, whatever became of its elements.
pub fn is_half(x: &Tensor) -> bool {
    x.dtype() == DType::BF16
}

/// Gives the elements back, if there are no others in the same memory; see `nn::release`.
pub fn release(storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    let count = layout.shape().elem_count();
    // SAFETY: what is left has fewer elements than any operand, so that nothing reads it (see `operand`).
    match &storage.slice {
        CudaStorageSlice::F32(slice) if slice.len() == count => {
            storage.slice = CudaStorageSlice::F32(unsafe { storage.device.alloc::<f32>(1) }?);
        }
        // SAFETY: as above.
        CudaStorageSlice::BF16(slice) if slice.len() == count => {
            storage.slice = CudaStorageSlice::BF16(unsafe { storage.device.alloc::<bf16>(1) }?);
        }
        _ => {}
    }
    Ok(())
}
