//! `softmax(scale q k^T) v`, keys by queries.
//!
//! Scores are kept with the queries innermost: `S^T = K Q^T` comes out of the matrix product in the very order in which the next
//! one, `O^T = V^T P^T`, reads its right operand, and maxima and sums over keys run down vectors of queries.

use super::products::{Buffers, Products, Queries};
use super::{LANES, Shape, packed};
use crate::nn::kernels::gemm::amx::{self, Line, Rounded};
use crate::nn::kernels::gemm::{Onto, Order, transpose_onto};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::math::exp;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, grown, tasks};
use crate::nn::kernels::simd::dispatched;
use std::cell::RefCell;
use std::ops::Range;

/// Keys of a tile: what a matrix product sums in registers.
const KEYS: usize = 384;
/// Queries of a task, which share the packed keys and values.
const QUERIES: usize = 512;

/// The buffers of a thread, kept from task to task: to map and unmap them each time costs more than the work.
#[derive(Default)]
struct Scratch {
    query: Vec<f32>,
    rounded_query: Vec<Line>,
    keys: Buffers,
    rounded_probabilities: Vec<Line>,
    scores: Vec<f32>,
    result: Vec<f32>,
    /// The running softmax of each query: the largest score so far, the sum of the exponentials relative to it, and what
    /// earlier results are to be scaled by.
    state: [Vec<f32>; 3],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out = softmax(scale q k^T) v` and, if asked for, the log-sum-exp of the scores, `(B, S, heads)`.
pub fn forward(shape: &Shape, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: Option<&mut [f32]>) {
    let blocks = shape.s.div_ceil(QUERIES);
    let (out, lse) = (SharedMut::new(out), lse.map(SharedMut::new));
    tasks(shape.batch * shape.heads * blocks, |task| {
        let head = (task / blocks / shape.heads, task / blocks % shape.heads);
        let first = task % blocks * QUERIES;
        SCRATCH.with_borrow_mut(|scratch| {
            block(shape, head, first..shape.s.min(first + QUERIES), [q, k, v], scratch, out, lse);
        });
    });
}

/// Some queries of one head of one sample, over all keys.
fn block(
    shape: &Shape,
    (b, h): (usize, usize),
    queries: Range<usize>,
    [q, k, v]: [&[f32]; 3],
    scratch: &mut Scratch,
    out: SharedMut,
    lse: Option<SharedMut>,
) {
    let Shape { heads, s, t, d, .. } = *shape;
    let Scratch { query, rounded_query, keys: buffers, rounded_probabilities, scores, result, state } = scratch;
    let panel = Instructions::used().columns();
    let of_queries = shape.head(q, (b, h), s, queries.start).t();
    let tiles = shape.on_tiles().then(amx::Tiles::begin);
    let query = match &tiles {
        Some(tiles) => Queries::Rounded(tiles, Rounded::columns(of_queries, (d, queries.len()), rounded_query)),
        None => Queries::Packed(packed(of_queries, d, queries.len(), query)),
    };
    let places = queries.len().next_multiple_of(panel);
    let result = grown(result, places * d);
    for (values, start) in state.iter_mut().zip([f32::NEG_INFINITY, 0.0, 0.0]) {
        values.clear();
        values.resize(places, start);
    }
    for k0 in (0..t).step_by(KEYS) {
        if shape.causal && k0 >= queries.end {
            break;
        }
        let keys = KEYS.min(t - k0);
        let [of_keys, of_values] = [k, v].map(|x| shape.head(x, (b, h), t, k0));
        let products = Products::new(query, (keys, d), of_keys, of_values, buffers);
        for at in (0..queries.len()).step_by(panel) {
            let n = panel.min(queries.len() - at);
            let q0 = queries.start + at;
            if shape.causal && k0 >= q0 + n {
                continue;
            }
            let order = Order::new(keys, n);
            let scores = grown(scores, order.len());
            // SAFETY: `scores` is `keys` rows of `order.width()`, and this thread's.
            unsafe { products.scores((at, n), scores.as_mut_ptr(), order.width(), shape.scale()) };
            let masked = shape.causal.then_some((k0, q0));
            let [top, sum, factor] = state.each_mut().map(|values| &mut values[at..at + order.width()]);
            let state = [top, sum, &mut *factor];
            let p = products.softmax((keys, n), order, masked, scores, state, rounded_probabilities);
            let result = &mut result[at * d..][..order.width() * d];
            let onto = if k0 > 0 { Onto::Before } else { Onto::Nothing };
            if k0 > 0 {
                scale_columns(factor, result);
            }
            let result = result.as_mut_ptr();
            // SAFETY: `result` is `d` rows of `order.width()`, and this thread's.
            unsafe { products.values(p, n, order.width(), result, onto) };
        }
    }
    let [top, sum, factor] = state;
    factor.iter_mut().zip(&*sum).for_each(|(factor, sum)| *factor = 1.0 / sum);
    for at in (0..queries.len()).step_by(panel) {
        let n = panel.min(queries.len() - at);
        let width = Order::new(1, n).width();
        let result = &mut result[at * d..][..width * d];
        scale_columns(&factor[at..at + width], result);
        let place = (b * s + queries.start + at) * shape.width() + h * d;
        let to = out.at(place, (n - 1) * shape.width() + d);
        // SAFETY: this head of these rows belongs to this task alone; `at` checked the bounds.
        unsafe { transpose_onto(View::new(&*result, width, 1), (d, n), to, shape.width()) };
    }
    let Some(lse) = lse else { return };
    for (i, (top, sum)) in top.iter().zip(sum).take(queries.len()).enumerate() {
        // SAFETY: as above.
        let lse = unsafe { lse.slice((b * s + queries.start + i) * heads + h, 1) };
        lse[0] = top + sum.ln();
    }
}

#[inline(always)]
fn softmax_inner<const FMA: bool>(
    width: usize,
    masked: Option<(usize, usize)>,
    scores: &mut [f32],
    top: &mut [f32],
    sum: &mut [f32],
    factor: &mut [f32],
) {
    match width {
        32 => columns::<FMA, 32>(masked, scores, top, sum, factor),
        16 => columns::<FMA, 16>(masked, scores, top, sum, factor),
        8 => columns::<FMA, 8>(masked, scores, top, sum, factor),
        _ => columns::<FMA, LANES>(masked, scores, top, sum, factor),
    }
}

/// The softmax of `W` queries side by side.
#[inline(always)]
fn columns<const FMA: bool, const W: usize>(
    masked: Option<(usize, usize)>,
    scores: &mut [f32],
    top: &mut [f32],
    sum: &mut [f32],
    factor: &mut [f32],
) {
    let (Some(top), Some(sum), Some(factor)) =
        (top.first_chunk_mut::<W>(), sum.first_chunk_mut::<W>(), factor.first_chunk_mut::<W>())
    else {
        return;
    };
    let (rows, _) = scores.as_chunks_mut::<W>();
    match masked {
        None => seen::<FMA, W>(|_| 0, rows, top, sum, factor),
        // of a row of scores, the queries that come before its key
        Some((k0, q0)) => seen::<FMA, W>(|j| (k0 + j).saturating_sub(q0).min(W), rows, top, sum, factor),
    }
}

/// The largest score of each query, of those before and of these; what is hidden becomes the least there is.
#[inline(always)]
pub(super) fn largest<const W: usize>(
    hidden: impl Fn(usize) -> usize,
    rows: &mut [[f32; W]],
    top: &[f32; W],
) -> [f32; W] {
    let mut largest = *top;
    for (j, row) in rows.iter_mut().enumerate() {
        for value in &mut row[..hidden(j)] {
            *value = f32::NEG_INFINITY;
        }
        for l in 0..W {
            largest[l] = if row[l] > largest[l] { row[l] } else { largest[l] };
        }
    }
    largest
}

/// The same, of the queries that are not hidden from a row's key: the first so many are.
#[inline(always)]
fn seen<const FMA: bool, const W: usize>(
    hidden: impl Fn(usize) -> usize,
    rows: &mut [[f32; W]],
    top: &mut [f32; W],
    sum: &mut [f32; W],
    factor: &mut [f32; W],
) {
    let largest = largest(&hidden, rows, top);
    let mut sums = [0.0; W];
    for l in 0..W {
        factor[l] = exp::<FMA>(top[l] - largest[l]);
        sums[l] = sum[l] * factor[l];
    }
    for (j, row) in rows.iter_mut().enumerate() {
        for l in 0..W {
            row[l] = exp::<FMA>(row[l] - largest[l]);
        }
        row[..hidden(j)].fill(0.0);
        for l in 0..W {
            sums[l] += row[l];
        }
    }
    (*top, *sum) = (largest, sums);
}

dispatched! {
    /// Scores, `(keys, width)`, to exponentials relative to the running maximum of each column. With `masked`, the first key and
    /// the first query, later keys count nothing.
    pub fn softmax(width: usize, masked: Option<(usize, usize)>, scores: &mut [f32], top: &mut [f32], sum: &mut [f32], factor: &mut [f32]) = softmax_inner;
}

#[inline(always)]
fn scale_columns_inner<const FMA: bool>(factors: &[f32], x: &mut [f32]) {
    for row in x.chunks_exact_mut(factors.len()) {
        for (x, factor) in row.iter_mut().zip(factors) {
            *x *= factor;
        }
    }
}

dispatched! {
    /// Scales each column of rows as long as `factors`.
    pub fn scale_columns(factors: &[f32], x: &mut [f32]) = scale_columns_inner;
}
