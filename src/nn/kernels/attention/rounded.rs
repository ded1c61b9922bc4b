//! The softmax of scores whose exponentials are multiplied in `bf16`: they are rounded and put in order as they are made.

use super::forward::largest;
use crate::nn::kernels::gemm::amx::Line;
use crate::nn::kernels::math::exp;
use crate::nn::kernels::simd::dispatched;
use crate::nn::kernels::values::rounded;

/// Keys of a chunk of lines, and of half of it.
const CHUNK: usize = 32;
const SIDE: usize = 16;

#[inline(always)]
fn softmax_inner<const FMA: bool>(
    width: usize,
    masked: Option<(usize, usize)>,
    scores: &mut [f32],
    state: [&mut [f32]; 3],
    lines: &mut [Line],
) {
    match width {
        32 => columns::<FMA, 32>(masked, scores, state, lines),
        _ => columns::<FMA, 16>(masked, scores, state, lines),
    }
}

#[inline(always)]
fn columns<const FMA: bool, const W: usize>(
    masked: Option<(usize, usize)>,
    scores: &mut [f32],
    [top, sum, factor]: [&mut [f32]; 3],
    lines: &mut [Line],
) {
    let (Some(top), Some(sum), Some(factor)) =
        (top.first_chunk_mut::<W>(), sum.first_chunk_mut::<W>(), factor.first_chunk_mut::<W>())
    else {
        return;
    };
    let (rows, _) = scores.as_chunks_mut::<W>();
    // of a row of scores, the queries that come before its key
    let hidden = |j: usize| masked.map_or(0, |(k0, q0)| (k0 + j).saturating_sub(q0).min(W));
    let largest = largest::<W>(hidden, rows, top);
    let mut sums = [0.0; W];
    for l in 0..W {
        factor[l] = exp::<FMA>(top[l] - largest[l]);
        sums[l] = sum[l] * factor[l];
    }
    let panel = rows.len().div_ceil(CHUNK) * SIDE;
    let none = [f32::NEG_INFINITY; W];
    for chunk in 0..rows.len().div_ceil(CHUNK) {
        for j in 0..SIDE {
            let mut pairs = [0; W];
            for half in 0..2 {
                let row = chunk * CHUNK + half * SIDE + j;
                let scores = rows.get(row).unwrap_or(&none);
                let mut p = [0.0; W];
                for l in 0..W {
                    p[l] = exp::<FMA>(scores[l] - largest[l]);
                }
                p[..if row < rows.len() { hidden(row) } else { W }].fill(0.0);
                for l in 0..W {
                    sums[l] += p[l];
                    pairs[l] |= rounded(p[l]) >> (SIDE * (1 - half));
                }
            }
            for (at, pairs) in pairs.as_chunks::<SIDE>().0.iter().enumerate() {
                lines[at * panel + chunk * SIDE + j] = Line::new(*pairs);
            }
        }
    }
    (*top, *sum) = (largest, sums);
}

dispatched! {
    /// As [`super::forward::softmax`] (`state` being the maxima, the sums and the factors), with the exponentials to lines of pairs:
    /// of each sixteen columns, chunk by chunk of keys.
    pub fn softmax(width: usize, masked: Option<(usize, usize)>, scores: &mut [f32], state: [&mut [f32]; 3], lines: &mut [Line]) = softmax_inner;
}
