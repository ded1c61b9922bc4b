//! Operands of `f32` as parts of `bf16`, in the order in which tiles are loaded.

use super::square::{edge, square};
use super::{CHUNK, SIDE};
use crate::nn::kernels::gemm::vector::Number;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::values::Values;

/// A row of a tile: sixteen pairs of `bf16`. Of a chunk of [`CHUNK`] elements of the inner dimension, those numbered `j` and
/// `SIDE + j` are pair `j`, in both operands.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub(super) [u32; SIDE]);

impl Line {
    /// From pairs of `bf16`, the first in the lower half.
    #[inline(always)]
    pub fn new(pairs: [u32; SIDE]) -> Self {
        Self(pairs)
    }

    /// Both numbers of each pair.
    #[inline(always)]
    pub fn halves(&mut self) -> &mut [u16; 2 * SIDE] {
        // SAFETY: as large, and any bits are numbers.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }
}

/// What the rows of a tile are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// Rows of a left operand: a line is one row's pairs.
    Rows,
    /// Columns of a right operand: a line is one pair of each of sixteen columns.
    Pairs,
}

/// How an operand is split: `count` rows (or columns) of `k` elements. Tiles lie in the order (sixteen rows, chunk, part).
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub count: usize,
    pub k: usize,
    pub parts: usize,
    pub form: Form,
}

impl Split {
    /// Chunks of the inner dimension.
    pub fn chunks(self) -> usize {
        self.k.div_ceil(CHUNK)
    }

    /// Lines of sixteen rows.
    pub fn group(self) -> usize {
        self.chunks() * self.parts * SIDE
    }

    /// Lines of all.
    pub fn lines(self) -> usize {
        self.count.div_ceil(SIDE) * self.group()
    }
}

/// So many lines, to be written before they are read.
pub(super) fn zeros(n: usize) -> Vec<Line> {
    vec![Line([0; SIDE]); n]
}

/// The first `n` lines of a buffer that grows as needed.
pub(super) fn grown(buffer: &mut Vec<Line>, n: usize) -> &mut [Line] {
    if buffer.len() < n {
        buffer.resize(n, Line([0; SIDE]));
    }
    &mut buffer[..n]
}

/// Splits the rows of `from`; what fills up the last chunk and the last sixteen rows is zero.
///
/// # Safety
/// The view must be as large as `of` says, and `to` have room for [`Split::lines`]; the machine must have AVX-512.
pub(super) unsafe fn split(from: View<'_>, of: Split, to: *mut Line) {
    // SAFETY: the caller vouches for all of it.
    unsafe { Squares::new(from, of, (0, of.count.div_ceil(SIDE)), to).finish() };
}

/// An operand that is being split, square by square.
#[derive(Clone, Copy)]
pub(super) struct Squares<'a> {
    pub from: View<'a>,
    pub of: Split,
    /// The first group of sixteen rows, and where those end.
    pub groups: (usize, usize),
    pub to: *mut Line,
    /// The square that comes next; none does where the group is the last.
    group: usize,
    chunk: usize,
}

impl<'a> Squares<'a> {
    /// Some groups of the rows of `from`, to lines from `to` on.
    pub fn new(from: View<'a>, of: Split, groups: (usize, usize), to: *mut Line) -> Self {
        let group = if of.k > 0 { groups.0 } else { groups.1 };
        Self { from, of, groups, to, group, chunk: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        (self.groups.1 - self.groups.0) * self.of.chunks()
    }

    fn done(&self) -> bool {
        self.group == self.groups.1
    }

    /// All that are left.
    ///
    /// # Safety
    /// The view must be as large as said, and there must be room for as many lines; the machine must have AVX-512.
    pub unsafe fn finish(&mut self) {
        // SAFETY: the caller vouches for all of it.
        unsafe { while self.split() {} }
    }

    /// The next one, if there is one.
    ///
    /// # Safety
    /// As for [`Squares::finish`].
    #[inline(always)]
    pub unsafe fn split(&mut self) -> bool {
        if self.done() {
            return false;
        }
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match self.from.parts().0 {
                Values::F32(values) => self.split_in(values.as_ptr()),
                Values::Bf16(values) => self.split_in(values.as_ptr()),
                Values::F16(values) => self.split_in(values.as_ptr()),
            }
        }
        self.next();
        true
    }

    /// Where its lines go.
    fn place(&self) -> *mut Line {
        let at = (self.group - self.groups.0) * self.of.group() + self.chunk * self.of.parts * SIDE;
        self.to.wrapping_add(at)
    }

    /// Whether all rows and elements of it are there.
    fn whole(&self) -> bool {
        self.of.count - self.group * SIDE >= SIDE && self.of.k - self.chunk * CHUNK >= CHUNK
    }

    /// How the numbers lie in memory, side by side.
    pub fn natural(&self) -> Option<Form> {
        match self.from.parts() {
            (_, _, 1) => Some(Form::Rows),
            (_, 1, _) => Some(Form::Pairs),
            _ => None,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn split_in<N: Number>(&self, from: *const N) {
        let (_, rs, cs) = self.from.parts();
        let (i, p) = (self.group * SIDE, self.chunk * CHUNK);
        // SAFETY: the caller vouches for sizes and room.
        unsafe {
            let corner = from.add(i * rs + p * cs);
            match self.natural() {
                Some(Form::Rows) if self.whole() => square(corner, rs, Form::Rows, self.of, self.place()),
                Some(Form::Pairs) if self.whole() => square(corner, cs, Form::Pairs, self.of, self.place()),
                _ => edge(corner, (rs, cs), (self.of.count - i, self.of.k - p), self.of, self.place()),
            }
        }
    }

    /// Neighbours in memory come one after the other: where columns lie far apart, what else is on the same page comes next.
    fn next(&mut self) {
        if self.natural() == Some(Form::Pairs) {
            self.group += 1;
            if self.done() && self.chunk + 1 < self.of.chunks() {
                (self.group, self.chunk) = (self.groups.0, self.chunk + 1);
            }
        } else {
            self.chunk += 1;
            if self.chunk == self.of.chunks() {
                (self.group, self.chunk) = (self.group + 1, 0);
            }
        }
    }
}
