//! Convolution by columns: each patch of a sample is a column, the rest is matrix products.

use super::Geometry;
use crate::nn::kernels::matmul::{View, product};
use crate::nn::kernels::parallel::{SharedMut, chunks, sum_parts, tasks, unwritten};

/// Output channels of one task where a sample is cut.
const ROWS: usize = 64;
/// Samples whose weight gradients are summed by one task.
const SAMPLES: usize = 4;

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

/// `y = W X + b`, sample by sample; a single sample is cut by output channels.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    let rows = if g.batch >= 8 { g.outputs } else { ROWS.min(g.outputs) };
    let cuts = g.outputs.div_ceil(rows);
    let width = taps * pixels;
    // few samples: all their columns first, as several tasks read them
    let shared_columns = if needs_columns(g) && cuts > 1 {
        let mut all = unwritten(g.batch * width);
        chunks(&mut all, width, |i, columns| unfold(g, &x[i * g.in_sample()..], columns));
        all
    } else {
        Vec::new()
    };
    let out = SharedMut::new(y);
    tasks(g.batch * cuts, |task| {
        let (sample, first) = (task / cuts, task % cuts * rows);
        let count = rows.min(g.outputs - first);
        let input = &x[sample * g.in_sample()..][..g.in_sample()];
        let own;
        let columns = if !needs_columns(g) {
            input
        } else if cuts > 1 {
            &shared_columns[sample * width..][..width]
        } else {
            let mut columns = unwritten(width);
            unfold(g, input, &mut columns);
            own = columns;
            &own[..]
        };
        let offset = (sample * g.outputs + first) * pixels;
        // SAFETY: these channels of this sample belong to this task alone; `slice` checks the bounds.
        let block = unsafe { out.slice(offset, count * pixels) };
        if let Some(bias) = bias {
            block.chunks_exact_mut(pixels).zip(&bias[first..]).for_each(|(map, bias)| map.fill(*bias));
        }
        let (w, columns) = (View::new(&weight[first * taps..], taps, 1), View::new(columns, pixels, 1));
        // SAFETY: `block` has `count` rows of `pixels` elements.
        unsafe { product((count, pixels, taps), block.as_mut_ptr(), pixels, bias.is_some(), w, columns, 1.0) };
    });
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
    let rows = if g.batch > 2 * SAMPLES { g.outputs } else { ROWS.min(g.outputs) };
    let (parts, cuts) = (g.batch.div_ceil(SAMPLES), g.outputs.div_ceil(rows));
    let mut partial = vec![0.0; parts * dw.len()];
    let size = dw.len();
    let out = SharedMut::new(&mut partial);
    tasks(parts * cuts, |task| {
        let (part, first) = (task / cuts, task % cuts * rows);
        let count = rows.min(g.outputs - first);
        // SAFETY: these rows of this part belong to this task alone; `slice` checks the bounds.
        let block = unsafe { out.slice(part * size + first * taps, count * taps) };
        let mut columns = unwritten(if needs_columns(g) { taps * pixels } else { 0 });
        for sample in part * SAMPLES..((part + 1) * SAMPLES).min(g.batch) {
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
