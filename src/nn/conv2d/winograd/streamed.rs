//! The same with large kernels, whose points would take sixteen (or seven) times the kernel's memory and be read from far away: they
//! are made where they are used, a few inputs and outputs at a time, and never leave the core's cache.
//!
//! First all tiles are transformed, by all threads. Then each task has some outputs: for some inputs after others it makes the
//! kernel's points and adds every point's product onto its sums, which it transforms back.

use super::transform::{Place, transform_input, transform_output, transform_outputs};
use super::{Block, Form, LANES, Padded, SMALL_KERNEL};
use crate::nn::conv2d::Geometry;
use crate::nn::conv2d::kernel::Kernel;
use crate::nn::kernels::gemm::{Onto, Order, Panels, Tiles};
use crate::nn::kernels::parallel::{SharedMut, chunks, grown, tasks, unwritten};
use std::cell::RefCell;

/// Inputs whose products are summed in registers.
const INPUTS: usize = 64;
/// Outputs of a task.
const OUTPUTS: usize = 2 * LANES;
/// Tiles that are transformed together.
const TILES: usize = 256;

#[derive(Default)]
struct Scratch {
    points: Vec<f32>,
    sums: Vec<f32>,
    tiles: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether it gains: the kernel is large, and maps of more tiles would use each point often enough to make all of them first.
pub(in super::super) fn suits(form: Form, g: &Geometry) -> bool {
    g.inputs * g.outputs > SMALL_KERNEL && form.tiles(g) <= TILES
}

/// As [`super::convolve`], of the kernel itself.
pub(in super::super) fn convolve(
    form: Form,
    g: &Geometry,
    x: &[f32],
    kernel: Kernel<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let samples = (TILES / form.tiles(g)).clamp(1, g.batch);
    let out = SharedMut::new(y);
    for first_sample in (0..g.batch).step_by(samples) {
        let block = Block {
            form,
            first_sample,
            samples: samples.min(g.batch - first_sample),
            first_row: 0,
            rows: g.height.div_ceil(form.out()),
            across: g.width.div_ceil(form.out()),
            inputs: INPUTS,
            outputs: OUTPUTS,
        };
        some_samples(g, block, x, kernel, bias, out);
    }
}

fn some_samples(g: &Geometry, block: Block, x: &[f32], kernel: Kernel<'_>, bias: Option<&[f32]>, out: SharedMut) {
    let (form, tiles) = (block.form, block.tiles());
    // of inputs from `i INPUTS` on: how many, and the same with their lanes filled up
    let part = |i: usize| {
        let inputs = INPUTS.min(g.inputs - i * INPUTS);
        (inputs, Block { inputs: inputs.next_multiple_of(LANES), ..block })
    };
    let size = form.points() * block.apart().0;
    let last = g.inputs.div_ceil(INPUTS) - 1;
    let mut transformed = unwritten(last * size + form.points() * part(last).1.apart().0);
    chunks(&mut transformed, size, |i, transformed| {
        let (inputs, block) = part(i);
        let mut padded = Padded::new(block);
        for sample in 0..block.samples {
            for c in (0..inputs).step_by(LANES) {
                padded.fill(g, block, x, (sample, i * INPUTS + c));
                transform_input(form, block, (sample, c), &padded, transformed);
            }
        }
        SCRATCH.with_borrow_mut(|scratch| {
            for of_point in transformed.chunks_exact_mut(block.apart().0) {
                Tiles::arrange(of_point, (tiles, inputs), block.inputs, &mut scratch.tiles);
            }
        });
    });
    tasks(g.outputs.div_ceil(OUTPUTS), |task| {
        let outputs = task * OUTPUTS..g.outputs.min((task + 1) * OUTPUTS);
        let apart = block.apart().1;
        SCRATCH.with_borrow_mut(|Scratch { points, sums, .. }| {
            let sums = grown(sums, form.points() * apart);
            for (i, transformed) in transformed.chunks(size).enumerate() {
                let (inputs, block) = part(i);
                let order = Order::new(inputs, outputs.len());
                let points = grown(points, form.points() * order.len());
                let place = Place { order, first: outputs.start, inputs: (i * INPUTS, i * INPUTS + inputs) };
                transform_outputs(form, g, kernel, place, (outputs.start, outputs.end), SharedMut::new(points));
                let onto = if i == 0 { Onto::Nothing } else { Onto::Before };
                for point in 0..form.points() {
                    let a = &transformed[point * block.apart().0..][..tiles * block.inputs];
                    let a = Tiles::arranged(a, (tiles, inputs), block.inputs);
                    let b = Panels::new(order, &points[point * order.len()..]);
                    let dst = sums[point * apart..][..tiles * OUTPUTS].as_mut_ptr();
                    // SAFETY: `dst` has `tiles` rows, `OUTPUTS` apart, and is this thread's.
                    unsafe { b.times((0, outputs.len()), a, dst, OUTPUTS, onto, 1.0) };
                }
            }
            transform_output(form, g, block, outputs, sums, bias, out);
        });
    });
}
