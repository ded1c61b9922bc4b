//! Pointwise activations and GEGLU.

use super::*;
use candle_core::{CudaStorage, D, Layout, Shape};

/// Which activation, as the kernels number them.
#[derive(Clone, Copy)]
pub enum Kind {
    Silu = 0,
    Gelu = 1,
    QuickGelu = 2,
}

/// Shape: any -> the same.
pub fn forward(kind: Kind, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, layout)?;
    let y = gpu.room(x.len, x.half)?;
    each!(&gpu, Name::Activation.of(x.half), x.len, x.at, y.operand.at, x.len, kind as i32)?;
    output(&gpu, y, layout.shape().clone())
}

/// `dy` times the slope at `x`.
pub fn backward(kind: Kind, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
    let (values, dy) = (input(&sx, lx)?, input(&sd, ld)?);
    let (n, half) = (values.len, values.half);
    let (dy, dx) = (gpu.as_type(dy, half)?, gpu.room(n, half)?);
    let (to_y, to_x) = (dy.operand.at, dx.operand.at);
    each!(&gpu, Name::ActivationGrad.of(half), n, values.at, to_y, to_x, n, kind as i32)?;
    tensor(&gpu, dx, x.shape())
}

/// Shape: `(.., 2 half)` -> `(.., half)`.
pub fn geglu(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, layout)?;
    let mut shape = layout.dims().to_vec();
    let width = shape.last().map_or(0, |last| last / 2).max(1);
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let y = gpu.room(x.len / 2, x.half)?;
    each!(&gpu, Name::Geglu.of(x.half), x.len / 2, x.at, y.operand.at, x.len / 2, width)?;
    output(&gpu, y, shape)
}

/// The gradient of both halves.
pub fn geglu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let width = (x.dim(D::Minus1)? / 2).max(1);
    let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
    let (values, dy) = (input(&sx, lx)?, input(&sd, ld)?);
    let half = values.half;
    let (dy, dx) = (gpu.as_type(dy, half)?, gpu.room(values.len, half)?);
    let n = dy.operand.len;
    each!(&gpu, Name::GegluGrad.of(half), n, values.at, dy.operand.at, dx.operand.at, n, width)?;
    tensor(&gpu, dx, x.shape())
}

/// The same, over `x`.
pub fn geglu_backward_over((x, lx): (&CudaStorage, &Layout), (dy, ld): (&CudaStorage, &Layout)) -> Result<()> {
    let gpu = Gpu::new(&x.device)?;
    let (values, dy) = (operand(x, lx)?, operand(dy, ld)?);
    let (width, half) = (lx.dims().last().map_or(0, |last| last / 2).max(1), values.half);
    let dy = gpu.as_type(dy, half)?;
    let n = dy.operand.len;
    each!(&gpu, Name::GegluGrad.of(half), n, values.at, dy.operand.at, values.at, n, width)
}
