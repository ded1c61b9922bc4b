//! The parts of a square of numbers: sixteen rows of a chunk of the inner dimension.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::split::{Form, Line, Split};
use super::{CHUNK, SIDE};
use crate::nn::kernels::gemm::vector::{Avx512, Number, turned};
use std::arch::x86_64::*;

/// Elements of a row that are asked for ahead of those that are split.
const AHEAD: usize = 3 * SIDE;

/// A square of which only so many rows and elements are there.
#[inline(always)]
pub(super) unsafe fn edge<N: Number>(
    from: *const N,
    (rs, cs): (usize, usize),
    (rows, elements): (usize, usize),
    of: Split,
    to: *mut Line,
) {
    let mut edge = [0.0f32; SIDE * CHUNK];
    for r in 0..SIDE.min(rows) {
        for q in 0..CHUNK.min(elements) {
            // SAFETY: the caller vouches for sizes.
            edge[r * CHUNK + q] = unsafe { (*from.add(r * rs + q * cs)).to_f32() };
        }
    }
    // SAFETY: the caller vouches for room.
    unsafe { square::<f32>(edge.as_ptr(), CHUNK, Form::Rows, of, to) };
}

/// One chunk of sixteen rows, which lie as `natural` says: rows, or columns, `apart`.
#[inline(always)]
pub(super) unsafe fn square<N: Number>(from: *const N, apart: usize, natural: Form, of: Split, to: *mut Line) {
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
pub(super) unsafe fn line(low: __m512, high: __m512, parts: usize, to: *mut Line) {
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
