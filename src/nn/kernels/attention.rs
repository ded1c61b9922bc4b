//! Softmax attention in tiles, with no matrix of scores beyond a tile.

use super::math::{exp, max, sum2};
use super::matmul::{View, product};
use super::parallel::{SharedMut, sum_parts, tasks};
use super::simd::{dispatched, mul_add};

/// Queries of a tile.
const QUERIES: usize = 128;
/// Keys of a tile.
const KEYS: usize = 512;
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

/// The running softmax of a row: its maximum and the sum of exponentials.
#[derive(Clone, Copy)]
pub struct Running {
    max: f32,
    sum: f32,
}

#[inline(always)]
fn softmax_inner<const FMA: bool>(
    shape: &Shape,
    q0: usize,
    k0: usize,
    keys: usize,
    scores: &mut [f32],
    state: &mut [Running],
    factors: &mut [f32],
) {
    for (i, ((row, state), factor)) in scores.chunks_exact_mut(keys).zip(state).zip(factors).enumerate() {
        let (seen, masked) = row.split_at_mut(shape.visible(q0 + i, k0, keys));
        masked.fill(0.0);
        *factor = 1.0;
        if seen.is_empty() {
            continue;
        }
        let top = max(seen);
        let top = if top > state.max { top } else { state.max };
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
        *factor = exp::<FMA>(state.max - top);
        *state = Running { max: top, sum: mul_add::<FMA>(state.sum, *factor, super::math::total(lanes)) };
    }
}

dispatched! {
    /// Scores to exponentials relative to the running maximum; `factors` is what earlier results are to be scaled by.
    pub fn softmax(shape: &Shape, q0: usize, k0: usize, keys: usize, scores: &mut [f32], state: &mut [Running], factors: &mut [f32]) = softmax_inner;
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
    let Shape { heads, s, t, d, .. } = *shape;
    let width = shape.width();
    let blocks = s.div_ceil(QUERIES);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    tasks(shape.batch * heads * blocks, |task| {
        let (b, h, q0) = (task / blocks / heads, task / blocks % heads, task % blocks * QUERIES);
        let n = QUERIES.min(s - q0);
        let mut scores = vec![0.0; n * KEYS.min(t)];
        let mut result = vec![0.0; n * d];
        let mut state = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; n];
        let mut factors = vec![0.0; n];
        let query = shape.head(q, (b, h), s, q0);
        for k0 in (0..t).step_by(KEYS) {
            if shape.causal && k0 >= q0 + n {
                break;
            }
            let keys = KEYS.min(t - k0);
            let scores = &mut scores[..n * keys];
            let key = shape.head(k, (b, h), t, k0).t();
            // SAFETY: `scores` is `n` rows of `keys`, and local.
            unsafe { product((n, keys, d), scores.as_mut_ptr(), keys, false, query, key, shape.scale()) };
            softmax(shape, q0, k0, keys, scores, &mut state, &mut factors);
            if k0 > 0 {
                scale_rows(d, d, &factors, &mut result);
            }
            let (p, value) = (View::new(scores, keys, 1), shape.head(v, (b, h), t, k0));
            // SAFETY: `result` is `n` rows of `d`, and local.
            unsafe { product((n, d, keys), result.as_mut_ptr(), d, k0 > 0, p, value, 1.0) };
        }
        for (i, (state, result)) in state.iter().zip(result.chunks_exact(d)).enumerate() {
            let row = b * s + q0 + i;
            // SAFETY: this head of this row belongs to this task alone; the bounds are checked.
            let (out, lse) = unsafe { (out.slice(row * width + h * d, d), lse.slice(row * heads + h, 1)) };
            let factor = 1.0 / state.sum;
            out.iter_mut().zip(result).for_each(|(o, r)| *o = r * factor);
            lse[0] = state.max + state.sum.ln();
        }
    });
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
    let allocate = |wanted: bool, n: usize| vec![0.0; if wanted { n } else { 0 }];
    let mut dq = allocate(want_q, key_tasks * batch * s * width);
    let (mut dk, mut dv) = (allocate(want_k, batch * t * width), allocate(want_v, batch * t * width));
    let mut delta = vec![0.0; batch * s * heads];
    super::parallel::chunks(&mut delta, 4096, |i, delta| {
        let range = i * 4096 * d..(i * 4096 + delta.len()) * d;
        head_dots(d, &saved.out[range.clone()], &dout[range], delta);
    });
    let (to_q, to_k, to_v) = (SharedMut::new(&mut dq), SharedMut::new(&mut dk), SharedMut::new(&mut dv));
    tasks(batch * heads * key_tasks, |task| {
        let (b, h, part) = (task / key_tasks / heads, task / key_tasks % heads, task % key_tasks);
        let end = t.min((part + 1) * KEY_TASK);
        let mut scratch = [vec![0.0; QUERIES.min(s) * KEYS.min(t)], vec![0.0; QUERIES.min(s) * KEYS.min(t)]];
        let (mut row_lse, mut row_delta) = (vec![0.0; QUERIES], vec![0.0; QUERIES]);
        for k0 in (part * KEY_TASK..end).step_by(KEYS) {
            let keys = KEYS.min(end - k0);
            let (key, value) = (shape.head(saved.k, (b, h), t, k0), shape.head(saved.v, (b, h), t, k0));
            let key_offset = (b * t + k0) * width + h * d;
            for q0 in (0..s).step_by(QUERIES) {
                let n = QUERIES.min(s - q0);
                if shape.causal && k0 >= q0 + n {
                    continue;
                }
                let (query, grad) = (shape.head(saved.q, (b, h), s, q0), shape.head(dout, (b, h), s, q0));
                for i in 0..n {
                    let at = (b * s + q0 + i) * heads + h;
                    (row_lse[i], row_delta[i]) = (saved.lse[at], delta[at]);
                }
                let [p, dp] = &mut scratch;
                let (p, dp) = (&mut p[..n * keys], &mut dp[..n * keys]);
                // SAFETY: `p` is `n` rows of `keys`, and local.
                unsafe { product((n, keys, d), p.as_mut_ptr(), keys, false, query, key.t(), shape.scale()) };
                probabilities(shape, q0, k0, keys, &row_lse, p);
                let rows = (keys - 1) * width + d;
                if want_v {
                    let dst = to_v.at(key_offset, rows);
                    // SAFETY: these keys of this head belong to this task alone, and `at` checks the bounds.
                    unsafe { product((keys, d, n), dst, width, true, View::new(p, keys, 1).t(), grad, 1.0) };
                }
                if !want_q && !want_k {
                    continue;
                }
                // SAFETY: `dp` is `n` rows of `keys`, and local.
                unsafe { product((n, keys, d), dp.as_mut_ptr(), keys, false, grad, value.t(), 1.0) };
                score_grads(keys, shape.scale(), p, &row_delta, dp);
                let ds = View::new(dp, keys, 1);
                if want_q {
                    let offset = ((part * batch + b) * s + q0) * width + h * d;
                    let dst = to_q.at(offset, (n - 1) * width + d);
                    // SAFETY: these queries of this head in this part of `dq` belong to this task alone.
                    unsafe { product((n, d, keys), dst, width, true, ds, key, 1.0) };
                }
                if want_k {
                    let dst = to_k.at(key_offset, rows);
                    // SAFETY: as for `dv`.
                    unsafe { product((keys, d, n), dst, width, true, ds.t(), query, 1.0) };
                }
            }
        }
    });
    if want_q && key_tasks > 1 {
        let parts = dq;
        dq = vec![0.0; batch * s * width];
        sum_parts(&parts, &mut dq);
    }
    [dq, dk, dv]
}
