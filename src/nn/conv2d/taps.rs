//! 3x3 convolution to few outputs: what each tap makes of the whole map first, then the shifted sums.
//!
//! With `z[(o, tap)] = sum over inputs of w[o, i, tap] x[i]`, one product of `9 out` rows, `y[o](p) = b[o] + sum over taps of
//! z[(o, tap)](p + shift of the tap)`. A patch's columns would be nine times the map and meet so few rows that to make them is most of
//! the work.

use super::Geometry;
use super::kernel::Kernel;
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::{View, product};
use crate::nn::kernels::parallel::{SharedMut, tasks, unwritten};
use crate::nn::kernels::simd::dispatched;
use candle_core::DType;

/// More outputs are worth the columns of their patches, or the other ways.
const FEW: usize = 8;
/// Of fewer inputs the columns are small.
const INPUTS: usize = 16;
/// Pixels of a task's band, about, and the rows that it has at least: those above and below it are computed twice.
const PIXELS: usize = 2048;
const ROWS: usize = 8;

/// Whether this convolution is made so: where tiles make the product, which then takes little. Beside a kernel that is kept in `bf16` operands are
/// rounded to it there, as they are not here.
pub(super) fn suits(g: &Geometry, kept: DType) -> bool {
    let fast = Instructions::used() == Instructions::Amx && kept != DType::BF16;
    (g.kernel, g.stride, g.padding) == (3, 1, 1) && g.outputs <= FEW && g.inputs >= INPUTS && fast
}

/// `y = kernel * x + bias`.
pub(super) fn convolve(g: &Geometry, x: &[f32], kernel: Kernel<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    let (map, rows) = (g.height * g.width, 9 * g.outputs);
    let mut weights = unwritten(rows * g.inputs);
    for output in 0..g.outputs {
        for input in 0..g.inputs {
            for (tap, value) in kernel.taps(g, output, input).into_iter().enumerate() {
                weights[(9 * output + tap) * g.inputs + input] = value;
            }
        }
    }
    let weights = View::new(&weights, g.inputs, 1);
    let band = (PIXELS / g.width).max(ROWS).min(g.height);
    let bands = g.height.div_ceil(band);
    let y = SharedMut::new(y);
    tasks(g.batch * bands, |task| {
        let (sample, top) = (task / bands, task % bands * band);
        let below = g.height.min(top + band);
        // one row more on either side, where there is one
        let (first, last) = (top.saturating_sub(1), g.height.min(below + 1));
        let n = (last - first) * g.width;
        let mut z = unwritten(rows * n);
        let maps = View::new(&x[sample * g.in_sample() + first * g.width..], map, 1);
        // SAFETY: `z` has as many rows of `n` elements, and is ours.
        unsafe { product((rows, n, g.inputs), z.as_mut_ptr(), n, false, weights, maps, 1.0) };
        for (output, z) in z.chunks_exact(9 * n).enumerate() {
            let to = (sample * g.outputs + output) * map + top * g.width;
            // SAFETY: these rows of this map belong to this task alone; the bounds are checked.
            let to = unsafe { y.slice(to, (below - top) * g.width) };
            sum_taps(g.width, top - first, z, bias.map_or(0.0, |bias| bias[output]), to);
        }
    });
}

/// The sums of rows from row `skipped` of `z`'s maps on.
#[inline(always)]
fn sum_taps_inner<const FMA: bool>(width: usize, skipped: usize, z: &[f32], bias: f32, to: &mut [f32]) {
    let n = z.len() / 9;
    for (row, to) in to.chunks_exact_mut(width).enumerate() {
        to.fill(bias);
        for (tap, map) in z.chunks_exact(n).enumerate() {
            let (ky, kx) = (tap / 3, tap % 3);
            let Some(source) = (row + skipped + ky).checked_sub(1) else { continue };
            let Some(source) = map.get(source * width..(source + 1) * width) else { continue };
            // what lies beyond the left or the right edge is zero
            let (to, source) = match kx {
                0 => (&mut to[1..], &source[..width - 1]),
                1 => (&mut to[..], source),
                _ => (&mut to[..width - 1], &source[1..]),
            };
            for (to, value) in to.iter_mut().zip(source) {
                *to += value;
            }
        }
    }
}

dispatched! {
    /// Of one output: the bias and what its nine taps make of the map, each shifted.
    pub fn sum_taps(width: usize, skipped: usize, z: &[f32], bias: f32, to: &mut [f32]) = sum_taps_inner;
}
