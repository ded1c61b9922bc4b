//! Convolution by columns: each patch of a sample is a column, the rest is matrix products.

use super::Geometry;
use crate::nn::kernels::gemm::{Onto, Packed};
use crate::nn::kernels::matmul::{View, product};
use crate::nn::kernels::parallel::{SharedMut, chunks, sum_parts, tasks, unwritten};

/// Output channels of one task where a sample is cut.
const ROWS: usize = 112;
/// Input channels that a task unfolds.
const UNFOLDED: usize = 16;
/// From so many samples on, a task takes a whole sample.
pub(super) const SAMPLES: usize = 8;
/// Samples whose weight gradients are summed by one task.
const SUMMED: usize = 4;

/// The columns of one sample: `(in k k, H' W')`. A 1x1 kernel of stride 1 needs none.
fn unfold(g: &Geometry, sample: &[f32], columns: &mut [f32]) {
    let (out_height, out_width) = (g.out_height(), g.out_width());
    for (row, columns) in columns.chunks_exact_mut(g.out_pixels()).enumerate() {
        let (channel, ky, kx) = (row / (g.kernel * g.kernel), row / g.kernel % g.kernel, row % g.kernel);
        let map = &sample[channel * g.height * g.width..][..g.height * g.width];
        for oy in 0..out_height {
            let line = &mut columns[oy * out_width..][..out_width];
            let y = (oy * g.stride + ky).wrapping_sub(g.padding);
            if y >= g.height {
                line.fill(0.0);
                continue;
            }
            let source = &map[y * g.width..][..g.width];
            for (ox, value) in line.iter_mut().enumerate() {
                let x = (ox * g.stride + kx).wrapping_sub(g.padding);
                *value = source.get(x).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Adds columns back onto the sample that they came from.
fn fold(g: &Geometry, columns: &[f32], sample: &mut [f32]) {
    let out_width = g.out_width();
    for (row, columns) in columns.chunks_exact(g.out_pixels()).enumerate() {
        let (channel, ky, kx) = (row / (g.kernel * g.kernel), row / g.kernel % g.kernel, row % g.kernel);
        let map = &mut sample[channel * g.height * g.width..][..g.height * g.width];
        for (oy, line) in columns.chunks_exact(out_width).enumerate() {
            let y = (oy * g.stride + ky).wrapping_sub(g.padding);
            if y >= g.height {
                continue;
            }
            let target = &mut map[y * g.width..][..g.width];
            for (ox, value) in line.iter().enumerate() {
                let x = (ox * g.stride + kx).wrapping_sub(g.padding);
                if let Some(target) = target.get_mut(x) {
                    *target += value;
                }
            }
        }
    }
}

fn needs_columns(g: &Geometry) -> bool {
    g.kernel != 1 || g.stride != 1 || g.padding != 0
}

/// `y = W X + b`, sample by sample; few samples are cut by output channels.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    let cut = g.batch < SAMPLES && g.outputs > ROWS;
    let out = SharedMut::new(y);
    // some output channels of a sample, whose bias their maps hold already
    let maps = |sample: usize, first: usize, count: usize| {
        // SAFETY: these channels of this sample belong to the task that asks for them alone; `slice` checks the bounds.
        let maps = unsafe { out.slice((sample * g.outputs + first) * pixels, count * pixels) };
        if let Some(bias) = bias {
            maps.chunks_exact_mut(pixels).zip(&bias[first..]).for_each(|(map, bias)| map.fill(*bias));
        }
        maps
    };
    let input = |sample: usize| &x[sample * g.in_sample()..][..g.in_sample()];
    if !cut {
        return tasks(g.batch, |sample| {
            let own;
            let columns = if needs_columns(g) {
                let mut columns = unwritten(taps * pixels);
                unfold(g, input(sample), &mut columns);
                own = columns;
                &own[..]
            } else {
                input(sample)
            };
            let (w, columns) = (View::new(weight, taps, 1), View::new(columns, pixels, 1));
            let dst = maps(sample, 0, g.outputs).as_mut_ptr();
            // SAFETY: `dst` is one row of `pixels` elements for each output.
            unsafe { product((g.outputs, pixels, taps), dst, pixels, bias.is_some(), w, columns, 1.0) };
        });
    }
    let onto = if bias.is_some() { Onto::Before } else { Onto::Nothing };
    for sample in 0..g.batch {
        let columns = if needs_columns(g) {
            let mut columns = unwritten(taps * pixels);
            let rows = UNFOLDED * g.kernel * g.kernel * pixels;
            chunks(&mut columns, rows, |i, columns| {
                unfold(g, &input(sample)[i * UNFOLDED * g.height * g.width..], columns);
            });
            Packed::new(taps, pixels, View::new(&columns, pixels, 1))
        } else {
            Packed::new(taps, pixels, View::new(input(sample), pixels, 1))
        };
        tasks(g.outputs.div_ceil(ROWS), |task| {
            let (first, count) = (task * ROWS, ROWS.min(g.outputs - task * ROWS));
            let w = View::new(&weight[first * taps..], taps, 1);
            let dst = maps(sample, first, count).as_mut_ptr();
            // SAFETY: `dst` is one row of `pixels` elements for each of these outputs.
            unsafe { columns.panels().multiply((count, 0, pixels), w, dst, pixels, onto, 1.0) };
        });
    }
}

/// `dX = W^T dy`, folded, sample by sample.
pub(super) fn input_gradient(g: &Geometry, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    chunks(dx, g.in_sample(), |sample, dx| {
        let dy = View::new(&dy[sample * g.outputs * pixels..][..g.outputs * pixels], pixels, 1);
        let w = View::new(weight, taps, 1).t();
        if needs_columns(g) {
            let mut columns = unwritten(taps * pixels);
            // SAFETY: `columns` has `taps` rows of `pixels` elements and is ours.
            unsafe { product((taps, pixels, g.outputs), columns.as_mut_ptr(), pixels, false, w, dy, 1.0) };
            dx.fill(0.0);
            fold(g, &columns, dx);
        } else {
            // SAFETY: `dx` has `taps` = `in` rows of `pixels` elements and is ours.
            unsafe { product((taps, pixels, g.outputs), dx.as_mut_ptr(), pixels, false, w, dy, 1.0) };
        }
    });
}

/// `dW = sum of dy X^T`: a few samples a task, the tasks' sums added in order.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    // one or two samples are cut by output channels instead
    let rows = if g.batch > 2 * SUMMED { g.outputs } else { ROWS.min(g.outputs) };
    let (parts, cuts) = (g.batch.div_ceil(SUMMED), g.outputs.div_ceil(rows));
    let mut partial = vec![0.0; parts * dw.len()];
    let size = dw.len();
    let out = SharedMut::new(&mut partial);
    tasks(parts * cuts, |task| {
        let (part, first) = (task / cuts, task % cuts * rows);
        let count = rows.min(g.outputs - first);
        // SAFETY: these rows of this part belong to this task alone; `slice` checks the bounds.
        let block = unsafe { out.slice(part * size + first * taps, count * taps) };
        let mut columns = unwritten(if needs_columns(g) { taps * pixels } else { 0 });
        for sample in part * SUMMED..((part + 1) * SUMMED).min(g.batch) {
            let input = &x[sample * g.in_sample()..][..g.in_sample()];
            let source = if needs_columns(g) {
                unfold(g, input, &mut columns);
                &columns[..]
            } else {
                input
            };
            let dy = View::new(&dy[(sample * g.outputs + first) * pixels..][..count * pixels], pixels, 1);
            let columns = View::new(source, pixels, 1).t();
            // SAFETY: `block` has `count` rows of `taps` elements.
            unsafe { product((count, taps, pixels), block.as_mut_ptr(), taps, true, dy, columns, 1.0) };
        }
    });
    sum_parts(&partial, dw);
}
