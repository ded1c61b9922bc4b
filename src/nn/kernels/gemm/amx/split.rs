//! Operands of `f32` as parts of `bf16`, in the order in which tiles are loaded.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::{CHUNK, SIDE};
use crate::nn::kernels::gemm::vector::{Avx512, Number, turned};
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::values::Values;
use std::arch::x86_64::*;

/// A row of a tile: sixteen pairs of `bf16`. Of a chunk of [`CHUNK`] elements of the inner dimension, those numbered `j` and
/// `SIDE + j` are pair `j`, in both operands.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([u32; SIDE]);

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
pub(super) fn lines(n: usize) -> Vec<Line> {
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
    let (values, rs, cs) = from.parts();
    // SAFETY: the caller vouches for all of it.
    unsafe {
        match values {
            Values::F32(values) => all(values.as_ptr(), rs, cs, of, to),
            Values::Bf16(values) => all(values.as_ptr(), rs, cs, of, to),
            Values::F16(values) => all(values.as_ptr(), rs, cs, of, to),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn all<N: Number>(from: *const N, rs: usize, cs: usize, of: Split, to: *mut Line) {
    let mut edge = [0.0f32; SIDE * CHUNK];
    for (group, i) in (0..of.count).step_by(SIDE).enumerate() {
        for (chunk, p) in (0..of.k).step_by(CHUNK).enumerate() {
            // SAFETY: the caller vouches for sizes and room.
            unsafe {
                let to = to.add(group * of.group() + chunk * of.parts * SIDE);
                let whole = of.count - i >= SIDE && of.k - p >= CHUNK;
                match (rs, cs) {
                    (rs, 1) if whole => square::<N>(from.add(i * rs + p), rs, Form::Rows, of, to),
                    (1, cs) if whole => square::<N>(from.add(i + p * cs), cs, Form::Pairs, of, to),
                    _ => {
                        edge.fill(0.0);
                        for r in 0..SIDE.min(of.count - i) {
                            for q in 0..CHUNK.min(of.k - p) {
                                edge[r * CHUNK + q] = (*from.add((i + r) * rs + (p + q) * cs)).to_f32();
                            }
                        }
                        square::<f32>(edge.as_ptr(), CHUNK, Form::Rows, of, to);
                    }
                }
            }
        }
    }
}

/// One chunk of sixteen rows, which lie as `natural` says: rows, or columns, `apart`.
#[inline(always)]
unsafe fn square<N: Number>(from: *const N, apart: usize, natural: Form, of: Split, to: *mut Line) {
    // SAFETY: the caller vouches for sizes and room.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let turn = natural != of.form;
        let mut lines = [[_mm512_setzero_ps(); SIDE]; 3];
        for r in 0..SIDE {
            let (low, high) = match natural {
                Form::Rows => (from.add(r * apart), from.add(r * apart + SIDE)),
                Form::Pairs => (from.add(r * apart), from.add((r + SIDE) * apart)),
            };
            let mut low = _mm512_castps_si512(N::load::<Avx512>(low).vector());
            let mut high = _mm512_castps_si512(N::load::<Avx512>(high).vector());
            if of.parts == 1 {
                (low, high) = (rounded(low), rounded(high));
            }
            for part in 0..of.parts.min(3) {
                // the upper half of `low`, then that of `high`
                let line = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(low), high, upper);
                match turn {
                    true => lines[part][r] = _mm512_castsi512_ps(line),
                    false => _mm512_store_si512(to.add(part * SIDE + r).cast(), line),
                }
                (low, high) = (rest(low, upper), rest(high, upper));
            }
        }
        if turn {
            for part in 0..of.parts.min(3) {
                let columns = turned(lines[part]);
                for r in 0..SIDE {
                    _mm512_store_ps(to.add(part * SIDE + r).cast(), columns[r]);
                }
            }
        }
    }
}

/// Rounded to the nearest `bf16`, ties to even; those that are `bf16` stay as they are.
#[inline(always)]
unsafe fn rounded(x: __m512i) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
        _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
    }
}

/// What is left of numbers without their upper halves: exact.
#[inline(always)]
unsafe fn rest(x: __m512i, upper: __m512i) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let first = _mm512_castsi512_ps(_mm512_and_si512(x, upper));
        _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(x), first))
    }
}
