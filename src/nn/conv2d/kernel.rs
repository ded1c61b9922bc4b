//! The kernel of a 3x3 convolution, seen from either direction.

use super::Geometry;
use crate::nn::kernels::gemm::pack_rows;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{chunks, unwritten};
use crate::nn::kernels::values::Values;

/// Where the weights of `(output, input, tap)` lie in the checkpoint's kernel.
#[derive(Clone, Copy)]
pub(super) enum Kernel<'a> {
    /// `(out, in, 3, 3)` as it is.
    Forward(Values<'a>),
    /// For the input gradient: flipped, and `(in, out)` swapped. Inputs and outputs are those of the gradient.
    Backward(Values<'a>),
}

impl Kernel<'_> {
    /// The nine weights between an input and an output.
    #[inline(always)]
    pub(super) fn taps(&self, g: &Geometry, output: usize, input: usize) -> [f32; 9] {
        match self {
            Self::Forward(w) => w.some((output * g.inputs + input) * 9),
            Self::Backward(w) => {
                let mut taps = w.some((input * g.outputs + output) * 9);
                taps.reverse();
                taps
            }
        }
    }

    /// The weights between `inputs` (the first, and how many) and up to 16 `outputs`, these innermost: `to[9 i + tap][output]`. What
    /// lies after the last output is anything.
    pub(super) fn taps_of(&self, g: &Geometry, inputs: (usize, usize), outputs: (usize, usize), to: &mut [[f32; 16]]) {
        let ((input, inputs), (output, outputs)) = (inputs, outputs);
        match *self {
            Self::Forward(w) => {
                let rows = View::new(w.from((output * g.inputs + input) * 9), g.inputs * 9, 1);
                pack_rows(rows, outputs, to[..9 * inputs].as_flattened_mut(), 16);
            }
            Self::Backward(w) => {
                for (i, to) in to.chunks_exact_mut(9).take(inputs).enumerate() {
                    let rows = View::new(w.from(((input + i) * g.outputs + output) * 9), 9, 1);
                    pack_rows(rows, outputs, to.as_flattened_mut(), 16);
                    to.reverse();
                }
            }
        }
    }

    /// Asks for what [`Kernel::taps_of`] will read.
    #[inline(always)]
    pub(super) fn fetch(&self, g: &Geometry, (input, inputs): (usize, usize), (output, outputs): (usize, usize)) {
        match *self {
            Self::Forward(w) => {
                (output..output + outputs).for_each(|o| w.fetch((o * g.inputs + input) * 9, inputs * 9))
            }
            Self::Backward(w) => {
                (input..input + inputs).for_each(|i| w.fetch((i * g.outputs + output) * 9, outputs * 9))
            }
        }
    }

    /// All weights, `(out, in, 3, 3)` as seen from this direction.
    pub(super) fn weights(&self, g: &Geometry) -> Vec<f32> {
        let mut weights = unwritten(g.outputs * g.inputs * 9);
        chunks(&mut weights, g.inputs * 9, |output, kernels| {
            for (input, kernel) in kernels.as_chunks_mut::<9>().0.iter_mut().enumerate() {
                *kernel = self.taps(g, output, input);
            }
        });
        weights
    }
}
