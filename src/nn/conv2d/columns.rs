//! Convolution by columns: each patch of a sample is a column, the rest is matrix products.

use super::Geometry;
use crate::nn::kernels::gemm::{Onto, amx};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::{View, matmul, matmul_within, product};
use crate::nn::kernels::parallel::{SharedMut, add_parts, alone, chunks, tasks, unwritten};
use crate::nn::kernels::values::Values;
use std::borrow::Cow;
use std::ops::Range;

/// Input channels that a task unfolds.
const UNFOLDED: usize = 16;
/// From so many samples on, a task takes a whole sample.
pub(super) const SAMPLES: usize = 8;
/// Columns of more elements than this are not made all at once.
const LARGE: usize = 1 << 23;
/// Elements of the columns of a band.
const BAND: usize = 1 << 21;
/// Samples whose weight gradients are summed by one task.
const SUMMED: usize = 4;

/// The columns of one sample: `(in k k, H' W')`. A 1x1 kernel of stride 1 needs none.
fn unfold(g: &Geometry, sample: &[f32], columns: &mut [f32]) {
    unfold_rows(g, sample, 0..g.out_height(), columns);
}

/// The columns of some rows of a sample's maps: `(in k k, rows W')`.
fn unfold_rows(g: &Geometry, sample: &[f32], rows: Range<usize>, columns: &mut [f32]) {
    let out_width = g.out_width();
    let same = g.stride == 1 && out_width == g.width;
    let even = g.height.is_multiple_of(2) && g.width.is_multiple_of(2);
    if (g.kernel, g.stride, g.padding) == (3, 2, 1) && even && rows.len() == g.out_height() {
        return unfold_halved(g, sample, columns);
    }
    for (row, columns) in columns.chunks_exact_mut(rows.len() * out_width).enumerate() {
        let (channel, ky, kx) = (row / (g.kernel * g.kernel), row / g.kernel % g.kernel, row % g.kernel);
        let map = &sample[channel * g.height * g.width..][..g.height * g.width];
        if same {
            shift(g, map, (ky, kx), rows.clone(), columns);
            continue;
        }
        // of a line, the values that meet one within the map
        let inside = g.padding.saturating_sub(kx).div_ceil(g.stride).min(out_width)
            ..(g.width + g.padding).saturating_sub(kx).div_ceil(g.stride).min(out_width);
        for (oy, line) in rows.clone().zip(columns.chunks_exact_mut(out_width)) {
            let y = (oy * g.stride + ky).wrapping_sub(g.padding);
            if y >= g.height || inside.is_empty() {
                line.fill(0.0);
                continue;
            }
            let source = &map[y * g.width..][..g.width];
            line[..inside.start].fill(0.0);
            line[inside.end..].fill(0.0);
            let values = source[inside.start * g.stride + kx - g.padding..].iter().step_by(g.stride);
            line[inside.clone()].iter_mut().zip(values).for_each(|(to, value)| *to = *value);
        }
    }
}

/// As [`unfold`] of a 3x3 kernel of stride 2: a tap meets every other row and column, of which there are four kinds, as a tap of
/// stride 1 meets all.
fn unfold_halved(g: &Geometry, sample: &[f32], columns: &mut [f32]) {
    let half = Geometry { height: g.height / 2, width: g.width / 2, stride: 1, ..*g };
    let size = half.height * half.width;
    let mut kinds = vec![0.0; 4 * size];
    let maps = sample.chunks_exact(4 * size);
    for (map, columns) in maps.zip(columns.chunks_exact_mut(9 * size)) {
        let (even, odd) = kinds.split_at_mut(2 * size);
        for (y, pair) in map.chunks_exact(2 * g.width).enumerate() {
            let (upper, lower) = pair.split_at(g.width);
            for (line, kinds) in [(upper, &mut *even), (lower, &mut *odd)] {
                let (left, right) = kinds.split_at_mut(size);
                let to = left[y * half.width..][..half.width].iter_mut().zip(&mut right[y * half.width..]);
                for ([a, b], (left, right)) in line.as_chunks().0.iter().zip(to) {
                    (*left, *right) = (*a, *b);
                }
            }
        }
        // the first tap meets the odd ones one place before, the second the even ones, the third the odd ones
        for (tap, columns) in columns.chunks_exact_mut(size).enumerate() {
            let (ky, kx) = (tap / 3, tap % 3);
            let kind = 2 * usize::from(ky != 1) + usize::from(kx != 1);
            shift(&half, &kinds[kind * size..][..size], (ky.min(1), kx.min(1)), 0..half.height, columns);
        }
    }
}

/// What tap `(ky, kx)` meets, where rows go out as wide as they come in: the map, moved as a whole, and zeros where it came from
/// beyond an edge.
fn shift(g: &Geometry, map: &[f32], (ky, kx): (usize, usize), rows: Range<usize>, to: &mut [f32]) {
    let width = g.width;
    let first = rows.start.max(g.padding.saturating_sub(ky));
    let last = rows.end.min((g.height + g.padding).saturating_sub(ky)).max(first);
    let inside = |y: usize| (y.clamp(rows.start, rows.end) - rows.start) * width;
    let (before, after) = (inside(first), inside(last));
    to[..before].fill(0.0);
    to[after..].fill(0.0);
    // a tap to the left starts with what lies before the row, a tap to the right ends with what lies after it
    let (left, right) = (g.padding.saturating_sub(kx), kx.saturating_sub(g.padding));
    let lines = &mut to[before..after];
    if lines.is_empty() {
        return;
    }
    if left.max(right) >= width {
        return lines.fill(0.0);
    }
    let source = &map[(first + ky - g.padding) * width..];
    let count = lines.len() - left - right;
    lines[left..left + count].copy_from_slice(&source[right..right + count]);
    for line in lines.chunks_exact_mut(width) {
        line[..left].fill(0.0);
        line[width - right..].fill(0.0);
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

/// The columns of some maps of one sample, by all threads.
fn all_columns<'a>(g: &Geometry, sample: &'a [f32]) -> Cow<'a, [f32]> {
    if !needs_columns(g) {
        return Cow::Borrowed(sample);
    }
    let channels = sample.len() / (g.height * g.width);
    let mut columns = unwritten(channels * g.kernel * g.kernel * g.out_pixels());
    let (rows, maps) = (UNFOLDED * g.kernel * g.kernel, UNFOLDED * g.height * g.width);
    chunks(&mut columns, rows * g.out_pixels(), |i, columns| unfold(g, &sample[i * maps..], columns));
    Cow::Owned(columns)
}

/// The kernel `(out, in k k)` as many samples meet it, if it is worth keeping so.
pub(super) fn kept(g: &Geometry, weight: Values<'_>) -> Option<amx::Left> {
    let suits = amx::suits(Instructions::used(), g.taps()) && matches!(weight, Values::F32(_));
    suits.then(|| amx::Left::new(g.outputs, g.taps(), View::new(weight, g.taps(), 1)))
}

/// `y = W X + b`, sample by sample: many samples side by side, few one after the other by all threads. `kept` is what [`kept`] makes of a
/// constant kernel.
pub(super) fn forward(
    g: &Geometry,
    x: &[f32],
    weight: Values<'_>,
    kept: Option<&amx::Left>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    let w = View::new(weight, taps, 1);
    let biased = |maps: &mut [f32]| {
        if let Some(bias) = bias {
            maps.chunks_exact_mut(pixels).zip(bias).for_each(|(map, bias)| map.fill(*bias));
        }
    };
    let onto = if bias.is_some() { Onto::Before } else { Onto::Nothing };
    let samples = x.chunks_exact(g.in_sample());
    if g.batch < SAMPLES {
        for (input, maps) in samples.zip(y.chunks_exact_mut(g.outputs * pixels)) {
            biased(maps);
            if needs_columns(g) && taps * pixels > LARGE {
                in_bands(g, input, w, bias.is_some(), maps);
                continue;
            }
            let columns = all_columns(g, input);
            matmul((g.outputs, pixels, taps), w, View::new(&columns[..], pixels, 1), onto, maps);
        }
        return;
    }
    let size = g.outputs * pixels;
    // a thread that works alone takes one after the other without a break
    let together = if alone() && !needs_columns(g) && kept.is_some() { g.batch } else { 1 };
    chunks(y, together * size, |first, maps| {
        maps.chunks_exact_mut(size).for_each(biased);
        let input = &x[first * together * g.in_sample()..];
        let mut columns = unwritten(if needs_columns(g) { taps * pixels } else { 0 });
        let source = if needs_columns(g) {
            unfold(g, &input[..g.in_sample()], &mut columns);
            &columns[..]
        } else {
            input
        };
        let (count, dst) = (maps.len() / size, maps.as_mut_ptr());
        let columns = |i: usize| View::new(&source[i * g.in_sample()..], pixels, 1);
        // SAFETY: of each sample, `maps` is one row of `pixels` elements for each output.
        unsafe {
            match kept {
                Some(kept) => {
                    kept.multiply_each(pixels, count, |i| (columns(i), dst.wrapping_add(i * size)), pixels, onto);
                }
                None => product((g.outputs, pixels, taps), dst, pixels, bias.is_some(), w, columns(0), 1.0),
            }
        }
    });
}

/// One sample, band by band, each unfolded on its own.
fn in_bands(g: &Geometry, input: &[f32], w: View<'_>, add: bool, maps: &mut [f32]) {
    let (pixels, taps, width) = (g.out_pixels(), g.taps(), g.out_width());
    let rows = (BAND / (taps * width)).clamp(1, g.out_height());
    let shared = SharedMut::new(maps);
    tasks(g.out_height().div_ceil(rows), |band| {
        let band = band * rows..((band + 1) * rows).min(g.out_height());
        let n = band.len() * width;
        let mut columns = unwritten(taps * n);
        unfold_rows(g, input, band.clone(), &mut columns);
        let dst = shared.at(band.start * width, (g.outputs - 1) * pixels + n);
        // SAFETY: these rows of every map belong to this task alone, and `at` checks the bounds.
        unsafe { product((g.outputs, n, taps), dst, pixels, add, w, View::new(&columns, n, 1), 1.0) };
    });
}

/// `dX = W^T dy`, folded, sample by sample: many samples side by side, few one after the other by all threads.
pub(super) fn input_gradient(g: &Geometry, dy: &[f32], weight: Values<'_>, dx: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    if g.batch < SAMPLES {
        let w = View::new(weight, taps, 1).t();
        for (dy, dx) in dy.chunks_exact(g.outputs * pixels).zip(dx.chunks_exact_mut(g.in_sample())) {
            let dy = View::new(dy, pixels, 1);
            if !needs_columns(g) {
                matmul((taps, pixels, g.outputs), w, dy, Onto::Nothing, dx);
                continue;
            }
            let mut columns = unwritten(taps * pixels);
            matmul((taps, pixels, g.outputs), w, dy, Onto::Nothing, &mut columns);
            let (taps, map) = (g.kernel * g.kernel * pixels, g.height * g.width); // of one input
            chunks(dx, UNFOLDED * map, |i, dx| {
                dx.fill(0.0);
                fold(g, &columns[i * UNFOLDED * taps..][..dx.len() / map * taps], dx);
            });
        }
        return;
    }
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

/// `dW = sum of dy X^T`: of many samples a few a task, the tasks' sums added in order; of few, one after the other.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (pixels, taps) = (g.out_pixels(), g.taps());
    let of_sample = |sample: usize| View::new(&dy[sample * g.outputs * pixels..][..g.outputs * pixels], pixels, 1);
    if g.batch < SAMPLES {
        let (area, map) = (g.kernel * g.kernel, g.height * g.width);
        let inputs = (BAND / (area * pixels)).max(1).next_multiple_of(UNFOLDED).min(g.inputs);
        for (sample, input) in x.chunks_exact(g.in_sample()).enumerate() {
            let onto = if sample > 0 { Onto::Before } else { Onto::Nothing };
            // some inputs after others: the columns of all of them are nine times the input
            for (i, maps) in input.chunks(inputs * map).enumerate() {
                let columns = all_columns(g, maps);
                let (first, n) = (i * inputs * area, maps.len() / map * area);
                let columns = View::new(&columns[..n * pixels], pixels, 1).t();
                matmul_within((g.outputs, n, pixels), of_sample(sample), columns, onto, &mut dw[first..], taps);
            }
        }
        return;
    }
    let size = dw.len();
    let mut partial = vec![0.0; g.batch.div_ceil(SUMMED) * size];
    chunks(&mut partial, size, |part, sums| {
        let mut columns = unwritten(if needs_columns(g) { taps * pixels } else { 0 });
        for sample in part * SUMMED..((part + 1) * SUMMED).min(g.batch) {
            let input = &x[sample * g.in_sample()..][..g.in_sample()];
            let source = if needs_columns(g) {
                unfold(g, input, &mut columns);
                &columns[..]
            } else {
                input
            };
            let columns = View::new(source, pixels, 1).t();
            // SAFETY: `sums` has `outputs` rows of `taps` elements.
            unsafe {
                product((g.outputs, taps, pixels), sums.as_mut_ptr(), taps, true, of_sample(sample), columns, 1.0);
            }
        }
    });
    dw.fill(0.0);
    add_parts(&partial, dw);
}
