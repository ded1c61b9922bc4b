//! Group normalisation, with SiLU where it follows.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// Elements of a group that one block works on.
const CHUNK: usize = 1 << 13;
/// Blocks of a group at most.
const CHUNKS: usize = 64;

/// What is normalised, and how.
#[derive(Clone, Copy)]
pub struct Way {
    pub groups: usize,
    pub eps: f64,
    pub silu: bool,
}

/// Sizes that the kernels ask for.
struct Sizes {
    batch: usize,
    channels: usize,
    pixels: usize,
    /// Elements of a group.
    size: usize,
    /// Blocks of a group.
    chunks: usize,
}

impl Sizes {
    fn new(dims: &[usize], groups: usize) -> Self {
        let (batch, channels) = (dims[0], dims[1]);
        let pixels = dims[2..].iter().product::<usize>();
        let size = channels / groups * pixels;
        Self { batch, channels, pixels, size, chunks: size.div_ceil(CHUNK).clamp(1, CHUNKS) }
    }

    fn grid(&self, groups: usize) -> Grid {
        (((self.batch * groups) as u32, self.chunks as u32, 1), (THREADS as u32, 1, 1))
    }
}

/// `x` `(B, C, ..)`, `w` and `b` `(C)`: the result, and `mean, rstd` of every sample and group.
pub fn forward(
    way: Way,
    (x, lx): (&CudaStorage, &Layout),
    (w, lw): (&CudaStorage, &Layout),
    (b, lb): (&CudaStorage, &Layout),
) -> Result<((CudaStorage, Shape), Floats)> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, lx)?;
    let y = gpu.room(x.len, x.half)?;
    let stats = normalise(&gpu, way, (x, lx), operand(w, lw)?, operand(b, lb)?, y.operand.at)?;
    Ok((output(&gpu, y, lx.shape().clone())?, stats))
}

/// The result over `x`.
pub fn over(
    way: Way,
    (x, lx): (&CudaStorage, &Layout),
    (w, lw): (&CudaStorage, &Layout),
    (b, lb): (&CudaStorage, &Layout),
) -> Result<()> {
    let gpu = Gpu::new(&x.device)?;
    let x = operand(x, lx)?;
    normalise(&gpu, way, (x, lx), operand(w, lw)?, operand(b, lb)?, x.at).map(drop)
}

/// Writes the result, of the type of `x`, to `to_y`, which may be where `x` is; returns `mean, rstd` of every sample and group.
fn normalise(gpu: &Gpu, way: Way, (x, lx): (Operand, &Layout), w: Operand, b: Operand, to_y: u64) -> Result<Floats> {
    let s = Sizes::new(lx.dims(), way.groups);
    let (w, b) = (gpu.as_type(w, false)?, gpu.as_type(b, false)?);
    // of each chunk two sums; after them of each group what they are relative to
    let parts = gpu.floats((2 * s.chunks + 1) * s.batch * way.groups)?;
    let stats = gpu.floats(2 * s.batch * way.groups)?;
    let to_parts = gpu.address(&parts);
    launch!(gpu, Name::GroupSums.of(x.half), s.grid(way.groups), x.at, to_parts, s.size)?;
    let to_stats = gpu.address(&stats);
    let (groups, eps, silu) = (way.groups as i32, way.eps as f32, i32::from(way.silu));
    launch!(
        gpu,
        Name::GroupNorm.of(x.half),
        s.grid(way.groups),
        x.at,
        to_parts,
        w.operand.at,
        b.operand.at,
        to_y,
        to_stats,
        s.size,
        s.pixels,
        groups,
        eps,
        silu,
    )?;
    Ok(stats)
}

/// `dx`, `dw` and `db`, each where tracked.
pub fn backward(
    way: Way,
    [x, weight, bias]: [&Tensor; 3],
    stats: &Floats,
    dy: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(dy)?;
    let s = Sizes::new(x.dims(), way.groups);
    let ((sx, lx), (sw, lw)) = (x.storage_and_layout(), weight.storage_and_layout());
    let ((sb, lb), (sd, ld)) = (bias.storage_and_layout(), dy.storage_and_layout());
    let (values, w, b, dy) = (input(&sx, lx)?, input(&sw, lw)?, input(&sb, lb)?, input(&sd, ld)?);
    let half = values.half;
    let rooms = (gpu.as_type(w, false)?, gpu.as_type(b, false)?, gpu.as_type(dy, half)?);
    let (w, b, dy) = (rooms.0.operand, rooms.1.operand, rooms.2.operand);
    let stats = gpu.address(stats);
    let (groups, silu) = (way.groups as i32, i32::from(way.silu));
    let (mut dx, mut dw, mut db) = (None, None, None);
    if x.track_op() {
        let parts = gpu.floats(2 * s.batch * way.groups * s.chunks)?;
        let gradient = gpu.room(values.len, half)?;
        let (to_parts, to_x) = (gpu.address(&parts), gradient.operand.at);
        let grid = s.grid(way.groups);
        launch!(
            &gpu,
            Name::GroupGradSums.of(half),
            grid,
            values.at,
            dy.at,
            w.at,
            b.at,
            stats,
            to_parts,
            s.size,
            s.pixels,
            groups,
            silu,
        )?;
        launch!(
            &gpu,
            Name::GroupNormGrad.of(half),
            grid,
            values.at,
            dy.at,
            w.at,
            b.at,
            stats,
            to_parts,
            to_x,
            s.size,
            s.pixels,
            groups,
            silu,
        )?;
        dx = Some(tensor(&gpu, gradient, x.shape())?);
    }
    if weight.track_op() || bias.track_op() {
        let (to_weight, to_bias) = (gpu.room(s.channels, false)?, gpu.room(s.channels, false)?);
        let grid = ((s.channels as u32, 1, 1), (THREADS as u32, 1, 1));
        let (to_w, to_b) = (to_weight.operand.at, to_bias.operand.at);
        launch!(
            &gpu,
            Name::GroupWeightGrad.of(half),
            grid,
            values.at,
            dy.at,
            w.at,
            b.at,
            stats,
            to_w,
            to_b,
            s.batch,
            s.pixels,
            s.channels as i32,
            groups,
            silu,
        )?;
        dw = weight.track_op().then(|| tensor(&gpu, to_weight, s.channels)).transpose()?;
        db = bias.track_op().then(|| tensor(&gpu, to_bias, s.channels)).transpose()?;
    }
    Ok((dx, dw, db))
}
