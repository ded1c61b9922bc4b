//! Layer normalisation over the last dimension.

use super::*;
use candle_core::{CudaStorage, D, Layout, Shape};

/// `x` `(.., n)`, `w` and `b` `(n)` -> as `x`, and `mean, rstd` of every row.
pub fn forward(
    eps: f64,
    (x, lx): (&CudaStorage, &Layout),
    (w, lw): (&CudaStorage, &Layout),
    (b, lb): (&CudaStorage, &Layout),
) -> Result<((CudaStorage, Shape), Floats)> {
    let gpu = Gpu::new(&x.device)?;
    let (x, w, b) = (operand(x, lx)?, operand(w, lw)?, operand(b, lb)?);
    let (n, rows) = (w.len, x.len / w.len.max(1));
    let rooms = (gpu.as_type(w, false)?, gpu.as_type(b, false)?);
    let (w, b) = (rooms.0.operand, rooms.1.operand);
    let (y, stats) = (gpu.room(x.len, x.half)?, gpu.floats(2 * rows)?);
    let (to_y, to_stats) = (y.operand.at, gpu.address(&stats));
    let name = Name::LayerNorm.of(x.half);
    launch!(&gpu, name, warps(rows), x.at, w.at, b.at, to_y, to_stats, rows, n, eps as f32)?;
    Ok((output(&gpu, y, lx.shape().clone())?, stats))
}

/// `dx`, `dw` and `db`, each where tracked.
pub fn backward(
    [x, weight, bias]: [&Tensor; 3],
    stats: &Floats,
    dy: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(dy)?;
    let n = x.dim(D::Minus1)?;
    let ((sx, lx), (sw, lw), (sd, ld)) = (x.storage_and_layout(), weight.storage_and_layout(), dy.storage_and_layout());
    let (values, w, dy) = (input(&sx, lx)?, input(&sw, lw)?, input(&sd, ld)?);
    let half = values.half;
    let rooms = (gpu.as_type(w, false)?, gpu.as_type(dy, half)?);
    let (w, dy) = (rooms.0.operand, rooms.1.operand);
    let rows = values.len / n.max(1);
    let stats = gpu.address(stats);
    let (mut dx, mut dw, mut db) = (None, None, None);
    if x.track_op() {
        let gradient = gpu.room(values.len, half)?;
        let to_x = gradient.operand.at;
        launch!(&gpu, Name::LayerNormGrad.of(half), warps(rows), values.at, dy.at, w.at, stats, to_x, rows, n)?;
        dx = Some(tensor(&gpu, gradient, x.shape())?);
    }
    if weight.track_op() || bias.track_op() {
        let (to_weight, to_bias) = (gpu.room(n, false)?, gpu.room(n, false)?);
        let (to_w, to_b) = (to_weight.operand.at, to_bias.operand.at);
        launch!(&gpu, Name::LayerWeightGrad.of(half), columns(n), values.at, dy.at, stats, to_w, to_b, rows, n)?;
        dw = weight.track_op().then(|| tensor(&gpu, to_weight, n)).transpose()?;
        db = bias.track_op().then(|| tensor(&gpu, to_bias, n)).transpose()?;
    }
    Ok((dx, dw, db))
}
