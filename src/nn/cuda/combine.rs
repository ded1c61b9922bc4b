//! Residual sums and skip connections.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `a + b`, both alike.
pub fn add((a, la): (&CudaStorage, &Layout), (b, lb): (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&a.device)?;
    let (a, b) = (operand(a, la)?, operand(b, lb)?);
    let y = gpu.floats(a.len)?;
    each!(&gpu, Name::Add, a.len, a.at, b.at, gpu.address(&y), a.len)?;
    Ok(output(&gpu, y, la.shape().clone()))
}

/// `(B, C, H, W)` and `(B, D, H, W)` -> `(B, C + D, H, W)`.
pub fn concat((a, la): (&CudaStorage, &Layout), (b, lb): (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&a.device)?;
    let ((n, c, h, w), (_, d, _, _)) = (la.shape().dims4()?, lb.shape().dims4()?);
    let (a, b) = (operand(a, la)?, operand(b, lb)?);
    let len = a.len + b.len;
    let y = gpu.floats(len)?;
    each!(&gpu, Name::Concat, len, a.at, b.at, gpu.address(&y), len, c * h * w, d * h * w)?;
    Ok(output(&gpu, y, (n, c + d, h, w)))
}
