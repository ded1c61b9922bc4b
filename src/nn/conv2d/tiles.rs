//! 3x3 convolution of stride 1 and padding 1 with a kernel kept in `bf16`, on AMX: the input is rounded to `bf16` as well, sums are `f32`.
//!
//! The input is copied as pairs of channels, zeros around: rows of `P = W + 1` elements, the first of which is zero and pads both the
//! start of its row and the end of the one before; a row of zeros before the first and after the last. What tap `(ky, kx)` meets at
//! position `q` then lies at `q + ky P + kx`, so that a tap is an offset.

use super::Geometry;
use super::kernel::Kernel;
use crate::nn::kernels::gemm::amx::{CHANNELS, SQUARE, Sums, Tiles, Weights};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::parallel::{SharedMut, shares, tasks};
use crate::nn::kernels::values::{Values, rounded};
use candle_core::DType;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;
use std::ops::Range;

/// Pairs of channels that are copied at once, about.
const BAND: usize = if cfg!(test) { 1 << 12 } else { 1 << 22 };
/// Elements of a line of a cache.
const LINE: usize = 16;
/// Positions of a task, which share the kernel's weights.
const POSITIONS: usize = 16 * SQUARE;

thread_local! {
    static PLANES: RefCell<Vec<u32>> = RefCell::default();
    static WEIGHTS: RefCell<Weights> = RefCell::default();
}

/// Whether this kernel is convolved here.
pub(super) fn suits(g: &Geometry, kept: DType) -> bool {
    Instructions::used() == Instructions::Amx
        && kept == DType::BF16
        && (g.kernel, g.stride, g.padding) == (3, 1, 1)
        && g.inputs >= CHANNELS / 2
}

/// Rows of one sample, with the sizes of their copy.
#[derive(Clone, Copy)]
struct Band {
    sample: usize,
    first: usize,
    rows: usize,
    /// Elements of a row, and of a pair of channels.
    pitch: usize,
    plane: usize,
}

/// `y = kernel * x + bias` with `x` `(B, in, H, W)` and `y` `(B, out, H, W)`.
pub(super) fn convolve(g: &Geometry, x: &[f32], kernel: Kernel<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    let pitch = g.width + 1;
    let pairs = g.inputs.div_ceil(CHANNELS) * CHANNELS / 2;
    let rows = (BAND / (pairs * pitch)).clamp(1, g.height);
    let groups = g.outputs.div_ceil(SQUARE);
    let out = SharedMut::new(y);
    // taken, as this thread may be given other work of this kind while it waits for its tasks
    let mut planes = PLANES.take();
    // where there are tasks enough, each takes all positions, and has its weights in its core's cache
    let whole = groups >= 4 * rayon::current_num_threads();
    let shared = match whole {
        true => Vec::new(),
        false => shares(groups, |group| {
            let mut weights = Weights::default();
            set(g, kernel, group * SQUARE, &mut weights);
            weights
        }),
    };
    let bands = (0..g.batch).flat_map(|sample| (0..g.height).step_by(rows).map(move |first| (sample, first)));
    for (sample, first) in bands {
        let rows = rows.min(g.height - first);
        // room for the last tile and its taps; an odd number of lines, as planes so far apart share few places of a cache
        let positions = (rows * pitch).next_multiple_of(SQUARE) + 2 * pitch + 2;
        let plane = (positions.div_ceil(LINE) | 1) * LINE;
        let band = Band { sample, first, rows, pitch, plane };
        planes.resize(planes.len().max(pairs * plane), 0);
        let copy = SharedMut::new(&mut planes);
        tasks(pairs, |pair| {
            // SAFETY: each task has its own plane; `slice` checks the bounds.
            let plane = unsafe { copy.slice(pair * plane, plane) };
            fill(g, band, x, pair, plane);
        });
        let planes = &planes[..pairs * plane];
        let positions = rows * pitch;
        if whole {
            tasks(groups, |group| {
                WEIGHTS.with_borrow_mut(|weights| {
                    set(g, kernel, group * SQUARE, weights);
                    some(g, band, weights, planes, (group * SQUARE, 0..positions), bias, out);
                });
            });
            continue;
        }
        let blocks = positions.div_ceil(POSITIONS);
        tasks(groups * blocks, |task| {
            let (group, from) = (task / blocks, task % blocks * POSITIONS);
            let some_of = from..positions.min(from + POSITIONS);
            some(g, band, &shared[group], planes, (group * SQUARE, some_of), bias, out);
        });
    }
    PLANES.set(planes);
}

/// Copies a pair of channels.
fn fill(g: &Geometry, band: Band, x: &[f32], pair: usize, plane: &mut [u32]) {
    let half = CHANNELS / 2;
    let (low, high) = (pair / half * CHANNELS + pair % half, pair / half * CHANNELS + half + pair % half);
    let map = g.height * g.width;
    let sample = &x[band.sample * g.in_sample()..][..g.in_sample()];
    let seen = band.first.saturating_sub(1)..(band.first + band.rows + 1).min(g.height);
    if low >= g.inputs {
        return plane.fill(0);
    }
    // what lies before, between and after the rows
    plane[..(seen.start + 1 - band.first) * band.pitch].fill(0);
    plane[(seen.end + 1 - band.first) * band.pitch..].fill(0);
    for y in seen {
        plane[(y + 1 - band.first) * band.pitch] = 0;
        let line = |channel: usize| &sample[channel * map + y * g.width..][..g.width];
        let to = &mut plane[(y + 1 - band.first) * band.pitch + 1..][..g.width];
        if high < g.inputs {
            pack(line(low), line(high), to);
        } else {
            to.iter_mut().zip(line(low)).for_each(|(to, x)| *to = rounded(*x) >> 16);
        }
    }
}

crate::nn::kernels::simd::dispatched! {
    /// Two lines side by side.
    pub fn pack(low: &[f32], high: &[f32], to: &mut [u32]) = pack_inner;
}

#[inline(always)]
fn pack_inner<const FMA: bool>(low: &[f32], high: &[f32], to: &mut [u32]) {
    for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
        *to = rounded(*low) >> 16 | rounded(*high);
    }
}

/// Sets the weights of some outputs.
fn set(g: &Geometry, kernel: Kernel<'_>, first: usize, weights: &mut Weights) {
    let outputs = SQUARE.min(g.outputs - first);
    weights.begin(g.inputs, outputs);
    match kernel {
        Kernel::Forward(Values::Bf16(w)) => {
            for output in 0..outputs {
                let taps = &w[(first + output) * g.inputs * 9..][..g.inputs * 9];
                let set = weights.set_output(output, taps.reinterpret_cast());
                for (input, taps) in taps.as_chunks().0.iter().enumerate().skip(set) {
                    weights.set(output, input, bits(taps));
                }
            }
        }
        Kernel::Backward(Values::Bf16(w)) => {
            for input in 0..g.inputs {
                let taps = &w[(input * g.outputs + first) * 9..][..outputs * 9];
                for (output, taps) in taps.as_chunks().0.iter().enumerate() {
                    let mut taps = bits(taps);
                    taps.reverse();
                    weights.set(output, input, taps);
                }
            }
        }
        _ => unreachable!("a kernel that is not kept in bf16"),
    }
}

fn bits(taps: &[bf16; 9]) -> [u16; 9] {
    taps.map(bf16::to_bits)
}

/// Some positions of the outputs whose weights these are.
fn some(
    g: &Geometry,
    band: Band,
    weights: &Weights,
    planes: &[u32],
    (first, positions): (usize, Range<usize>),
    bias: Option<&[f32]>,
    out: SharedMut,
) {
    let tiles = Tiles::begin();
    let mut sums = Sums::default();
    let (map, outputs) = (g.height * g.width, SQUARE.min(g.outputs - first));
    let end = positions.end;
    for q in positions.step_by(SQUARE) {
        weights.sum(&tiles, &planes[q..], (band.plane, band.pitch), &mut sums);
        let (mut at, last) = (q, end.min(q + SQUARE));
        while at < last {
            let (row, column) = (at / band.pitch, at % band.pitch);
            if column == g.width {
                at += 1; // between two rows
                continue;
            }
            let count = (g.width - column).min(last - at);
            for output in 0..outputs {
                let bias = bias.map_or(0.0, |bias| bias[first + output]);
                let place = (band.sample * g.outputs + first + output) * map + (band.first + row) * g.width + column;
                // SAFETY: these positions of this output are this task's alone; `slice` checks the bounds.
                let line = unsafe { out.slice(place, count) };
                let sums = &sums.0[output * SQUARE + at - q..][..count];
                line.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum + bias);
            }
            at += count;
        }
    }
}
