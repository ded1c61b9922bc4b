//! An op on tensors, to be done once or again, and its gradients.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Result as Outcome, Shape, Storage, Tensor, bail,
};

/// An op with its operands.
pub(super) enum Op {
    One([Tensor; 1], Box<dyn CustomOp1 + Send + Sync>),
    Two([Tensor; 2], Box<dyn CustomOp2 + Send + Sync>),
    Three([Tensor; 3], Box<dyn CustomOp3 + Send + Sync>),
}

impl Op {
    pub(super) fn operands(&self) -> &[Tensor] {
        match self {
            Self::One(x, _) => x,
            Self::Two(x, _) => x,
            Self::Three(x, _) => x,
        }
    }

    pub(super) fn forward(&self) -> Outcome<(Storage, Shape)> {
        match self {
            Self::One([x], op) => {
                let (sx, lx) = x.storage_and_layout();
                match &*sx {
                    Storage::Cpu(x) => Ok(on_cpu(op.cpu_fwd(x, lx)?)),
                    Storage::Cuda(x) => Ok(on_gpu(op.cuda_fwd(x, lx)?)),
                    Storage::Metal(_) => apart(),
                }
            }
            Self::Two([x, y], op) => {
                let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
                match (&*sx, &*sy) {
                    (Storage::Cpu(x), Storage::Cpu(y)) => Ok(on_cpu(op.cpu_fwd(x, lx, y, ly)?)),
                    (Storage::Cuda(x), Storage::Cuda(y)) => Ok(on_gpu(op.cuda_fwd(x, lx, y, ly)?)),
                    _ => apart(),
                }
            }
            Self::Three([x, y, z], op) => {
                let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
                let (sz, lz) = z.storage_and_layout();
                match (&*sx, &*sy, &*sz) {
                    (Storage::Cpu(x), Storage::Cpu(y), Storage::Cpu(z)) => Ok(on_cpu(op.cpu_fwd(x, lx, y, ly, z, lz)?)),
                    (Storage::Cuda(x), Storage::Cuda(y), Storage::Cuda(z)) => {
                        Ok(on_gpu(op.cuda_fwd(x, lx, y, ly, z, lz)?))
                    }
                    _ => apart(),
                }
            }
        }
    }

    /// The gradients of the operands; of those that are not there, none.
    pub(super) fn backward(&self, result: &Tensor, dy: &Tensor) -> Outcome<[Option<Tensor>; 3]> {
        Ok(match self {
            Self::One([x], op) => [op.bwd(x, result, dy)?, None, None],
            Self::Two([x, y], op) => {
                let (a, b) = op.bwd(x, y, result, dy)?;
                [a, b, None]
            }
            Self::Three([x, y, z], op) => op.bwd(x, y, z, result, dy)?.into(),
        })
    }
}

fn on_cpu((storage, shape): (CpuStorage, Shape)) -> (Storage, Shape) {
    (Storage::Cpu(storage), shape)
}

fn on_gpu((storage, shape): (CudaStorage, Shape)) -> (Storage, Shape) {
    (Storage::Cuda(storage), shape)
}

fn apart<T>() -> Outcome<T> {
    bail!("the operands of an op lie on several devices")
}
