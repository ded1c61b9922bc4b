//! Nearest-neighbour upsampling by two.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `(B, C, H, W)` -> `(B, C, 2H, 2W)`.
pub fn forward(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let (b, c, h, w) = layout.shape().dims4()?;
    let x = operand(x, layout)?;
    let y = gpu.floats(4 * x.len)?;
    each!(&gpu, Name::Upsample, 4 * x.len, x.at, gpu.address(&y), 4 * x.len, w)?;
    Ok(output(&gpu, y, (b, c, 2 * h, 2 * w)))
}

/// Sums of the four that an element became.
pub fn backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let (_, _, _, w) = x.dims4()?;
    let (storage, layout) = dy.storage_and_layout();
    let dy = input(&storage, layout)?;
    let dx = gpu.floats(dy.len / 4)?;
    each!(&gpu, Name::UpsampleGrad, dy.len / 4, dy.at, gpu.address(&dx), dy.len / 4, w)?;
    Ok(tensor(&gpu, dx, x.shape()))
}
