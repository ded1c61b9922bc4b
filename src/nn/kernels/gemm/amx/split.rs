//! Operands of `f32` as parts of `bf16`, in the order in which tiles are loaded.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::{CHUNK, SIDE};
use crate::nn::kernels::gemm::vector::{Avx512, Number, turned};
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::values::Values;
use std::arch::x86_64::*;

/// Elements of a row that are asked for ahead of those that are split.
const AHEAD: usize = 3 * SIDE;

/// A row of a tile: sixteen pairs of `bf16`. Of a chunk of [`CHUNK`] elements of the inner dimension, those numbered `j` and
/// `SIDE + j` are pair `j`, in both operands.
#[derive(Clone, Copy, Debug)]
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
    // neighbours in memory one after the other: where columns lie far apart, what else is on the same page comes next
    let across = rs == 1 && cs != 1;
    let (groups, chunks) = (of.count.div_ceil(SIDE), of.chunks());
    for at in 0..groups * chunks {
        let (group, chunk) = if across { (at % groups, at / groups) } else { (at / chunks, at % chunks) };
        let (i, p) = (group * SIDE, chunk * CHUNK);
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

/// One chunk of sixteen rows, which lie as `natural` says: rows, or columns, `apart`.
#[inline(always)]
unsafe fn square<N: Number>(from: *const N, apart: usize, natural: Form, of: Split, to: *mut Line) {
    // SAFETY: the caller vouches for sizes and room.
    unsafe {
        match (natural == of.form, natural) {
            (true, Form::Rows) => lines::<N, SIDE>(from, apart, natural, of.parts, to),
            (true, Form::Pairs) => {
                lines::<N, { SIDE / 2 }>(from, apart, natural, of.parts, to);
                lines::<N, { SIDE / 2 }>(from.add(SIDE / 2 * apart), apart, natural, of.parts, to.add(SIDE / 2));
            }
            (false, _) => {
                let (low, high) = read::<N, SIDE>(from, apart, natural);
                let (low, high) = (turned(low), turned(high));
                for r in 0..SIDE {
                    line(low[r], high[r], of.parts, to.add(r));
                }
            }
        }
    }
}

/// So many lines.
#[inline(always)]
unsafe fn lines<N: Number, const LINES: usize>(
    from: *const N,
    apart: usize,
    natural: Form,
    parts: usize,
    to: *mut Line,
) {
    // SAFETY: the caller vouches for sizes and room.
    unsafe {
        let (low, high) = read::<N, LINES>(from, apart, natural);
        for r in 0..LINES {
            line(low[r], high[r], parts, to.add(r));
        }
    }
}

/// The first numbers and the second of so many lines' pairs. All are read before any is written, so that they come from memory side
/// by side; those that follow in rows far apart are asked for ahead.
#[inline(always)]
unsafe fn read<N: Number, const LINES: usize>(
    from: *const N,
    apart: usize,
    natural: Form,
) -> ([__m512; LINES], [__m512; LINES]) {
    // SAFETY: the caller vouches for sizes; nothing is read by asking ahead.
    unsafe {
        let (mut low, mut high) = ([_mm512_setzero_ps(); LINES], [_mm512_setzero_ps(); LINES]);
        let second = if natural == Form::Rows { SIDE } else { SIDE * apart };
        for r in 0..LINES {
            let row = from.add(r * apart);
            if natural == Form::Pairs {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(second + AHEAD).cast());
            }
            low[r] = N::load::<Avx512>(row).vector();
            high[r] = N::load::<Avx512>(row.add(second)).vector();
        }
        (low, high)
    }
}

/// The parts of sixteen pairs, each part's line so many after that of the one before.
#[inline(always)]
unsafe fn line(low: __m512, high: __m512, parts: usize, to: *mut Line) {
    // SAFETY: the caller vouches for room.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let (mut low, mut high) = (_mm512_castps_si512(low), _mm512_castps_si512(high));
        if parts == 1 {
            (low, high) = (rounded(low), rounded(high));
        }
        for part in 0..parts.min(3) {
            // the upper half of `low`, then that of `high`
            let line = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(low), high, upper);
            _mm512_store_si512(to.add(part * SIDE).cast(), line);
            (low, high) = (rest(low, upper), rest(high, upper));
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
