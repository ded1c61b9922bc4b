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
    let y = gpu.floats(x.len)?;
    each!(&gpu, Name::Activation, x.len, x.at, gpu.address(&y), x.len, kind as i32)?;
    Ok(output(&gpu, y, layout.shape().clone()))
}

/// `dy` times the slope at `x`.
pub fn backward(kind: Kind, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
    let (values, dy) = (input(&sx, lx)?, input(&sd, ld)?);
    let dx = gpu.floats(values.len)?;
    let n = values.len;
    each!(&gpu, Name::ActivationGrad, n, values.at, dy.at, gpu.address(&dx), n, kind as i32)?;
    Ok(tensor(&gpu, dx, x.shape()))
}

/// Shape: `(.., 2 half)` -> `(.., half)`.
pub fn geglu(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, layout)?;
    let mut shape = layout.dims().to_vec();
    let half = shape.last().map_or(0, |last| last / 2).max(1);
    if let Some(last) = shape.last_mut() {
        *last = half;
    }
    let y = gpu.floats(x.len / 2)?;
    each!(&gpu, Name::Geglu, x.len / 2, x.at, gpu.address(&y), x.len / 2, half)?;
    Ok(output(&gpu, y, shape))
}

/// The gradient of both halves.
pub fn geglu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let half = (x.dim(D::Minus1)? / 2).max(1);
    let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
    let (values, dy) = (input(&sx, lx)?, input(&sd, ld)?);
    let dx = gpu.floats(values.len)?;
    each!(&gpu, Name::GegluGrad, dy.len, values.at, dy.at, gpu.address(&dx), dy.len, half)?;
    Ok(tensor(&gpu, dx, x.shape()))
}
