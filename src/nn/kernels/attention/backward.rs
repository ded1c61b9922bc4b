//! The gradients of an attention, tile by tile from the saved log-sum-exp.

use super::{Shape, packed};
use crate::nn::kernels::gemm::Onto;
use crate::nn::kernels::math::{exp, sum2};
use crate::nn::kernels::matmul::{View, product};
use crate::nn::kernels::parallel::{SharedMut, chunks, grown, sum_parts, tasks, zeros};
use crate::nn::kernels::simd::{dispatched, mul_add};
use std::cell::RefCell;

/// Keys of a tile.
const KEYS: usize = 512;
/// Elements of a tile of scores: with few keys, a tile has more queries.
const TILE: usize = 1 << 15;
/// Keys of a task.
const KEY_TASK: usize = 1024;

impl Shape {
    /// Queries of a tile; depends on the sizes alone.
    fn queries(&self) -> usize {
        (TILE / KEYS.min(self.t)).clamp(64, 512).min(self.s)
    }

    /// How many keys from `k0` on the query `q` sees.
    fn visible(&self, q: usize, k0: usize, keys: usize) -> usize {
        if self.causal { (q + 1).saturating_sub(k0).min(keys) } else { keys }
    }
}

/// The buffers of a thread, kept from task to task: to map and unmap them each time costs more than the work.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    grads: Vec<f32>,
    result: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    key_rows: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
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

/// The gradients of [`super::forward`] in the operands that `wanted` (`q, k, v`) names; the others are empty.
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
    chunks(&mut delta, 4096, |i, delta| {
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
        let (&Self { shape, saved, dout, wanted: [want_q, want_k, want_v], .. }, width) = (self, self.shape.width());
        let Shape { heads, s, t, d, .. } = *shape;
        let Scratch { scores, grads, result, key, value, key_rows, .. } = scratch;
        let end = t.min(first + KEY_TASK);
        for k0 in (first..end).step_by(KEYS) {
            let keys = KEYS.min(end - k0);
            let rows = shape.head(saved.k, (b, h), t, k0);
            let key = packed(rows.t(), d, keys, key);
            let value = (want_q || want_k).then(|| packed(shape.head(saved.v, (b, h), t, k0).t(), d, keys, value));
            let key_rows = want_q.then(|| packed(rows, keys, d, key_rows));
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
                unsafe { key.multiply((n, 0, keys), query, p.as_mut_ptr(), keys, Onto::Nothing, shape.scale()) };
                probabilities(shape, q0, k0, keys, row_lse, p);
                if want_v {
                    let dst = to_v.at(key_offset, key_extent);
                    // SAFETY: these keys of this head belong to this task alone, and `at` checks the bounds.
                    unsafe { product((keys, d, n), dst, width, true, View::new(&*p, keys, 1).t(), grad, 1.0) };
                }
                let Some(value) = value else { continue };
                // SAFETY: `dp` is `n` rows of `keys`, and this thread's.
                unsafe { value.multiply((n, 0, keys), grad, dp.as_mut_ptr(), keys, Onto::Nothing, 1.0) };
                score_grads(keys, shape.scale(), p, row_delta, dp);
                let ds = View::new(&*dp, keys, 1);
                if let Some(key_rows) = key_rows {
                    let dst = to_q.at((b * s + q0) * width + h * d, (n - 1) * width + d);
                    // SAFETY: these queries of this head, in this task's part of `dq`, belong to this task alone.
                    unsafe { key_rows.multiply((n, 0, d), ds, dst, width, Onto::Before, 1.0) };
                }
                if want_k {
                    let dst = to_k.at(key_offset, key_extent);
                    // SAFETY: as for `dv`.
                    unsafe { product((keys, d, n), dst, width, true, ds.t(), query, 1.0) };
                }
            }
        }
    }
}
