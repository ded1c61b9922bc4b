//! The kernel of a 3x3 convolution, seen from either direction.

use super::Geometry;
use crate::nn::kernels::parallel::{chunks, unwritten};
use std::borrow::Cow;

/// Where the weights of `(output, input, tap)` lie in the checkpoint's kernel.
#[derive(Clone, Copy)]
pub(super) enum Kernel<'a> {
    /// `(out, in, 3, 3)` as it is.
    Forward(&'a [f32]),
    /// For the input gradient: flipped, and `(in, out)` swapped. Inputs and outputs are those of the gradient.
    Backward(&'a [f32]),
}

impl Kernel<'_> {
    pub(super) fn at(&self, g: &Geometry, output: usize, input: usize, tap: usize) -> f32 {
        match self {
            Self::Forward(w) => w[(output * g.inputs + input) * 9 + tap],
            Self::Backward(w) => w[(input * g.outputs + output) * 9 + 8 - tap],
        }
    }

    /// All weights, `(out, in, 3, 3)` as seen from this direction.
    pub(super) fn weights(&self, g: &Geometry) -> Cow<'_, [f32]> {
        let w = match self {
            Self::Forward(w) => return Cow::Borrowed(w),
            Self::Backward(w) => w,
        };
        let mut flipped = unwritten(w.len());
        chunks(&mut flipped, g.inputs * 9, |output, kernels| {
            for (input, kernel) in kernels.chunks_exact_mut(9).enumerate() {
                let from = &w[(input * g.outputs + output) * 9..][..9];
                kernel.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
            }
        });
        Cow::Owned(flipped)
    }
}
