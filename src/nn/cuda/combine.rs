//! Residual sums and skip connections. Operands of both types are added and joined as the first is.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `a + b`, of one shape.
pub fn add((a, la): (&CudaStorage, &Layout), (b, lb): (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&a.device)?;
    let (a, b) = (operand(a, la)?, operand(b, lb)?);
    let (b, y) = (gpu.as_type(b, a.half)?, gpu.room(a.len, a.half)?);
    each!(&gpu, Name::Add.of(a.half), a.len, a.at, b.operand.at, y.operand.at, a.len)?;
    output(&gpu, y, la.shape().clone())
}

/// The gradient of a term: `dy` in the type of `x`.
pub fn add_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if is_half(x) == is_half(dy) {
        return Ok(dy.clone());
    }
    let gpu = Gpu::of(dy)?;
    let (storage, layout) = dy.storage_and_layout();
    tensor(&gpu, gpu.as_type(input(&storage, layout)?, is_half(x))?, x.shape())
}

/// Elements of each of some samples, from which or to which a part is copied.
#[derive(Clone, Copy)]
struct Part {
    /// Of a whole sample.
    sample: usize,
    /// Where the part begins.
    at: usize,
}

/// Copies `count` elements of each sample.
fn copy(gpu: &Gpu, (x, from): (Operand, Part), (y, to): (Operand, Part), samples: usize, count: usize) -> Result<()> {
    let (n, name) = (samples * count, Name::MoveParts.of(x.half));
    each!(gpu, name, n, x.at, y.at, n, from.sample, from.at, to.sample, to.at, count)
}

/// `(B, C, H, W)` and `(B, D, H, W)` -> `(B, C + D, H, W)`.
pub fn concat((a, la): (&CudaStorage, &Layout), (b, lb): (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&a.device)?;
    let ((n, c, h, w), (_, d, _, _)) = (la.shape().dims4()?, lb.shape().dims4()?);
    let (a, b) = (operand(a, la)?, operand(b, lb)?);
    let (b, y) = (gpu.as_type(b, a.half)?, gpu.room(a.len + b.len, a.half)?);
    let (wide, narrow) = (c * h * w, d * h * w);
    let to = |at| (y.operand, Part { sample: wide + narrow, at });
    copy(&gpu, (a, Part { sample: wide, at: 0 }), to(0), n, wide)?;
    copy(&gpu, (b.operand, Part { sample: narrow, at: 0 }), to(wide), n, narrow)?;
    output(&gpu, y, (n, c + d, h, w))
}

/// The gradient of a part of a concatenation: of `dy`, the channels from `first` on that are `x`'s.
pub fn concat_backward(x: &Tensor, dy: &Tensor, first: usize) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let ((n, c, h, w), (_, all, _, _)) = (x.dims4()?, dy.dims4()?);
    let (storage, layout) = dy.storage_and_layout();
    let dy = gpu.as_type(input(&storage, layout)?, is_half(x))?;
    let dx = gpu.room(n * c * h * w, is_half(x))?;
    let from = Part { sample: all * h * w, at: first * h * w };
    copy(&gpu, (dy.operand, from), (dx.operand, Part { sample: c * h * w, at: 0 }), n, c * h * w)?;
    tensor(&gpu, dx, x.shape())
}
