//! Kernels, inputs and sums to and from their points.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::form::{F2, F4, Form, Points};
use super::{Block, LANES, Padded};
use crate::nn::conv2d::Geometry;
use crate::nn::conv2d::kernel::Kernel;
use crate::nn::kernels::gemm::{Order, transpose_onto};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, grown};
use crate::nn::kernels::simd::dispatched;
use std::ops::Range;

/// Inputs whose weights are put side by side together.
const INPUTS: usize = 8;

/// Which part of the kernel's points lies in a packed matrix a point: `inputs.0` to `inputs.1` by outputs from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub order: Order,
    pub first: usize,
    pub inputs: (usize, usize),
}

#[inline(always)]
fn outputs_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize>(
    g: &Geometry,
    kernel: Kernel<'_>,
    place: Place,
    (from, to): (usize, usize),
    points: SharedMut,
) {
    let Place { order, first, inputs: (first_input, last_input) } = place;
    // vectors of outputs do not straddle panels
    let (step, len) = (LANES.min(order.columns()), order.len());
    let mut taps = [[0.0; LANES]; 9 * INPUTS];
    for c in (from..to).step_by(LANES) {
        let width = LANES.min(order.width() - (c - first));
        for some in (first_input..last_input).step_by(INPUTS) {
            let count = INPUTS.min(last_input - some);
            kernel.taps_of(g, (some, count), (c, LANES.min(to - c)), &mut taps);
            let next = some + count;
            kernel.fetch(g, (next, INPUTS.min(last_input - next)), (c, LANES.min(to - c)));
            for input in some..some + count {
                let taps = taps[(input - some) * 9..].first_chunk::<9>().unwrap_or(&[[0.0; LANES]; 9]);
                let mut half = [[[0.0; LANES]; 3]; IN];
                for column in 0..3 {
                    let points = P::kernel::<LANES>([&taps[column], &taps[3 + column], &taps[6 + column]]);
                    for i in 0..IN {
                        half[i][column] = points[i];
                    }
                }
                // where they lie is the same in every point, and costs more to find than to write there
                let mut places = [0; LANES / 4];
                for (place, l) in places.iter_mut().zip((0..width).step_by(step)) {
                    *place = order.at(input - first_input, c - first + l);
                }
                for (i, h) in half.iter().enumerate() {
                    for (j, point) in P::kernel::<LANES>([&h[0], &h[1], &h[2]]).iter().enumerate() {
                        for (place, l) in places.into_iter().zip((0..width).step_by(step)) {
                            let count = step.min(width - l);
                            // SAFETY: what belongs to these outputs is this task's alone; `slice` checks the bounds.
                            let to = unsafe { points.slice((i * IN + j) * len + place, count) };
                            match to.first_chunk_mut() {
                                Some(to) => *to = *point,
                                None => to.copy_from_slice(&point[l..l + count]),
                            }
                        }
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
    place: Place,
    outputs: (usize, usize),
    points: SharedMut,
) {
    match form {
        Form::F2 => outputs_of::<F2, 2, 4>(g, kernel, place, outputs, points),
        Form::F4 => outputs_of::<F4, 4, 6>(g, kernel, place, outputs, points),
    }
}

dispatched! {
    /// All points of the kernels between some inputs and outputs `outputs.0` to `outputs.1`.
    pub fn transform_outputs(form: Form, g: &Geometry, kernel: Kernel<'_>, place: Place, outputs: (usize, usize), points: SharedMut) = transform_outputs_inner;
}

/// Channels whose transforms fit the vectors of this machine.
#[inline(always)]
fn wide() -> bool {
    Instructions::used() >= Instructions::Avx512
}

#[inline(always)]
fn lanes<const L: usize>(x: &[f32], at: usize) -> &[f32; L] {
    // a slice of `L` elements always is one array
    x[at..at + L].first_chunk().unwrap_or(&[0.0; L])
}

#[inline(always)]
fn input_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize, const FMA: bool, const L: usize>(
    block: Block,
    (s, c): (usize, usize),
    padded: &Padded,
    transformed: &mut [f32],
) {
    let (apart, _) = block.apart();
    for (row, column) in (0..block.rows).flat_map(|row| (0..block.across).map(move |column| (row, column))) {
        let tile = (s * block.rows + row) * block.across + column;
        let corner = (row * OUT * padded.width + column * OUT) * LANES;
        for half in (0..LANES).step_by(L) {
            let at = |i: usize, j: usize| lanes::<L>(&padded.values, corner + (i * padded.width + j) * LANES + half);
            let mut columns = [[[0.0; L]; IN]; IN];
            for j in 0..IN {
                let points = P::input::<FMA, L>(std::array::from_fn(|i| at(i, j)));
                for i in 0..IN {
                    columns[i][j] = points[i];
                }
            }
            for i in 0..IN {
                let points = P::input::<FMA, L>(columns[i].each_ref());
                for j in 0..IN {
                    let place = (i * IN + j) * apart + tile * block.inputs + c + half;
                    transformed[place..][..L].copy_from_slice(&points[j]);
                }
            }
        }
    }
}

#[inline(always)]
fn transform_input_inner<const FMA: bool>(
    form: Form,
    block: Block,
    at: (usize, usize),
    padded: &Padded,
    transformed: &mut [f32],
) {
    match (form, wide()) {
        (Form::F2, false) => input_of::<F2, 2, 4, FMA, 8>(block, at, padded, transformed),
        (Form::F2, true) => input_of::<F2, 2, 4, FMA, 16>(block, at, padded, transformed),
        (Form::F4, false) => input_of::<F4, 4, 6, FMA, 8>(block, at, padded, transformed),
        (Form::F4, true) => input_of::<F4, 4, 6, FMA, 16>(block, at, padded, transformed),
    }
}

dispatched! {
    /// `B^T d B` of the tiles of a sample of the block, for 16 channels: to `(points, tiles, in)`.
    pub fn transform_input(form: Form, block: Block, at: (usize, usize), padded: &Padded, transformed: &mut [f32]) = transform_input_inner;
}

#[inline(always)]
fn output_of<P: Points<OUT, IN>, const OUT: usize, const IN: usize, const FMA: bool, const L: usize>(
    g: &Geometry,
    block: Block,
    (first, c): (usize, usize),
    sums: &[f32],
    bias: &[f32; LANES],
    pixels: &mut [f32],
) {
    let (_, apart) = block.apart();
    for column in 0..block.across {
        let width = OUT.min(g.width - column * OUT);
        for half in (0..LANES).step_by(L) {
            let corner = (first + column) * block.outputs + c + half;
            let at = |i: usize, j: usize| lanes::<L>(sums, (i * IN + j) * apart + corner);
            let mut rows = [[[0.0; L]; IN]; OUT];
            for j in 0..IN {
                let points = P::output::<FMA, L>(std::array::from_fn(|i| at(i, j)));
                for i in 0..OUT {
                    rows[i][j] = points[i];
                }
            }
            for i in 0..OUT {
                let values = P::output::<FMA, L>(rows[i].each_ref());
                for j in 0..OUT {
                    if j < width {
                        let pixel = &mut pixels[(i * g.width + column * OUT + j) * LANES + half..][..L];
                        for l in 0..L {
                            pixel[l] = values[j][l] + bias[half + l];
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn transform_row_inner<const FMA: bool>(
    form: Form,
    g: &Geometry,
    block: Block,
    at: (usize, usize),
    sums: &[f32],
    bias: &[f32; LANES],
    pixels: &mut [f32],
) {
    match (form, wide()) {
        (Form::F2, false) => output_of::<F2, 2, 4, FMA, 8>(g, block, at, sums, bias, pixels),
        (Form::F2, true) => output_of::<F2, 2, 4, FMA, 16>(g, block, at, sums, bias, pixels),
        (Form::F4, false) => output_of::<F4, 4, 6, FMA, 8>(g, block, at, sums, bias, pixels),
        (Form::F4, true) => output_of::<F4, 4, 6, FMA, 16>(g, block, at, sums, bias, pixels),
    }
}

dispatched! {
    /// `A^T m A` of a row of tiles, the first and a channel given, for 16 channels, and the bias: to `(rows, columns, 16)`.
    pub fn transform_row(form: Form, g: &Geometry, block: Block, at: (usize, usize), sums: &[f32], bias: &[f32; LANES], pixels: &mut [f32]) = transform_row_inner;
}

/// `A^T m A` of each tile and of some outputs, to which `sums` belongs alone, and the bias, into the maps `(B, out, H, W)`.
pub(super) fn transform_output(
    form: Form,
    g: &Geometry,
    block: Block,
    outputs: Range<usize>,
    sums: &[f32],
    bias: Option<&[f32]>,
    out: SharedMut,
) {
    let map = g.height * g.width;
    let mut pixels = [0.0; 64 * LANES];
    let mut more = Vec::new();
    let needed = form.out() * g.width * LANES;
    let pixels = if needed <= pixels.len() { &mut pixels[..] } else { grown(&mut more, needed) };
    for s in 0..block.samples {
        for row in 0..block.rows {
            let top = (block.first_row + row) * form.out();
            let count = form.out().min(g.height - top) * g.width;
            let first = (s * block.rows + row) * block.across;
            for c in outputs.clone().step_by(LANES) {
                let channels = LANES.min(outputs.end - c);
                let mut biases = [0.0; LANES];
                if let Some(bias) = bias {
                    biases[..channels].copy_from_slice(&bias[c..c + channels]);
                }
                transform_row(form, g, block, (first, c - outputs.start), sums, &biases, pixels);
                let place = ((block.first_sample + s) * g.outputs + c) * map + top * g.width;
                let to = out.at(place, (channels - 1) * map + count);
                // SAFETY: these rows of these maps belong to this task alone; `at` checked the bounds.
                unsafe { transpose_onto(View::new(&pixels[..], LANES, 1), (count, channels), to, map) };
            }
        }
    }
}
