//! Attention by [`flash`] where heads are narrow; otherwise in shares of queries: of the scores, never more than a share is in memory. The backward
//! pass computes a share's probabilities again from the log-sum-exp: `dV = P^T dO`, `dS = P (dO V^T - rowsum(O dO))`, `dQ = dS K`, `dK = dS^T Q`.

mod flash;

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// Scores of up to so many bytes at a time: they shall still lie in the cache when they are read.
const SCORES: usize = 32 << 20;

/// Sizes of an attention.
#[derive(Clone, Copy)]
pub struct Way {
    pub batch: usize,
    pub heads: usize,
    pub s: usize,
    pub t: usize,
    pub d: usize,
    pub causal: bool,
    /// Whether products are of `bf16`.
    pub half: bool,
}

/// Heads and rows of queries that are worked on at a time: several heads whole, or rows of one.
struct Share {
    /// The first head, counted over all samples.
    head: usize,
    heads: usize,
    /// The first query of the head.
    row: usize,
    rows: usize,
}

impl Way {
    /// Elements from a row of scores to the next: products of `bf16` want lines that are aligned.
    fn line(&self) -> usize {
        self.t.next_multiple_of(8)
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    fn shares(&self) -> Vec<Share> {
        let all = self.batch * self.heads;
        let rows = (SCORES / (4 * self.line()).max(1)).max(1);
        if rows < self.s {
            let head = |head| (0..self.s).step_by(rows).map(move |row| (head, row));
            let share = |(head, row)| Share { head, heads: 1, row, rows: rows.min(self.s - row) };
            return (0..all).flat_map(head).map(share).collect();
        }
        let heads = (rows / self.s).clamp(1, all);
        let share = |head| Share { head, heads: heads.min(all - head), row: 0, rows: self.s };
        (0..all).step_by(heads).map(share).collect()
    }
}

/// Queries, keys or values, the heads apart: `(batch, heads, len, d)`.
struct Heads(Room);

impl Heads {
    fn new(gpu: &Gpu, way: &Way, x: Operand, len: usize, half: bool) -> Result<Self> {
        let room = gpu.room(x.len, half)?;
        let whole = gpu.as_type(x, false)?;
        let (x, name) = (whole.operand, Name::HeadsApart.of(half));
        each!(gpu, name, x.len, x.at, room.operand.at, x.len, len, way.heads, way.d)?;
        Ok(Self(room))
    }

    /// The rows of a share, `len` rows to a head, from row `row` of the share's first head.
    fn matrix(&self, way: &Way, share: &Share, len: usize, row: usize) -> Matrix {
        let at = self.0.operand.from((share.head * len + row) * way.d);
        Matrix { at, ..Matrix::new(&self.0.operand, way.d).apart(len * way.d) }
    }
}

/// The heads side by side, as `f32` or `bf16`.
fn together(gpu: &Gpu, way: &Way, x: &Floats, len: usize, half: bool) -> Result<Room> {
    let n = way.batch * way.heads * len * way.d;
    let y = gpu.room(n, false)?;
    each!(gpu, Name::HeadsTogether, n, gpu.address(x), y.operand.at, n, len, way.heads, way.d)?;
    gpu.given_as(y, half)
}

/// A block for each of a share's rows.
fn rows(share: &Share, t: usize) -> Grid {
    let threads = t.next_multiple_of(32).clamp(32, THREADS);
    (((share.heads * share.rows) as u32, 1, 1), (threads as u32, 1, 1))
}

/// `q` `(B, S, heads d)`, `k` and `v` `(B, T, heads d)` -> `(B, S, heads d)`, and the log-sum-exp `(B, heads, S)`.
pub fn forward(
    way: &Way,
    (q, lq): (&CudaStorage, &Layout),
    (k, lk): (&CudaStorage, &Layout),
    (v, lv): (&CudaStorage, &Layout),
) -> Result<((CudaStorage, Shape), Floats)> {
    let gpu = Gpu::new(&q.device)?;
    let half = way.half;
    let (q, k, v) = (operand(q, lq)?, operand(k, lk)?, operand(v, lv)?);
    let (len, given) = (q.len, q.half);
    if let Some((out, lse)) = flash::forward(&gpu, way, [q, k, v])? {
        return Ok((output(&gpu, out, lq.shape().clone())?, lse));
    }
    let (q, k, v) = (
        Heads::new(&gpu, way, q, way.s, half)?,
        Heads::new(&gpu, way, k, way.t, half)?,
        Heads::new(&gpu, way, v, way.t, half)?,
    );
    let (out, lse) = (gpu.floats(len)?, gpu.floats(way.batch * way.heads * way.s)?);
    let to = Operand { at: gpu.address(&out), len, half: false };
    let lse_at = Operand { at: gpu.address(&lse), len: 0, half: false };
    let line = way.line();
    for share in way.shares() {
        let count = share.heads * share.rows;
        let scores = gpu.floats(count * line)?;
        let scores_at = Operand { at: gpu.address(&scores), len: count * line, half: false };
        let matrix = Matrix::new(&scores_at, line).apart(share.rows * line);
        let sizes = Sizes { batch: share.heads, m: share.rows, n: way.t, k: way.d };
        let (queries, keys) = (q.matrix(way, &share, way.s, share.row), k.matrix(way, &share, way.t, 0));
        product(&gpu, sizes, queries, keys.t(), (way.scale(), 0.0), matrix)?;
        let first = share.head * way.s + share.row;
        let (t, causal) = (way.t as i32, i32::from(way.causal));
        let arguments = (lse_at.from(first), t, line as i32, share.row as i32, way.s as i32, causal);
        let (halves, probabilities) = if half {
            let halves = gpu.room(count * line, true)?;
            let at = halves.operand.at;
            softmax(&gpu, Name::SoftmaxBf16, rows(&share, way.t), scores_at.at, at, arguments)?;
            (Some(halves), Matrix { at, half: true, ..matrix })
        } else {
            softmax(&gpu, Name::Softmax, rows(&share, way.t), scores_at.at, scores_at.at, arguments)?;
            (None, matrix)
        };
        let sizes = Sizes { batch: share.heads, m: share.rows, n: way.d, k: way.t };
        let to = Matrix { at: to.from(first * way.d), ..Matrix::new(&to, way.d).apart(way.s * way.d) };
        product(&gpu, sizes, probabilities, v.matrix(way, &share, way.t, 0), (1.0, 0.0), to)?;
        drop((halves, scores));
    }
    let out = together(&gpu, way, &out, way.s, given)?;
    Ok((output(&gpu, out, lq.shape().clone())?, lse))
}

fn softmax(
    gpu: &Gpu,
    name: Name,
    grid: Grid,
    scores: u64,
    probabilities: u64,
    (lse, t, line, row, s, causal): (u64, i32, i32, i32, i32, i32),
) -> Result<()> {
    launch!(gpu, name, grid, scores, probabilities, lse, t, line, row, s, causal)
}

/// `dq`, `dk` and `dv`, each where tracked.
pub fn backward(
    way: &Way,
    [q, k, v, out]: [&Tensor; 4],
    lse: &Floats,
    dout: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(dout)?;
    let half = way.half;
    let wanted = [q.track_op(), k.track_op(), v.track_op()];
    if let Some([dq, dk, dv]) = flash::backward(&gpu, way, [q, k, v, out, dout], lse)? {
        return Ok((dq, dk, dv));
    }
    let apart = |x: &Tensor, len: usize, half: bool| -> Result<Heads> {
        let (storage, layout) = x.storage_and_layout();
        Heads::new(&gpu, way, input(&storage, layout)?, len, half)
    };
    let (queries, keys, values) = (apart(q, way.s, half)?, apart(k, way.t, half)?, apart(v, way.t, half)?);
    let all = way.batch * way.heads;
    let delta = gpu.floats(all * way.s)?;
    let delta_at = Operand { at: gpu.address(&delta), len: 0, half: false };
    let dout = {
        let (out, dout) = (apart(out, way.s, false)?, apart(dout, way.s, false)?);
        let n = all * way.s;
        let (o, d) = (out.0.operand.at, dout.0.operand.at);
        launch!(&gpu, Name::AttentionDelta, warps(n), o, d, delta_at.at, n, way.d, i32::from(half))?;
        if half { Heads(gpu.as_type(dout.0.operand, true)?) } else { dout }
    };
    let gradient = |wanted: bool, len: usize| wanted.then(|| gpu.floats(all * len * way.d)).transpose();
    let (dq, dk, dv) = (gradient(wanted[0], way.s)?, gradient(wanted[1], way.t)?, gradient(wanted[2], way.t)?);
    let line = way.line();
    let lse_at = Operand { at: gpu.address(lse), len: 0, half: false };
    for share in way.shares() {
        let count = share.heads * share.rows;
        let (scores, slopes) = (gpu.floats(count * line)?, gpu.floats(count * line)?);
        let matrix = |at: u64, half: bool| Matrix { at, half, line, transposed: false, apart: share.rows * line };
        let (scores_at, slopes_at) = (gpu.address(&scores), gpu.address(&slopes));
        let sizes = Sizes { batch: share.heads, m: share.rows, n: way.t, k: way.d };
        let mine = |heads: &Heads| heads.matrix(way, &share, way.s, share.row);
        let theirs = |heads: &Heads| heads.matrix(way, &share, way.t, 0);
        product(&gpu, sizes, mine(&queries), theirs(&keys).t(), (way.scale(), 0.0), matrix(scores_at, false))?;
        product(&gpu, sizes, mine(&dout), theirs(&values).t(), (1.0, 0.0), matrix(slopes_at, false))?;
        let first = share.head * way.s + share.row;
        let halves = if half { Some((gpu.room(count * line, true)?, gpu.room(count * line, true)?)) } else { None };
        let (p, ds) = match &halves {
            Some((p, ds)) => (p.operand.at, ds.operand.at),
            None => (scores_at, slopes_at),
        };
        let name = Name::SoftmaxGrad.of(half);
        let (lse, delta) = (lse_at.from(first), delta_at.from(first));
        let (t, row, s, causal) = (way.t as i32, share.row as i32, way.s as i32, i32::from(way.causal));
        launch!(
            &gpu,
            name,
            rows(&share, way.t),
            scores_at,
            slopes_at,
            lse,
            delta,
            p,
            ds,
            t,
            line as i32,
            row,
            s,
            causal,
            way.scale(),
        )?;
        let (p, ds) = (matrix(p, half), matrix(ds, half));
        // shares of one head add up, one after the other
        let beta = if share.row == 0 { 0.0 } else { 1.0 };
        let sum = |to: &Floats, len: usize, row: usize| {
            let to = Operand { at: gpu.address(to), len: 0, half: false };
            let at = to.from((share.head * len + row) * way.d);
            Matrix { at, ..Matrix::new(&to, way.d).apart(len * way.d) }
        };
        let of_queries = Sizes { batch: share.heads, m: share.rows, n: way.d, k: way.t };
        let of_keys = Sizes { batch: share.heads, m: way.t, n: way.d, k: share.rows };
        if let Some(dv) = &dv {
            product(&gpu, of_keys, p.t(), mine(&dout), (1.0, beta), sum(dv, way.t, 0))?;
        }
        if let Some(dk) = &dk {
            product(&gpu, of_keys, ds.t(), mine(&queries), (1.0, beta), sum(dk, way.t, 0))?;
        }
        if let Some(dq) = &dq {
            product(&gpu, of_queries, ds, theirs(&keys), (1.0, 0.0), sum(dq, way.s, share.row))?;
        }
    }
    let finish = |gradient: Option<Floats>, of: &Tensor, len: usize| -> Result<Option<Tensor>> {
        gradient.map(|gradient| tensor(&gpu, together(&gpu, way, &gradient, len, is_half(of))?, of.shape())).transpose()
    };
    Ok((finish(dq, q, way.s)?, finish(dk, k, way.t)?, finish(dv, v, way.t)?))
}
