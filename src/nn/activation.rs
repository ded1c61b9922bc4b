//! Pointwise activations and GEGLU.

use super::kernels::activation as kernel;
use super::kernels::parallel::chunks;
use super::kernels::storage::{cpu, fused, slice};
use crate::Result;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};

/// Elements of a parallel block.
const CHUNK: usize = 1 << 14;

/// `x sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Silu, x)
}

/// The exact GELU, `x Phi(x)` by erf (not the tanh approximation).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Gelu, x)
}

/// CLIP's `x sigmoid(1.702 x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::QuickGelu, x)
}

/// `a gelu(g)` with `[a | g]` the halves of the last dimension (diffusers' `GEGLU`, exact GELU).
///
/// # Shape
/// `(.., 2 d)` -> `(.., d)`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let last = x.dim(D::Minus1)?;
    if fused(&[x]) && last > 0 && last % 2 == 0 {
        return Ok(x.contiguous()?.apply_op1(Geglu)?);
    }
    let half = last / 2;
    Ok((x.narrow(D::Minus1, 0, half)? * reference(Pointwise::Gelu, &x.narrow(D::Minus1, half, half)?)?)?)
}

fn pointwise(op: Pointwise, x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) { Ok(x.contiguous()?.apply_op1(op)?) } else { reference(op, x) }
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(op: Pointwise, x: &Tensor) -> Result<Tensor> {
    Ok(match op {
        Pointwise::Silu => x.silu()?,
        Pointwise::Gelu => x.gelu_erf()?,
        Pointwise::QuickGelu => (x / (((x * -1.702)?.exp()? + 1.0)?))?,
    })
}

/// A function of each element; the backward pass recomputes it from `x`.
#[derive(Clone, Copy, Debug)]
enum Pointwise {
    Silu,
    Gelu,
    QuickGelu,
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = cpu(x, lx)?;
        let f = match self {
            Self::Silu => kernel::silu,
            Self::Gelu => kernel::gelu,
            Self::QuickGelu => kernel::quick_gelu,
        };
        let mut y = vec![0.0; x.len()];
        chunks(&mut y, CHUNK, |i, y| f(&x[i * CHUNK..][..y.len()], y));
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let f = match self {
            Self::Silu => kernel::silu_grad,
            Self::Gelu => kernel::gelu_grad,
            Self::QuickGelu => kernel::quick_gelu_grad,
        };
        let dy = dy.contiguous()?;
        let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
        let (values, dy) = (slice(&sx, lx)?, slice(&sd, ld)?);
        let mut dx = vec![0.0; values.len()];
        chunks(&mut dx, CHUNK, |i, dx| f(&values[i * CHUNK..][..dx.len()], &dy[i * CHUNK..][..dx.len()], dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// `y = a gelu(g)`: `da = dy gelu(g)`, `dg = dy a gelu'(g)`.
struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = cpu(x, lx)?;
        let mut shape = lx.dims().to_vec();
        let half = shape.last().map_or(0, |last| last / 2).max(1);
        if let Some(last) = shape.last_mut() {
            *last = half;
        }
        let rows = CHUNK.div_ceil(2 * half);
        let mut y = vec![0.0; x.len() / 2];
        chunks(&mut y, rows * half, |i, y| kernel::geglu(&x[2 * i * rows * half..][..2 * y.len()], half, y));
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let half = (x.dim(D::Minus1)? / 2).max(1);
        let dy = dy.contiguous()?;
        let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
        let (values, dy) = (slice(&sx, lx)?, slice(&sd, ld)?);
        let size = CHUNK.div_ceil(2 * half) * 2 * half;
        let mut dx = vec![0.0; values.len()];
        chunks(&mut dx, size, |i, dx| {
            kernel::geglu_grad(&values[i * size..][..dx.len()], &dy[i * size / 2..][..dx.len() / 2], half, dx);
        });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
