//! Feature maps to tokens and back, and a vector added to every pixel.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `(B, M, N)` -> `(B, N, M)`, given as `shape`.
pub fn swap(
    x: &CudaStorage,
    layout: &Layout,
    (b, m, n): (usize, usize, usize),
    shape: &Shape,
) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, layout)?;
    let y = gpu.room(x.len, x.half)?;
    let grid = (n.div_ceil(32) as u32, m.div_ceil(32) as u32, b as u32);
    launch!(&gpu, Name::Swap.of(x.half), (grid, (32, 8, 1)), x.at, y.operand.at, m as i32, n as i32)?;
    output(&gpu, y, shape.clone())
}

/// `x` `(B, C, H, W)`, `e` `(B, C)` -> `(B, C, H, W)`.
pub fn add_per_channel(
    (x, lx): (&CudaStorage, &Layout),
    (e, le): (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let (_, _, h, w) = lx.shape().dims4()?;
    let (x, e) = (operand(x, lx)?, operand(e, le)?);
    let (e, y) = (gpu.as_type(e, false)?, gpu.room(x.len, x.half)?);
    each!(&gpu, Name::AddPerMap.of(x.half), x.len, x.at, e.operand.at, y.operand.at, x.len, h * w)?;
    output(&gpu, y, lx.shape().clone())
}

/// Sums of `maps` runs of `pixels` elements each, in `f32`.
pub fn map_sums(x: &Tensor, maps: usize, pixels: usize) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let (storage, layout) = x.storage_and_layout();
    let x = input(&storage, layout)?;
    let sums = gpu.room(maps, false)?;
    let grid = ((maps as u32, 1, 1), (THREADS as u32, 1, 1));
    launch!(&gpu, Name::MapSums.of(x.half), grid, x.at, sums.operand.at, pixels)?;
    tensor(&gpu, sums, maps)
}
