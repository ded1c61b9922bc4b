//! 3x3 convolution of stride 1 and padding 1 by minimal filtering (Winograd; Lavin & Gray, CVPR 2016).
//!
//! A tile of `m x m` outputs of one channel is `A^T [ sum over inputs of (G g G^T) * (B^T d B) ] A` with `d` the `(m + 2)^2` inputs
//! that it meets and `g` the kernel: 36 multiplications for each pair of channels where the plain sum has 144 (`m = 4`), or 16 for
//! 36 (`m = 2`). The sum over inputs is, for each of the points, one matrix product over many tiles. Channels lie innermost while
//! tiles are transformed, so that a vector holds as many channels of one position.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

mod form;
pub(super) mod streamed;
mod transform;

use super::Geometry;
use super::kernel::Kernel;
use crate::nn::kernels::gemm::{Onto, Order, Packed, Panels, amx, pack_rows};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, grown, tasks, unwritten};
pub(super) use form::Form;
use std::sync::Arc;
use transform::{Place, transform_input, transform_output, transform_outputs};

/// Channels that are transformed together.
const LANES: usize = 16;
/// Tiles of a task, about: enough to use each transformed weight often, and few enough for the core's cache.
const TILES: usize = 64;
/// The same where there are more weights than these, which come from further away.
const MORE_TILES: usize = 128;
const MORE_WEIGHTS: usize = 1 << 17;
/// Fewer channels than this are not worth the transforms.
const CHANNELS: usize = 16;
/// Fewer tiles of 4x4 neither: the kernel's points are made anew in each call, and what is gained does not pay for the rounding.
const MANY_TILES: usize = 64;
/// Fewer tiles of 2x2 neither, where the kernel is small; a larger one needs as many as those of 4x4.
const SOME_TILES: usize = 16;
/// Kernels of more weights than this are large.
const SMALL_KERNEL: usize = super::KEPT;

/// The form by which this convolution gains.
pub(super) fn form(g: &Geometry) -> Option<Form> {
    let tiles = |form: Form| g.batch * form.tiles(g);
    if g.inputs.min(g.outputs) < CHANNELS {
        None
    } else if tiles(Form::F4) >= MANY_TILES {
        Some(Form::F4)
    } else {
        let some = if g.inputs * g.outputs <= SMALL_KERNEL { SOME_TILES } else { MANY_TILES };
        // without a fused multiply-add, rounding would exceed what the goldens allow
        (tiles(Form::F2) >= some && Instructions::used() != Instructions::Portable).then_some(Form::F2)
    }
}

/// Every kernel's points `G g G^T`, matrices of `in x out`.
#[derive(Clone, Debug)]
pub(super) enum KernelPoints {
    /// Packed, one after the other ([`Order`]).
    Vectors(Vec<f32>),
    /// Split, as tiles multiply them.
    Tiles(Arc<[Packed]>),
}

impl KernelPoints {
    /// `sums(i) = inputs(i) point(i)` of so many tiles, the rows of both.
    ///
    /// # Safety
    /// Each of the sums must be valid for as many rows of outputs, rounded up to whole vectors, which no other thread touches.
    unsafe fn multiply<'a>(
        &'a self,
        form: Form,
        g: &Geometry,
        tiles: usize,
        operands: impl Fn(usize) -> (View<'a>, *mut f32),
    ) {
        let (sizes, stride) = ((tiles, 0, g.outputs), g.outputs.next_multiple_of(LANES));
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Self::Vectors(points) => {
                    let order = Order::new(g.inputs, g.outputs);
                    for point in 0..form.points() {
                        let (a, dst) = operands(point);
                        let b = Panels::new(order, &points[point * order.len()..]);
                        b.multiply(sizes, a, dst, stride, Onto::Nothing, 1.0);
                    }
                }
                Self::Tiles(points) => Packed::multiply_each(points, sizes, operands, stride),
            }
        }
    }
}

/// A kernel's points.
pub(super) fn transform_kernel(form: Form, g: &Geometry, kernel: Kernel<'_>) -> KernelPoints {
    let tiles = amx::suits(Instructions::used(), g.inputs);
    let order = if tiles { Order::rows(g.inputs, g.outputs) } else { Order::new(g.inputs, g.outputs) };
    let mut points = unwritten(form.points() * order.len());
    let shared = SharedMut::new(&mut points);
    let place = Place { order, first: 0, inputs: (0, g.inputs) };
    tasks(g.outputs.div_ceil(2 * LANES), |task| {
        let outputs = (task * 2 * LANES, g.outputs.min((task + 1) * 2 * LANES));
        transform_outputs(form, g, kernel, place, outputs, shared);
    });
    if !tiles {
        return KernelPoints::Vectors(points);
    }
    let split = |point: &[f32]| Packed::new(g.inputs, g.outputs, View::new(point, order.width(), 1));
    KernelPoints::Tiles(points.chunks(order.len()).map(split).collect())
}

/// The tiles of one task: all of some samples, or some rows of one sample.
#[derive(Clone, Copy)]
pub(super) struct Block {
    form: Form,
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

    /// How far the inputs of one point are from those of the next, and the same of the sums. Not a multiple of a page, as whatever
    /// is so far apart has to share few places of a cache.
    fn apart(&self) -> (usize, usize) {
        (self.tiles() * self.inputs + LANES, self.tiles() * self.outputs + LANES)
    }

    /// Rows and columns of the padded copy.
    fn padded(&self) -> (usize, usize) {
        (self.rows * self.form.out() + 2, self.across * self.form.out() + 2)
    }
}

/// `y = kernel * x + bias` with `x` `(B, in, H, W)`, `y` `(B, out, H, W)` and the kernel's points as of
/// [`transform_kernel`].
pub(super) fn convolve(
    form: Form,
    g: &Geometry,
    x: &[f32],
    points: &KernelPoints,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (down, across) = (g.height.div_ceil(form.out()), g.width.div_ceil(form.out()));
    let tiles = if g.inputs * g.outputs > MORE_WEIGHTS { MORE_TILES } else { TILES };
    let samples = (tiles / (down * across)).clamp(1, g.batch);
    let rows = if samples > 1 { down } else { (tiles / across).clamp(1, down) };
    let (groups, cuts) = (g.batch.div_ceil(samples), down.div_ceil(rows));
    let out = SharedMut::new(y);
    tasks(groups * cuts, |task| {
        let (first_sample, first_row) = (task / cuts * samples, task % cuts * rows);
        let block = Block {
            form,
            first_sample,
            samples: samples.min(g.batch - first_sample),
            first_row,
            rows: rows.min(down - first_row),
            across,
            inputs: g.inputs.next_multiple_of(LANES),
            outputs: g.outputs.next_multiple_of(LANES),
        };
        let tiles = block.tiles();
        let mut padded = Padded::new(block);
        let mut transformed = unwritten(form.points() * block.apart().0);
        for sample in 0..block.samples {
            for c in (0..g.inputs).step_by(LANES) {
                padded.fill(g, block, x, (sample, c));
                transform_input(form, block, (sample, c), &padded, &mut transformed);
            }
        }
        let mut sums = unwritten(form.points() * block.apart().1);
        let shared = SharedMut::new(&mut sums);
        let operands = |point: usize| {
            let a = View::new(&transformed[point * block.apart().0..], block.inputs, 1);
            (a, shared.at(point * block.apart().1, tiles * block.outputs))
        };
        // SAFETY: sums have `tiles` rows, `block.outputs` apart, and are this task's.
        unsafe { points.multiply(form, g, tiles, operands) };
        transform_output(form, g, block, 0..g.outputs, &sums, bias, out);
    });
}

/// What the tiles of a sample meet of some channels, zeros around: `(rows, columns, 16)`.
pub(super) struct Padded {
    height: usize,
    width: usize,
    values: Vec<f32>,
    /// The same without the zeros between rows, where rows are short.
    pixels: Vec<f32>,
}

impl Padded {
    /// All zeros.
    fn new(block: Block) -> Self {
        let (height, width) = block.padded();
        Self { height, width, values: vec![0.0; height * width * LANES], pixels: Vec::new() }
    }

    /// Copies 16 channels of a sample, from `c` on. Always the same positions are written, so that the zeros stay.
    fn fill(&mut self, g: &Geometry, block: Block, x: &[f32], (s, c): (usize, usize)) {
        let map = g.height * g.width;
        let maps = &x[(block.first_sample + s) * g.in_sample() + c * map..];
        let channels = LANES.min(g.inputs - c);
        let top = block.first_row * block.form.out();
        let rows = top.saturating_sub(1)..g.height.min(top + self.height - 1);
        let place =
            |y: usize| ((y + 1 - top) * self.width + 1) * LANES..((y + 1 - top) * self.width + 1 + g.width) * LANES;
        if g.width.is_multiple_of(LANES) {
            for y in rows {
                pack_rows(View::new(&maps[y * g.width..], map, 1), channels, &mut self.values[place(y)], LANES);
            }
            return;
        }
        let pixels = grown(&mut self.pixels, rows.len() * g.width * LANES);
        pack_rows(View::new(&maps[rows.start * g.width..], map, 1), channels, pixels, LANES);
        for (y, line) in rows.zip(pixels.chunks_exact(g.width * LANES)) {
            self.values[place(y)].copy_from_slice(line);
        }
    }
}
