//! Kernels, inputs and sums to and from their points.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::form::{F2, F4, Form, Points};
use super::{Block, LANES, Lanes};
use crate::nn::conv2d::Geometry;
use crate::nn::conv2d::kernel::Kernel;
use crate::nn::kernels::gemm::Order;
use crate::nn::kernels::parallel::SharedMut;
use crate::nn::kernels::simd::dispatched;

#[inline(always)]
fn outputs_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize>(
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
                let points = P::kernel([&taps[column], &taps[3 + column], &taps[6 + column]]);
                for i in 0..IN {
                    half[i][column] = points[i];
                }
            }
            for (i, h) in half.iter().enumerate() {
                for (j, point) in P::kernel([&h[0], &h[1], &h[2]]).iter().enumerate() {
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

#[inline(always)]
fn transform_outputs_inner<const FMA: bool>(
    form: Form,
    g: &Geometry,
    kernel: Kernel<'_>,
    order: Order,
    first: usize,
    shared: SharedMut,
) {
    match form {
        Form::F2 => outputs_of::<F2, 2, 4>(g, kernel, order, first, shared),
        Form::F4 => outputs_of::<F4, 4, 6>(g, kernel, order, first, shared),
    }
}

dispatched! {
    /// All points of the kernels of some outputs.
    pub fn transform_outputs(form: Form, g: &Geometry, kernel: Kernel<'_>, order: Order, first: usize, shared: SharedMut) = transform_outputs_inner;
}

#[inline(always)]
fn lanes(x: &[f32], at: usize) -> &Lanes {
    // a slice of `LANES` elements always is one array
    x[at..at + LANES].first_chunk().unwrap_or(&[0.0; LANES])
}

#[inline(always)]
fn input_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize, const FMA: bool>(
    block: Block,
    padded: &[f32],
    transformed: &mut [f32],
) {
    let ((height, width), tiles) = (block.padded(), block.tiles());
    for tile in 0..tiles {
        let (s, row, column) =
            (tile / (block.rows * block.across), tile / block.across % block.rows, tile % block.across);
        let corner = ((s * height + row * OUT) * width + column * OUT) * block.inputs;
        for c in (0..block.inputs).step_by(LANES) {
            let at = |i: usize, j: usize| lanes(padded, corner + (i * width + j) * block.inputs + c);
            let mut half = [[[0.0; LANES]; IN]; IN];
            for j in 0..IN {
                let points = P::input::<FMA>(std::array::from_fn(|i| at(i, j)));
                for i in 0..IN {
                    half[i][j] = points[i];
                }
            }
            for (i, h) in half.iter().enumerate() {
                let points = P::input::<FMA>(h.each_ref());
                for (j, point) in points.iter().enumerate() {
                    transformed[((i * IN + j) * tiles + tile) * block.inputs + c..][..LANES].copy_from_slice(point);
                }
            }
        }
    }
}

#[inline(always)]
fn transform_input_inner<const FMA: bool>(form: Form, block: Block, padded: &[f32], transformed: &mut [f32]) {
    match form {
        Form::F2 => input_of::<F2, 2, 4, FMA>(block, padded, transformed),
        Form::F4 => input_of::<F4, 4, 6, FMA>(block, padded, transformed),
    }
}

dispatched! {
    /// `B^T d B` of each tile and channel: `(points, tiles, in)`.
    pub fn transform_input(form: Form, block: Block, padded: &[f32], transformed: &mut [f32]) = transform_input_inner;
}

#[inline(always)]
fn output_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize, const FMA: bool>(
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
                let points = P::output::<FMA>(std::array::from_fn(|i| at(i, j)));
                for i in 0..OUT {
                    half[i][j] = points[i];
                }
            }
            let mut result = [[[0.0; LANES]; OUT]; OUT];
            for (result, h) in result.iter_mut().zip(&half) {
                *result = P::output::<FMA>(h.each_ref());
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

#[inline(always)]
fn transform_output_inner<const FMA: bool>(
    form: Form,
    g: &Geometry,
    block: Block,
    sums: &[f32],
    bias: Option<&[f32]>,
    out: SharedMut,
) {
    match form {
        Form::F2 => output_of::<F2, 2, 4, FMA>(g, block, sums, bias, out),
        Form::F4 => output_of::<F4, 4, 6, FMA>(g, block, sums, bias, out),
    }
}

dispatched! {
    /// `A^T m A` of each tile and channel, and the bias, into the maps `(B, out, H, W)`.
    pub fn transform_output(form: Form, g: &Geometry, block: Block, sums: &[f32], bias: Option<&[f32]>, out: SharedMut) = transform_output_inner;
}
