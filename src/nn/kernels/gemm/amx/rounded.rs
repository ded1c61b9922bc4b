//! Operands that are rounded to `bf16` once, for a few products of a thread.

use super::split::{Form, Line, Split, grown, split};
use super::stream::{Operand, Product, Source, run};
use super::tile::Tiles;
use super::{Onto, SIDE};
use crate::nn::kernels::matmul::View;

/// A left operand's rows, or a right operand's columns.
#[derive(Clone, Copy)]
pub struct Rounded<'a> {
    of: Split,
    lines: &'a [Line],
}

impl<'a> Rounded<'a> {
    /// `a`, `m x k`, in a buffer that grows as needed.
    pub fn rows(a: View<'_>, (m, k): (usize, usize), buffer: &'a mut Vec<Line>) -> Self {
        assert!(a.has(m, k), "the left matrix is too small");
        Self::new(a, Split { count: m, k, parts: 1, form: Form::Rows }, buffer)
    }

    /// `b`, `k x n`, in a buffer that grows as needed.
    pub fn columns(b: View<'_>, (k, n): (usize, usize), buffer: &'a mut Vec<Line>) -> Self {
        assert!(b.has(k, n), "the right matrix is too small");
        Self::new(b.t(), Split { count: n, k, parts: 1, form: Form::Pairs }, buffer)
    }

    /// A right operand, `k x n`, that `f` writes: of each [`SIDE`] columns, chunk by chunk of [`super::CHUNK`] rows, lines of pairs; pair `j` is of
    /// rows `j` and `SIDE + j`, of which those past the last are zero.
    pub fn columns_of((k, n): (usize, usize), buffer: &'a mut Vec<Line>, f: impl FnOnce(&mut [Line])) -> Self {
        let of = Split { count: n, k, parts: 1, form: Form::Pairs };
        let lines = grown(buffer, of.lines());
        f(lines);
        Self { of, lines }
    }

    fn new(from: View<'_>, of: Split, buffer: &'a mut Vec<Line>) -> Self {
        let lines = grown(buffer, of.lines());
        // SAFETY: the caller has checked the view; whoever uses this has AMX.
        unsafe { split(from, of, lines.as_mut_ptr()) };
        Self { of, lines }
    }

    /// `dst = scale self right[.., from..from + n] + onto`; `from` is a multiple of [`SIDE`], and rows of `dst` are `stride` apart.
    ///
    /// # Safety
    /// `dst` must be valid for as many rows of `n` elements, which no other thread touches.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn times(
        self,
        tiles: &Tiles,
        right: Self,
        (from, n): (usize, usize),
        dst: *mut f32,
        stride: usize,
        onto: Onto<'_>,
        scale: f32,
    ) {
        assert!(from.is_multiple_of(SIDE) && from + n <= right.of.count, "the operands do not fit");
        let lines = &right.lines[from / SIDE * right.of.group()..];
        let product = |_| Product {
            left: Operand { of: self.of, from: Source::Lines(self.lines) },
            right: Operand { of: Split { count: n, ..right.of }, from: Source::Lines(lines) },
            dst,
            stride,
            scale,
            onto,
        };
        // SAFETY: just checked; the caller vouches for `dst`.
        unsafe { run(tiles, 1, product) };
    }
}
