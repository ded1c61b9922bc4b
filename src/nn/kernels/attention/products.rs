//! The two products of a tile of keys, of operands as they are or rounded to `bf16`.

use super::forward::softmax;
use super::rounded;
use crate::nn::kernels::gemm::amx::{self, Line, Rounded};
use crate::nn::kernels::gemm::{Onto, Order, Panels, Tiles};
use crate::nn::kernels::matmul::View;

/// Queries, features by queries.
#[derive(Clone, Copy)]
pub(super) enum Queries<'a> {
    Packed(Panels<'a>),
    Rounded(&'a amx::Tiles, Rounded<'a>),
}

/// Some keys and their values beside them.
pub(super) enum Products<'a> {
    Vectors { queries: Panels<'a>, keys: Tiles<'a>, values: Tiles<'a> },
    Rounded { tiles: &'a amx::Tiles, queries: Rounded<'a>, keys: Rounded<'a>, values: Rounded<'a> },
}

/// What keys and values are packed in.
#[derive(Default)]
pub(super) struct Buffers {
    packed: [Vec<f32>; 2],
    rounded: [Vec<Line>; 2],
}

impl<'a> Products<'a> {
    /// With `keys` keys, rows of `d` features, and their values.
    pub fn new(
        queries: Queries<'a>,
        (keys, d): (usize, usize),
        of_keys: View<'a>,
        of_values: View<'a>,
        buffers: &'a mut Buffers,
    ) -> Self {
        match queries {
            Queries::Packed(queries) => {
                let [key, value] = &mut buffers.packed;
                let (key, value) = (Tiles::pack(of_keys, keys, d, key), Tiles::pack(of_values.t(), d, keys, value));
                Self::Vectors { queries, keys: key, values: value }
            }
            Queries::Rounded(tiles, queries) => {
                let [key, value] = &mut buffers.rounded;
                let key = Rounded::rows(of_keys, (keys, d), key);
                Self::Rounded { tiles, queries, keys: key, values: Rounded::rows(of_values.t(), (d, keys), value) }
            }
        }
    }

    /// Scores of `n` queries from `at` on: `(keys, width)`.
    ///
    /// # Safety
    /// `dst` must be valid for as many, and this thread's.
    pub unsafe fn scores(&self, (at, n): (usize, usize), dst: *mut f32, width: usize, scale: f32) {
        // SAFETY: the caller vouches for it.
        unsafe {
            match *self {
                Self::Vectors { queries, keys, .. } => queries.times((at, n), keys, dst, width, Onto::Nothing, scale),
                Self::Rounded { tiles, queries, keys, .. } => {
                    keys.times(tiles, queries, (at, n), dst, width, Onto::Nothing, scale);
                }
            }
        }
    }

    /// Exponentials of the scores of `n` queries, `(keys, width)`; see [`softmax`].
    pub fn softmax<'p>(
        &self,
        (keys, n): (usize, usize),
        order: Order,
        masked: Option<(usize, usize)>,
        scores: &'p mut [f32],
        [top, sum, factor]: [&mut [f32]; 3],
        buffer: &'p mut Vec<Line>,
    ) -> Probabilities<'p> {
        let width = order.width();
        match self {
            Self::Vectors { .. } => {
                softmax(width, masked, &mut scores[..keys * width], top, sum, factor);
                Probabilities::Packed(Panels::new(order, scores))
            }
            Self::Rounded { .. } => Probabilities::Rounded(Rounded::columns_of((keys, n), buffer, |lines| {
                rounded::softmax(width, masked, &mut scores[..keys * width], [top, sum, factor], lines);
            })),
        }
    }

    /// The values by probabilities of `n` queries, onto `(d, width)`.
    ///
    /// # Safety
    /// As of [`Products::scores`].
    pub unsafe fn values(&self, p: Probabilities<'_>, n: usize, width: usize, dst: *mut f32, onto: Onto<'_>) {
        // SAFETY: the caller vouches for it.
        unsafe {
            match (self, p) {
                (Self::Vectors { values, .. }, Probabilities::Packed(p)) => {
                    p.times((0, n), *values, dst, width, onto, 1.0);
                }
                (Self::Rounded { tiles, values, .. }, Probabilities::Rounded(p)) => {
                    values.times(tiles, p, (0, n), dst, width, onto, 1.0);
                }
                _ => unreachable!("probabilities of another kind"),
            }
        }
    }
}

/// What [`Products::softmax`] gives.
pub(super) enum Probabilities<'a> {
    Packed(Panels<'a>),
    Rounded(Rounded<'a>),
}
