//! Nearest-neighbour upsampling by two.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `(B, C, H, W)` -> `(B, C, 2H, 2W)`.
pub fn forward(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let (b, c, h, w) = layout.shape().dims4()?;
    let x = operand(x, layout)?;
    let y = gpu.room(4 * x.len, x.half)?;
    each!(&gpu, Name::Upsample.of(x.half), x.len, x.at, y.operand.at, x.len, w)?;
    output(&gpu, y, (b, c, 2 * h, 2 * w))
}

/// Sums of the four that an element became.
pub fn backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let (_, _, _, w) = x.dims4()?;
    let (storage, layout) = dy.storage_and_layout();
    let dy = input(&storage, layout)?;
    let dx = gpu.room(dy.len / 4, dy.half)?;
    each!(&gpu, Name::UpsampleGrad.of(dy.half), dy.len / 4, dy.at, dx.operand.at, dy.len / 4, w)?;
    tensor(&gpu, dx, x.shape())
}
