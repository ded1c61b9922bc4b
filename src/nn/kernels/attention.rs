//! Softmax attention in tiles, with no matrix of scores beyond a tile.

use super::math::{exp, max, sum2, total};
use super::matmul::{View, product};
use super::parallel::{SharedMut, sum_parts, tasks, zeros};
use super::simd::{dispatched, mul_add};
use std::cell::RefCell;

/// Keys of a tile.
const KEYS: usize = 512;
/// Elements of a tile of scores: with few keys, a tile has more queries.
const TILE: usize = 1 << 15;
/// Keys of a task of the backward pass.
const KEY_TASK: usize = 1024;

/// The sizes of an attention and its mask.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries.
    pub s: usize,
    /// Keys.
    pub t: usize,
    /// Features of a head.
    pub d: usize,
    /// Whether query `i` sees keys `j <= i` only.
    pub causal: bool,
}

impl Shape {
    /// Features of all heads: what the rows of the operands are apart.
    fn width(&self) -> usize {
        self.heads * self.d
    }

    /// Queries of a tile; depends on the sizes alone.
    fn queries(&self) -> usize {
        (TILE / KEYS.min(self.t)).clamp(64, 512).min(self.s)
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// The rows of one head of one sample, from row `from` on, of an operand with `len` rows.
    fn head<'a>(&self, x: &'a [f32], (b, h): (usize, usize), len: usize, from: usize) -> View<'a> {
        View::new(&x[(b * len + from) * self.width() + h * self.d..], self.width(), 1)
    }

    /// How many keys from `k0` on the query `q` sees.
    fn visible(&self, q: usize, k0: usize, keys: usize) -> usize {
        if self.causal { (q + 1).saturating_sub(k0).min(keys) } else { keys }
    }
}

/// The running softmax of the rows of a tile.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// The largest score so far.
    max: Vec<f32>,
    /// The sum of the exponentials relative to it.
    sum: Vec<f32>,
    /// What earlier results are to be scaled by.
    factor: Vec<f32>,
}

impl Running {
    fn reset(&mut self, rows: usize) {
        for (values, start) in [(&mut self.max, f32::NEG_INFINITY), (&mut self.sum, 0.0), (&mut self.factor, 0.0)] {
            values.clear();
            values.resize(rows, start);
        }
    }
}

/// The buffers of a thread, kept from task to task: to map and unmap them each time costs more than the work.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    grads: Vec<f32>,
    result: Vec<f32>,
    running: Running,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `n` elements of a buffer that grows as needed; their values are left from earlier.
fn grown(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

#[inline(always)]
fn softmax_inner<const FMA: bool>(
    shape: &Shape,
    q0: usize,
    k0: usize,
    keys: usize,
    scores: &mut [f32],
    state: &mut Running,
) {
    let Running { max: tops, sum: sums, factor: factors } = state;
    for (i, (row, (top, factor))) in scores.chunks_exact(keys).zip(tops.iter_mut().zip(factors.iter_mut())).enumerate()
    {
        let tile_top = max(&row[..shape.visible(q0 + i, k0, keys)]);
        *factor = *top;
        *top = if tile_top > *top { tile_top } else { *top };
    }
    for (factor, (sum, &top)) in factors.iter_mut().zip(sums.iter_mut().zip(tops.iter())) {
        *factor = exp::<FMA>(*factor - top);
        *sum *= *factor;
    }
    for (i, (row, (sum, &top))) in scores.chunks_exact_mut(keys).zip(sums.iter_mut().zip(tops.iter())).enumerate() {
        let (seen, masked) = row.split_at_mut(shape.visible(q0 + i, k0, keys));
        masked.fill(0.0);
        let mut lanes = [0.0; 16];
        let (blocks, rest) = seen.as_chunks_mut::<16>();
        for block in blocks {
            for j in 0..16 {
                block[j] = exp::<FMA>(block[j] - top);
                lanes[j] += block[j];
            }
        }
        for (j, x) in rest.iter_mut().enumerate() {
            *x = exp::<FMA>(*x - top);
            lanes[j] += *x;
        }
        *sum += total(lanes);
    }
}

dispatched! {
    /// Scores to exponentials relative to the running maximum of each row.
    pub fn softmax(shape: &Shape, q0: usize, k0: usize, keys: usize, scores: &mut [f32], state: &mut Running) = softmax_inner;
}

#[inline(always)]
fn probabilities_inner<const FMA: bool>(
    shape: &Shape,
    q0: usize,
    k0: usize,
    keys: usize,
    lse: &[f32],
    scores: &mut [f32],
) {
    for (i, (row, &lse)) in scores.chunks_exact_mut(keys).zip(lse).enumerate() {
        let (seen, masked) = row.split_at_mut(shape.visible(q0 + i, k0, keys));
        masked.fill(0.0);
        for x in seen {
            *x = exp::<FMA>(*x - lse);
        }
    }
}

dispatched! {
    /// Scores to probabilities by the saved log-sum-exp.
    pub fn probabilities(shape: &Shape, q0: usize, k0: usize, keys: usize, lse: &[f32], scores: &mut [f32]) = probabilities_inner;
}

#[inline(always)]
fn score_grads_inner<const FMA: bool>(keys: usize, scale: f32, p: &[f32], delta: &[f32], dp: &mut [f32]) {
    for ((p, dp), &delta) in p.chunks_exact(keys).zip(dp.chunks_exact_mut(keys)).zip(delta) {
        for (dp, &p) in dp.iter_mut().zip(p) {
            *dp = p * ((*dp - delta) * scale);
        }
    }
}

dispatched! {
    /// `dS = scale P (dP - Delta)`, in place of `dP`.
    pub fn score_grads(keys: usize, scale: f32, p: &[f32], delta: &[f32], dp: &mut [f32]) = score_grads_inner;
}

#[inline(always)]
fn head_dots_inner<const FMA: bool>(d: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((a, b), out) in a.chunks_exact(d).zip(b.chunks_exact(d)).zip(out) {
        *out = sum2::<16>(a, b, |s, a, b| mul_add::<FMA>(a, b, s));
    }
}

dispatched! {
    /// The scalar product of each `d` elements of `a` and `b`.
    pub fn head_dots(d: usize, a: &[f32], b: &[f32], out: &mut [f32]) = head_dots_inner;
}

#[inline(always)]
fn scale_rows_inner<const FMA: bool>(stride: usize, width: usize, factors: &[f32], x: &mut [f32]) {
    for (row, &factor) in x.chunks_mut(stride).zip(factors) {
        for x in &mut row[..width] {
            *x *= factor;
        }
    }
}

dispatched! {
    /// Scales the first `width` elements of rows `stride` apart.
    pub fn scale_rows(stride: usize, width: usize, factors: &[f32], x: &mut [f32]) = scale_rows_inner;
}

/// `out = softmax(scale q k^T) v` and the log-sum-exp of the scores, `(B, S, heads)`.
pub fn forward(shape: &Shape, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let queries = shape.queries();
    let blocks = shape.s.div_ceil(queries);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    tasks(shape.batch * shape.heads * blocks, |task| {
        let head = (task / blocks / shape.heads, task / blocks % shape.heads);
        SCRATCH.with_borrow_mut(|scratch| {
            forward_tile(shape, head, task % blocks * queries, [q, k, v], scratch, out, lse);
        });
    });
}

/// One tile of queries of one head of one sample, over all keys.
fn forward_tile(
    shape: &Shape,
    (b, h): (usize, usize),
    q0: usize,
    [q, k, v]: [&[f32]; 3],
    scratch: &mut Scratch,
    out: SharedMut,
    lse: SharedMut,
) {
    let Shape { heads, s, t, d, .. } = *shape;
    let n = shape.queries().min(s - q0);
    let Scratch { scores, result, running, .. } = scratch;
    let result = grown(result, n * d);
    running.reset(n);
    let query = shape.head(q, (b, h), s, q0);
    for k0 in (0..t).step_by(KEYS) {
        if shape.causal && k0 >= q0 + n {
            break;
        }
        let keys = KEYS.min(t - k0);
        let scores = grown(scores, n * keys);
        let key = shape.head(k, (b, h), t, k0).t();
        // SAFETY: `scores` is `n` rows of `keys`, and this thread's.
        unsafe { product((n, keys, d), scores.as_mut_ptr(), keys, false, query, key, shape.scale()) };
        softmax(shape, q0, k0, keys, scores, running);
        if k0 > 0 {
            scale_rows(d, d, &running.factor, result);
        }
        let (p, value) = (View::new(scores, keys, 1), shape.head(v, (b, h), t, k0));
        // SAFETY: `result` is `n` rows of `d`, and this thread's.
        unsafe { product((n, d, keys), result.as_mut_ptr(), d, k0 > 0, p, value, 1.0) };
    }
    for (i, result) in result.chunks_exact(d).enumerate() {
        let row = b * s + q0 + i;
        // SAFETY: this head of this row belongs to this task alone; the bounds are checked.
        let (out, lse) = unsafe { (out.slice(row * shape.width() + h * d, d), lse.slice(row * heads + h, 1)) };
        let factor = 1.0 / running.sum[i];
        for (o, r) in out.iter_mut().zip(result) {
            *o = r * factor;
        }
        lse[0] = running.max[i] + running.sum[i].ln();
    }
}

/// What the backward pass needs of the forward pass.
pub struct Saved<'a> {
    /// Queries `(B, S, heads d)`.
    pub q: &'a [f32],
    /// Keys `(B, T, heads d)`.
    pub k: &'a [f32],
    /// Values `(B, T, heads d)`.
    pub v: &'a [f32],
    /// The result `(B, S, heads d)`.
    pub out: &'a [f32],
    /// The log-sum-exp of the scores `(B, S, heads)`.
    pub lse: &'a [f32],
}

/// The gradients of [`forward`] in the operands that `wanted` (`q, k, v`) names; the others are empty.
///
/// With `P` recomputed from the log-sum-exp and `Delta = rowsum(out dout)`: `dv = P^T dout`,
/// `dS = scale P (dout v^T - Delta)`, `dq = dS k`, `dk = dS^T q`.
pub fn backward(shape: &Shape, saved: &Saved<'_>, dout: &[f32], wanted: [bool; 3]) -> [Vec<f32>; 3] {
    let Shape { batch, heads, s, t, d, .. } = *shape;
    let width = shape.width();
    let [want_q, want_k, want_v] = wanted;
    let key_tasks = t.div_ceil(KEY_TASK);
    let allocate = |wanted: bool, n: usize| zeros(if wanted { n } else { 0 });
    let mut dq = allocate(want_q, key_tasks * batch * s * width);
    let (mut dk, mut dv) = (allocate(want_k, batch * t * width), allocate(want_v, batch * t * width));
    let mut delta = vec![0.0; batch * s * heads];
    super::parallel::chunks(&mut delta, 4096, |i, delta| {
        let range = i * 4096 * d..(i * 4096 + delta.len()) * d;
        head_dots(d, &saved.out[range.clone()], &dout[range], delta);
    });
    let (to_q, to_k, to_v) = (SharedMut::new(&mut dq), SharedMut::new(&mut dk), SharedMut::new(&mut dv));
    let given = Given { shape, saved, dout, delta: &delta, wanted };
    tasks(batch * heads * key_tasks, |task| {
        let (head, part) = ((task / key_tasks / heads, task / key_tasks % heads), task % key_tasks);
        let to_q = to_q.from(if want_q { part * batch * s * width } else { 0 });
        SCRATCH.with_borrow_mut(|scratch| given.keys(head, part * KEY_TASK, scratch, [to_q, to_k, to_v]));
    });
    if want_q && key_tasks > 1 {
        let parts = dq;
        dq = zeros(batch * s * width);
        sum_parts(&parts, &mut dq);
    }
    [dq, dk, dv]
}

/// The operands of [`backward`], shared by its tasks.
struct Given<'a> {
    shape: &'a Shape,
    saved: &'a Saved<'a>,
    dout: &'a [f32],
    delta: &'a [f32],
    wanted: [bool; 3],
}

impl Given<'_> {
    /// What up to [`KEY_TASK`] keys from `first` on of one head of one sample add to the three gradients.
    fn keys(&self, (b, h): (usize, usize), first: usize, scratch: &mut Scratch, [to_q, to_k, to_v]: [SharedMut; 3]) {
        let (Self { shape, saved, dout, wanted: [want_q, want_k, want_v], .. }, width) = (self, self.shape.width());
        let Shape { heads, s, t, d, .. } = **shape;
        let Scratch { scores, grads, result, .. } = scratch;
        let end = t.min(first + KEY_TASK);
        for k0 in (first..end).step_by(KEYS) {
            let keys = KEYS.min(end - k0);
            let (key, value) = (shape.head(saved.k, (b, h), t, k0), shape.head(saved.v, (b, h), t, k0));
            let (key_offset, key_extent) = ((b * t + k0) * width + h * d, (keys - 1) * width + d);
            for q0 in (0..s).step_by(shape.queries()) {
                let n = shape.queries().min(s - q0);
                if shape.causal && k0 >= q0 + n {
                    continue;
                }
                let (query, grad) = (shape.head(saved.q, (b, h), s, q0), shape.head(dout, (b, h), s, q0));
                let (row_lse, row_delta) = grown(result, 2 * n).split_at_mut(n);
                for i in 0..n {
                    let at = (b * s + q0 + i) * heads + h;
                    (row_lse[i], row_delta[i]) = (saved.lse[at], self.delta[at]);
                }
                let (p, dp) = (grown(scores, n * keys), grown(grads, n * keys));
                // SAFETY: `p` is `n` rows of `keys`, and this thread's.
                unsafe { product((n, keys, d), p.as_mut_ptr(), keys, false, query, key.t(), shape.scale()) };
                probabilities(shape, q0, k0, keys, row_lse, p);
                if *want_v {
                    let dst = to_v.at(key_offset, key_extent);
                    // SAFETY: these keys of this head belong to this task alone, and `at` checks the bounds.
                    unsafe { product((keys, d, n), dst, width, true, View::new(p, keys, 1).t(), grad, 1.0) };
                }
                if !want_q && !want_k {
                    continue;
                }
                // SAFETY: `dp` is `n` rows of `keys`, and this thread's.
                unsafe { product((n, keys, d), dp.as_mut_ptr(), keys, false, grad, value.t(), 1.0) };
                score_grads(keys, shape.scale(), p, row_delta, dp);
                let ds = View::new(dp, keys, 1);
                if *want_q {
                    let dst = to_q.at((b * s + q0) * width + h * d, (n - 1) * width + d);
                    // SAFETY: these queries of this head, in this task's part of `dq`, belong to this task alone.
                    unsafe { product((n, d, keys), dst, width, true, ds, key, 1.0) };
                }
                if *want_k {
                    let dst = to_k.at(key_offset, key_extent);
                    // SAFETY: as for `dv`.
                    unsafe { product((keys, d, n), dst, width, true, ds.t(), query, 1.0) };
                }
            }
        }
    }
}
