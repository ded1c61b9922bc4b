//! The gradients of an attention, tile by tile from the saved log-sum-exp.
//!
//! Scores are computed panel by panel of keys, the keys innermost: `P` and `dS` come out of their products in the very order in
//! which `dv^T = dout^T P` and `dk^T = q^T dS` read their right operands, and `dq = dS k` its left one.

use super::{LANES, Shape, packed};
use crate::nn::kernels::gemm::amx::{self, Line, Rounded};
use crate::nn::kernels::gemm::{Onto, Order, Panels, Tiles};
use crate::nn::kernels::math::{exp, sum2};
use crate::nn::kernels::parallel::{SharedMut, add_parts, chunks, grown, tasks, zeros};
use crate::nn::kernels::simd::{dispatched, mul_add};
use std::cell::RefCell;

/// Keys of a tile: what the product that gives `dq` sums in registers.
const KEYS: usize = 384;
/// Queries of a tile: what those that give `dk` and `dv` sum; a tile of both stays in the core's cache.
const QUERIES: usize = 192;
/// Keys of a task.
const KEY_TASK: usize = 4 * KEYS;

/// The buffers of a thread, kept from task to task: to map and unmap them each time costs more than the work.
#[derive(Default)]
struct Scratch {
    /// Probabilities of one panel of keys.
    probabilities: Vec<f32>,
    /// Gradients of the scores, panel after panel of keys.
    grads: Vec<f32>,
    /// Log-sum-exp and `Delta` of the queries.
    rows: Vec<f32>,
    /// Packed keys and values.
    right: [Vec<f32>; 3],
    /// Packed queries and their gradients.
    left: [Vec<f32>; 2],
    /// The same as features by queries, of a whole head.
    columns: [Vec<f32>; 2],
    /// The gradients of keys and values, features by keys.
    sums: [Vec<f32>; 2],
    /// Rounded queries and keys.
    rounded: [Vec<Line>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[inline(always)]
fn probabilities_inner<const FMA: bool>(width: usize, hidden: Option<(usize, usize)>, lse: &[f32], scores: &mut [f32]) {
    match width {
        32 => probabilities_of::<FMA, 32>(hidden, lse, scores),
        16 => probabilities_of::<FMA, 16>(hidden, lse, scores),
        8 => probabilities_of::<FMA, 8>(hidden, lse, scores),
        _ => probabilities_of::<FMA, LANES>(hidden, lse, scores),
    }
}

/// The probabilities of `W` keys side by side.
#[inline(always)]
fn probabilities_of<const FMA: bool, const W: usize>(hidden: Option<(usize, usize)>, lse: &[f32], scores: &mut [f32]) {
    for (i, (row, &lse)) in scores.as_chunks_mut::<W>().0.iter_mut().zip(lse).enumerate() {
        for x in row.iter_mut() {
            *x = exp::<FMA>(*x - lse);
        }
        if let Some((q0, k0)) = hidden {
            row[(q0 + i + 1).saturating_sub(k0).min(W)..].fill(0.0);
        }
    }
}

dispatched! {
    /// Scores, `(queries, width)`, to probabilities by the saved log-sum-exp. With `hidden`, the first query and the first key,
    /// later keys are not seen.
    pub fn probabilities(width: usize, hidden: Option<(usize, usize)>, lse: &[f32], scores: &mut [f32]) = probabilities_inner;
}

#[inline(always)]
fn score_grads_inner<const FMA: bool>(width: usize, scale: f32, p: &[f32], delta: &[f32], dp: &mut [f32]) {
    match width {
        32 => score_grads_of::<32>(scale, p, delta, dp),
        16 => score_grads_of::<16>(scale, p, delta, dp),
        8 => score_grads_of::<8>(scale, p, delta, dp),
        _ => score_grads_of::<LANES>(scale, p, delta, dp),
    }
}

#[inline(always)]
fn score_grads_of<const W: usize>(scale: f32, p: &[f32], delta: &[f32], dp: &mut [f32]) {
    for ((p, dp), &delta) in p.as_chunks::<W>().0.iter().zip(dp.as_chunks_mut::<W>().0).zip(delta) {
        for l in 0..W {
            dp[l] = p[l] * ((dp[l] - delta) * scale);
        }
    }
}

dispatched! {
    /// `dS = scale P (dP - Delta)`, in place of `dP`.
    pub fn score_grads(width: usize, scale: f32, p: &[f32], delta: &[f32], dp: &mut [f32]) = score_grads_inner;
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
    /// Queries `(B, S, heads d)`, rows as far apart as the shape says.
    pub q: &'a [f32],
    /// Keys `(B, T, heads d)`, as far apart.
    pub k: &'a [f32],
    /// Values `(B, T, heads d)`, as far apart.
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
    let n = [shape.s, shape.t, shape.t].map(|rows| shape.batch * rows * shape.apart);
    let mut gradients = [0, 1, 2].map(|i| zeros(if wanted[i] { n[i] } else { 0 }));
    let key_tasks = shape.t.div_ceil(KEY_TASK);
    // what the first task of a head adds to the queries' gradients is in place, what the others add beside it
    let mut more = zeros(if wanted[0] { (key_tasks - 1) * n[0] } else { 0 });
    let to = gradients.each_mut().map(|gradient| SharedMut::new(gradient));
    add_gradients(shape, saved, dout, wanted, to, SharedMut::new(&mut more));
    if !more.is_empty() {
        add_parts(&more, &mut gradients[0]);
    }
    gradients
}

/// Most keys of [`backward_beside`].
pub const FEW_KEYS: usize = KEY_TASK;

/// As [`backward`], of queries, keys and values that lie side by side in rows of `3 heads d`: so do all three gradients. Of up to
/// [`FEW_KEYS`] keys.
pub fn backward_beside(shape: &Shape, saved: &Saved<'_>, dout: &[f32]) -> Vec<f32> {
    let width = shape.width();
    assert!(shape.apart == 3 * width && shape.s == shape.t && shape.t <= FEW_KEYS, "operands are not side by side");
    let mut gradients = zeros(shape.batch * shape.s * shape.apart);
    let to = SharedMut::new(&mut gradients);
    add_gradients(shape, saved, dout, [true; 3], [to, to.from(width), to.from(2 * width)], SharedMut::new(&mut []));
    gradients
}

/// Adds the gradients to what lies at `to`, of the queries those of each [`KEY_TASK`] keys but the first to a part of `more`.
fn add_gradients(
    shape: &Shape,
    saved: &Saved<'_>,
    dout: &[f32],
    wanted: [bool; 3],
    [to_q, to_k, to_v]: [SharedMut; 3],
    more: SharedMut,
) {
    let Shape { batch, heads, s, t, d, apart, .. } = *shape;
    let key_tasks = t.div_ceil(KEY_TASK);
    let mut delta = vec![0.0; batch * s * heads];
    chunks(&mut delta, 4096, |i, delta| {
        let range = i * 4096 * d..(i * 4096 + delta.len()) * d;
        head_dots(d, &saved.out[range.clone()], &dout[range], delta);
    });
    let given = Given { shape, saved, dout, delta: &delta, wanted };
    tasks(batch * heads * key_tasks, |task| {
        let (head, part) = ((task / key_tasks / heads, task / key_tasks % heads), task % key_tasks);
        let to_q = if part == 0 || !wanted[0] { to_q } else { more.from((part - 1) * batch * s * apart) };
        SCRATCH.with_borrow_mut(|scratch| given.keys(head, part * KEY_TASK, scratch, [to_q, to_k, to_v]));
    });
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
    fn keys(&self, (b, h): (usize, usize), first: usize, scratch: &mut Scratch, to: [SharedMut; 3]) {
        let &Self { shape, saved, dout, wanted: [_, want_k, want_v], .. } = self;
        let (s, d) = (shape.s, shape.d);
        let sides = [(shape.head(saved.q, (b, h), s, 0), want_k), (shape.result_head(dout, (b, h), 0), want_v)];
        for ((x, wanted), packed) in sides.into_iter().zip(&mut scratch.columns) {
            if wanted {
                Tiles::pack_parts(x.t(), (d, s), QUERIES, packed);
            }
        }
        let end = shape.t.min(first + KEY_TASK);
        for k0 in (first..end).step_by(KEYS) {
            self.block((b, h), k0, KEYS.min(end - k0), scratch, to);
        }
    }

    /// The same of `keys` keys from `k0` on.
    fn block(
        &self,
        (b, h): (usize, usize),
        k0: usize,
        keys: usize,
        scratch: &mut Scratch,
        [to_q, to_k, to_v]: [SharedMut; 3],
    ) {
        let &Self { shape, saved, dout, wanted: [want_q, want_k, want_v], .. } = self;
        let Shape { heads, s, t, d, .. } = *shape;
        let Scratch { probabilities: p_buffer, grads, rows, right, left, columns, sums, rounded } = scratch;
        let [key, value, key_rows] = right;
        let of_keys = |x| shape.head(x, (b, h), t, k0);
        let key = packed(of_keys(saved.k).t(), d, keys, key);
        let tiles = shape.on_tiles().then(amx::Tiles::begin);
        let [rounded_query, rounded_key] = rounded;
        let rounded_key = tiles.as_ref().map(|_| Rounded::columns(of_keys(saved.k).t(), (d, keys), rounded_key));
        let value = (want_q || want_k).then(|| packed(of_keys(saved.v).t(), d, keys, value));
        let key_rows = want_q.then(|| packed(of_keys(saved.k), keys, d, key_rows));
        let panel = key.columns();
        let [dk, dv] = sums.each_mut().map(|sums| grown(sums, d * keys.next_multiple_of(panel)));
        let mut onto = Onto::Nothing;
        for q0 in (0..s).step_by(QUERIES) {
            let n = QUERIES.min(s - q0);
            if shape.causal && k0 >= q0 + n {
                continue;
            }
            let (query, grad) = (shape.head(saved.q, (b, h), s, q0), shape.result_head(dout, (b, h), q0));
            let [a, b_] = left.each_mut();
            let (query_rows, grad_rows) = (Tiles::pack(query, n, d, a), Tiles::pack(grad, n, d, b_));
            let query = want_k.then(|| Tiles::part(&columns[0], d, q0, n));
            let grad = want_v.then(|| Tiles::part(&columns[1], d, q0, n));
            let (row_lse, row_delta) = grown(rows, 2 * n).split_at_mut(n);
            for i in 0..n {
                let at = (b * s + q0 + i) * heads + h;
                (row_lse[i], row_delta[i]) = (saved.lse[at], self.delta[at]);
            }
            let rounded = tiles.as_ref().zip(rounded_key).map(|(tiles, key)| {
                let query = Rounded::rows(shape.head(saved.q, (b, h), s, q0), (n, d), rounded_query);
                (tiles, query, key)
            });
            let grads = grown(grads, n * keys.next_multiple_of(panel));
            for at in (0..keys).step_by(panel) {
                let order = Order::new(n, panel.min(keys - at));
                let (count, width) = (panel.min(keys - at), order.width());
                let p = grown(p_buffer, order.len());
                // SAFETY: `p` is `n` rows of `width`, and this thread's; so are the buffers below.
                unsafe {
                    match rounded {
                        // as in the forward pass, whose sums the probabilities are to fit
                        Some((tiles, query, key)) => {
                            query.times(tiles, key, (at, count), p.as_mut_ptr(), width, Onto::Nothing, shape.scale());
                        }
                        None => key.times((at, count), query_rows, p.as_mut_ptr(), width, Onto::Nothing, shape.scale()),
                    }
                }
                let hidden = shape.causal.then(|| (q0, k0 + at));
                probabilities(width, hidden, row_lse, &mut p[..n * width]);
                if let Some(grad) = grad {
                    let dst = dv[at * d..][..width * d].as_mut_ptr();
                    // SAFETY: as above.
                    unsafe { Panels::new(order, p).times((0, count), grad, dst, width, onto, 1.0) };
                }
                let Some(value) = value else { continue };
                let dp = &mut grads[at * n..][..n * width];
                // SAFETY: as above.
                unsafe { value.times((at, count), grad_rows, dp.as_mut_ptr(), width, Onto::Nothing, 1.0) };
                score_grads(width, shape.scale(), &p[..n * width], row_delta, dp);
                if let Some(query) = query {
                    let dst = dk[at * d..][..width * d].as_mut_ptr();
                    // SAFETY: as above.
                    unsafe { Panels::new(order, dp).times((0, count), query, dst, width, onto, 1.0) };
                }
            }
            onto = Onto::Before;
            if let Some(key_rows) = key_rows {
                let ds = Tiles::in_panels(grads, n, keys);
                let dst = to_q.at((b * s + q0) * shape.apart + h * d, (n - 1) * shape.apart + d);
                // SAFETY: these queries of this head, in this task's part of `dq`, belong to this task alone.
                unsafe { key_rows.times((0, d), ds, dst, shape.apart, Onto::Before, 1.0) };
            }
        }
        if matches!(onto, Onto::Nothing) {
            return; // no query sees these keys
        }
        for (to, sums) in [(to_k, want_k.then_some(&*dk)), (to_v, want_v.then_some(&*dv))] {
            let Some(sums) = sums else { continue };
            for j in 0..keys {
                let at = j / panel * panel;
                let width = Order::new(1, panel.min(keys - at)).width();
                // SAFETY: this key of this head belongs to this task alone; the bounds are checked.
                let row = unsafe { to.slice((b * t + k0 + j) * shape.apart + h * d, d) };
                row.iter_mut().zip(sums[at * d + j - at..].iter().step_by(width)).for_each(|(to, sum)| *to = *sum);
            }
        }
    }
}
