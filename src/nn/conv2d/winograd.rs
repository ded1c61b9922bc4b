//! 3x3 convolution of stride 1 and padding 1 by minimal filtering, F(4x4, 3x3) (Winograd; Lavin & Gray, CVPR 2016).
//!
//! A tile of 4x4 outputs of one channel is `A^T [ sum over inputs of (G g G^T) * (B^T d B) ] A` with `d` the 6x6 inputs that
//! it meets and `g` the kernel: 36 multiplications for each pair of channels where the plain sum has 144. The sum over inputs
//! is, for each of the 36 points, one matrix product over many tiles. The interpolation points are 0, +-sqrt(1/2), +-sqrt(2)
//! and infinity, whose rounding error is a third of that of the customary 0, +-1, +-2. Channels lie innermost while tiles are
//! transformed, so that a vector holds as many channels of one position.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::Geometry;
use super::kernel::Kernel;
use crate::nn::kernels::gemm::{Onto, Order, Panels};
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, tasks, unwritten};
use crate::nn::kernels::simd::{dispatched, mul_add};
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

/// Outputs of a tile along one side, and the inputs that they meet.
const OUT: usize = 4;
const IN: usize = OUT + 2;
/// Points of a tile.
const POINTS: usize = IN * IN;
/// Channels that are transformed together.
const LANES: usize = 16;
/// Tiles of a task, about: enough to use each transformed weight often.
const TILES: usize = 128;
/// Fewer channels than this are not worth the transforms.
const CHANNELS: usize = 16;
/// Fewer tiles neither: the kernel's points are made anew in each call, and what is gained does not pay for the rounding.
const MANY_TILES: usize = 64;

type Lanes = [f32; LANES];

/// Whether this convolution gains by it.
pub(super) fn fits(g: &Geometry) -> bool {
    let tiles = g.batch * g.height.div_ceil(OUT) * g.width.div_ceil(OUT);
    g.inputs.min(g.outputs) >= CHANNELS && tiles >= MANY_TILES
}

#[inline(always)]
fn zip2(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l]);
    }
    out
}

/// `a + s b`.
#[inline(always)]
fn plus<const FMA: bool>(a: &Lanes, s: f32, b: &Lanes) -> Lanes {
    zip2(a, b, |a, b| mul_add::<FMA>(s, b, a))
}

/// `B^T d`.
#[inline(always)]
fn input_points<const FMA: bool>(d: [&Lanes; IN]) -> [Lanes; IN] {
    let even = plus::<FMA>(d[4], -2.0, d[2]);
    let odd = plus::<FMA>(d[3], -2.0, d[1]);
    let even_half = plus::<FMA>(d[4], -0.5, d[2]);
    let odd_half = plus::<FMA>(d[3], -0.5, d[1]);
    let first = plus::<FMA>(d[0], -2.5, d[2]);
    let last = plus::<FMA>(d[1], -2.5, d[3]);
    [
        zip2(&first, d[4], |a, b| a + b),
        plus::<FMA>(&even, FRAC_1_SQRT_2, &odd),
        plus::<FMA>(&even, -FRAC_1_SQRT_2, &odd),
        plus::<FMA>(&even_half, SQRT_2, &odd_half),
        plus::<FMA>(&even_half, -SQRT_2, &odd_half),
        zip2(&last, d[5], |a, b| a + b),
    ]
}

/// `A^T r`.
#[inline(always)]
fn output_points<const FMA: bool>(r: [&Lanes; IN]) -> [Lanes; OUT] {
    let (sum, difference) = (zip2(r[1], r[2], |a, b| a + b), zip2(r[1], r[2], |a, b| a - b));
    let (sum_two, difference_two) = (zip2(r[3], r[4], |a, b| a + b), zip2(r[3], r[4], |a, b| a - b));
    let first = zip2(r[0], &sum, |a, b| a + b);
    let second = difference.map(|a| a * FRAC_1_SQRT_2);
    let third = sum.map(|a| a * 0.5);
    let last = plus::<FMA>(r[5], 0.5 * FRAC_1_SQRT_2, &difference);
    [
        zip2(&first, &sum_two, |a, b| a + b),
        plus::<FMA>(&second, SQRT_2, &difference_two),
        plus::<FMA>(&third, 2.0, &sum_two),
        plus::<FMA>(&last, 2.0 * SQRT_2, &difference_two),
    ]
}

/// `G g`.
#[inline(always)]
fn kernel_points(g: [&Lanes; 3]) -> [Lanes; IN] {
    let scaled = |a: &Lanes, s: f32| a.map(|a| a * s);
    let add = |a: &Lanes, b: &Lanes| zip2(a, b, |a, b| a + b);
    let difference = |a: &Lanes, b: &Lanes| zip2(a, b, |a, b| a - b);
    let even = scaled(&add(g[0], &scaled(g[2], 0.5)), -2.0 / 3.0);
    let odd = scaled(g[1], -2.0 / 3.0 * FRAC_1_SQRT_2);
    let even_two = scaled(&add(g[0], &scaled(g[2], 2.0)), 1.0 / 6.0);
    let odd_two = scaled(g[1], 1.0 / 6.0 * SQRT_2);
    [*g[0], add(&even, &odd), difference(&even, &odd), add(&even_two, &odd_two), difference(&even_two, &odd_two), *g[2]]
}

/// Every kernel's points `G g G^T`: 36 packed matrices, `in x out` ([`Order`]).
pub(super) fn transform_kernel(g: &Geometry, kernel: Kernel<'_>) -> Vec<f32> {
    let order = Order::new(g.inputs, g.outputs);
    let mut points = unwritten(POINTS * order.len());
    let shared = SharedMut::new(&mut points);
    tasks(g.outputs.div_ceil(2 * LANES), |task| transform_outputs(g, kernel, order, task * 2 * LANES, shared));
    points
}

#[inline(always)]
fn transform_outputs_inner<const FMA: bool>(
    g: &Geometry,
    kernel: Kernel<'_>,
    order: Order,
    first: usize,
    shared: SharedMut,
) {
    let end = g.outputs.min(first + 2 * LANES);
    // vectors of outputs do not straddle panels
    let step = LANES.min(order.columns());
    for c in (first..end).step_by(LANES) {
        for input in 0..g.inputs {
            let mut taps = [[0.0; LANES]; 9];
            for l in 0..LANES.min(end - c) {
                for (tap, weight) in taps.iter_mut().zip(kernel.taps(g, c + l, input)) {
                    tap[l] = weight;
                }
            }
            let mut half = [[[0.0; LANES]; 3]; IN];
            for column in 0..3 {
                let points = kernel_points([&taps[column], &taps[3 + column], &taps[6 + column]]);
                for i in 0..IN {
                    half[i][column] = points[i];
                }
            }
            for (i, h) in half.iter().enumerate() {
                for (j, point) in kernel_points([&h[0], &h[1], &h[2]]).iter().enumerate() {
                    for l in (0..LANES.min(order.width() - c)).step_by(step) {
                        let count = step.min(order.width() - c - l);
                        let at = (i * IN + j) * order.len() + order.at(input, c + l);
                        // SAFETY: what belongs to these outputs is this task's alone; `slice` checks the bounds.
                        unsafe { shared.slice(at, count) }.copy_from_slice(&point[l..l + count]);
                    }
                }
            }
        }
    }
}

dispatched! {
    /// All points of the kernels of some outputs.
    pub fn transform_outputs(g: &Geometry, kernel: Kernel<'_>, order: Order, first: usize, shared: SharedMut) = transform_outputs_inner;
}

/// The tiles of one task: all of some samples, or some rows of one sample.
#[derive(Clone, Copy)]
pub(super) struct Block {
    first_sample: usize,
    samples: usize,
    first_row: usize,
    rows: usize,
    /// Tiles in a row of a map.
    across: usize,
    /// Inputs and outputs, rounded up to whole vectors.
    inputs: usize,
    outputs: usize,
}

impl Block {
    fn tiles(&self) -> usize {
        self.samples * self.rows * self.across
    }

    /// Rows and columns of the padded copy.
    fn padded(&self) -> (usize, usize) {
        (self.rows * OUT + 2, self.across * OUT + 2)
    }
}

/// `y = kernel * x + bias` with `x` `(B, in, H, W)`, `y` `(B, out, H, W)` and the kernel's points as of
/// [`transform_kernel`].
pub(super) fn convolve(g: &Geometry, x: &[f32], points: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (down, across) = (g.height.div_ceil(OUT), g.width.div_ceil(OUT));
    let samples = (TILES / (down * across)).clamp(1, g.batch);
    let rows = if samples > 1 { down } else { (TILES / across).clamp(1, down) };
    let (groups, cuts) = (g.batch.div_ceil(samples), down.div_ceil(rows));
    let out = SharedMut::new(y);
    let order = Order::new(g.inputs, g.outputs);
    tasks(groups * cuts, |task| {
        let (first_sample, first_row) = (task / cuts * samples, task % cuts * rows);
        let block = Block {
            first_sample,
            samples: samples.min(g.batch - first_sample),
            first_row,
            rows: rows.min(down - first_row),
            across,
            inputs: g.inputs.next_multiple_of(LANES),
            outputs: g.outputs.next_multiple_of(LANES),
        };
        let tiles = block.tiles();
        let mut padded = vec![0.0; block.samples * block.padded().0 * block.padded().1 * block.inputs];
        pad(g, block, x, &mut padded);
        let mut transformed = unwritten(POINTS * tiles * block.inputs);
        transform_input(block, &padded, &mut transformed);
        drop(padded);
        let mut sums = unwritten(POINTS * tiles * block.outputs);
        for point in 0..POINTS {
            let a = View::new(&transformed[point * tiles * block.inputs..], block.inputs, 1);
            let b = Panels::new(order, &points[point * order.len()..]);
            let dst = sums[point * tiles * block.outputs..][..tiles * block.outputs].as_mut_ptr();
            // SAFETY: `dst` has `tiles` rows, `block.outputs` apart, and is this task's.
            unsafe { b.multiply((tiles, 0, g.outputs), a, dst, block.outputs, Onto::Nothing, 1.0) };
        }
        transform_output(g, block, &sums, bias, out);
    });
}

/// Copies a block's inputs, zeros around, channels innermost: `(samples, rows, columns, in)`.
fn pad(g: &Geometry, block: Block, x: &[f32], padded: &mut [f32]) {
    let (height, width) = block.padded();
    let pixels = g.height * g.width;
    for s in 0..block.samples {
        let sample = &x[(block.first_sample + s) * g.in_sample()..][..g.in_sample()];
        for row in 0..height {
            let y = (block.first_row * OUT + row).wrapping_sub(1);
            if y >= g.height {
                continue;
            }
            let line = &mut padded[((s * height + row) * width + 1) * block.inputs..][..g.width * block.inputs];
            for (c, maps) in sample.chunks(LANES * pixels).enumerate() {
                let maps = &maps[y * g.width..];
                for (x, position) in line.chunks_exact_mut(block.inputs).enumerate() {
                    let channels = LANES.min(g.inputs - c * LANES);
                    for (l, value) in position[c * LANES..][..channels].iter_mut().enumerate() {
                        *value = maps[l * pixels + x];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn lanes(x: &[f32], at: usize) -> &Lanes {
    // a slice of `LANES` elements always is one array
    x[at..at + LANES].first_chunk().unwrap_or(&[0.0; LANES])
}

#[inline(always)]
fn transform_input_inner<const FMA: bool>(block: Block, padded: &[f32], transformed: &mut [f32]) {
    let ((height, width), tiles) = (block.padded(), block.tiles());
    for tile in 0..tiles {
        let (s, row, column) =
            (tile / (block.rows * block.across), tile / block.across % block.rows, tile % block.across);
        let corner = ((s * height + row * OUT) * width + column * OUT) * block.inputs;
        for c in (0..block.inputs).step_by(LANES) {
            let at = |i: usize, j: usize| lanes(padded, corner + (i * width + j) * block.inputs + c);
            let mut half = [[[0.0; LANES]; IN]; IN];
            for j in 0..IN {
                let points = input_points::<FMA>([at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), at(5, j)]);
                for i in 0..IN {
                    half[i][j] = points[i];
                }
            }
            for (i, h) in half.iter().enumerate() {
                let points = input_points::<FMA>([&h[0], &h[1], &h[2], &h[3], &h[4], &h[5]]);
                for (j, point) in points.iter().enumerate() {
                    transformed[((i * IN + j) * tiles + tile) * block.inputs + c..][..LANES].copy_from_slice(point);
                }
            }
        }
    }
}

dispatched! {
    /// `B^T d B` of each tile and channel: `(36, tiles, in)`.
    pub fn transform_input(block: Block, padded: &[f32], transformed: &mut [f32]) = transform_input_inner;
}

#[inline(always)]
fn transform_output_inner<const FMA: bool>(
    g: &Geometry,
    block: Block,
    sums: &[f32],
    bias: Option<&[f32]>,
    out: SharedMut,
) {
    let tiles = block.tiles();
    for tile in 0..tiles {
        let (s, row, column) =
            (tile / (block.rows * block.across), tile / block.across % block.rows, tile % block.across);
        let (top, left) = ((block.first_row + row) * OUT, column * OUT);
        let (height, width) = (OUT.min(g.height - top), OUT.min(g.width - left));
        for c in (0..g.outputs).step_by(LANES) {
            let at = |i: usize, j: usize| lanes(sums, ((i * IN + j) * tiles + tile) * block.outputs + c);
            let mut half = [[[0.0; LANES]; IN]; OUT];
            for j in 0..IN {
                let points = output_points::<FMA>([at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), at(5, j)]);
                for i in 0..OUT {
                    half[i][j] = points[i];
                }
            }
            let mut result = [[[0.0; LANES]; OUT]; OUT];
            for (result, h) in result.iter_mut().zip(&half) {
                *result = output_points::<FMA>([&h[0], &h[1], &h[2], &h[3], &h[4], &h[5]]);
            }
            for l in 0..LANES.min(g.outputs - c) {
                let bias = bias.map_or(0.0, |bias| bias[c + l]);
                let map = ((block.first_sample + s) * g.outputs + c + l) * g.height;
                for (i, values) in result.iter().enumerate().take(height) {
                    // SAFETY: this tile belongs to this task alone; `slice` checks the bounds.
                    let line = unsafe { out.slice((map + top + i) * g.width + left, width) };
                    for (value, lanes) in line.iter_mut().zip(values) {
                        *value = lanes[l] + bias;
                    }
                }
            }
        }
    }
}

dispatched! {
    /// `A^T m A` of each tile and channel, and the bias, into the maps `(B, out, H, W)`.
    pub fn transform_output(g: &Geometry, block: Block, sums: &[f32], bias: Option<&[f32]>, out: SharedMut) = transform_output_inner;
}
