//! The kernel of a 3x3 convolution, seen from either direction.

use super::Geometry;

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
}
