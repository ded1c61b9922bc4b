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
    // SAFETY: the caller vouches for all of it.
    unsafe { Squares::new(from, of, (0, of.count.div_ceil(SIDE)), to).finish() };
}

/// An operand that is being split, square by square.
#[derive(Clone, Copy)]
pub(super) struct Squares<'a> {
    from: View<'a>,
    of: Split,
    /// The first group of sixteen rows, and where those end.
    groups: (usize, usize),
    to: *mut Line,
    /// The square that comes next; none does where the group is the last.
    group: usize,
    chunk: usize,
}

/// Squares whose numbers lie in memory as they are split, to be split line by line.
///
/// All that a line needs is in numbers of its own, which change one by one: what is written as a whole and read in parts, or the other way
/// round, would have to wait until all that was begun before is done, and that is what is to be hidden.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    /// Lines left of this square, squares left of this row of them, and rows after it.
    lines: usize,
    squares: usize,
    rows: usize,
    from: *const f32,
    to: *mut Line,
    /// How far the lines are apart, and the second halves of the pairs from the first.
    apart: usize,
    second: usize,
    across: usize,
    /// From a square's end to the next square, and from the end of a row to the next row.
    next_square: (isize, isize),
    next_row: (isize, isize),
    parts: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            lines: 0,
            squares: 0,
            rows: 0,
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            apart: 0,
            second: 0,
            across: 0,
            next_square: (0, 0),
            next_row: (0, 0),
            parts: 0,
        }
    }
}

impl Lines {
    /// Whether any is left.
    #[inline(always)]
    pub fn some(&self) -> bool {
        self.lines > 0
    }

    /// Parts of each.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Begins with these squares, if all of them can be split in `parts` line by line.
    #[inline(always)]
    pub fn begin(&mut self, squares: &Squares<'_>, parts: usize) -> bool {
        let Squares { from, of, groups, to, .. } = squares;
        let (values, rs, cs) = from.parts();
        let Values::F32(values) = values else { return false };
        let natural = match of.form {
            Form::Rows => cs == 1,
            Form::Pairs => rs == 1 && cs != 1,
        };
        let whole = of.k.is_multiple_of(CHUNK) && groups.1 * SIDE <= of.count;
        let (count, chunks) = (groups.1 - groups.0, of.chunks());
        if !natural || !whole || of.parts != parts || count * chunks == 0 {
            return false;
        }
        self.from = values[groups.0 * SIDE * rs..].as_ptr();
        self.to = *to;
        self.lines = SIDE;
        self.parts = parts;
        let (side, chunk) = ((SIDE * rs) as isize, (CHUNK * cs) as isize);
        let (tile, group) = ((parts * SIDE) as isize, of.group() as isize);
        let back = -(SIDE as isize);
        let (squares, rows) = if of.form == Form::Rows {
            (self.apart, self.second) = (rs, SIDE);
            self.next_square = (chunk - side, tile + back);
            self.next_row = (chunk - chunk * chunks as isize, tile + back);
            (chunks, count)
        } else {
            // neighbours in memory come one after the other
            (self.apart, self.second) = (cs, SIDE * cs);
            let (lines, count) = ((SIDE * cs) as isize, count as isize);
            self.next_square = (side - lines, group + back);
            self.next_row = (chunk - lines - side * (count - 1), tile + back - group * (count - 1));
            (count as usize, chunks)
        };
        (self.squares, self.across, self.rows) = (squares, squares, rows - 1);
        true
    }

    /// One of those that are left.
    ///
    /// # Safety
    /// There must be one; the operand must be as large as it says, and there must be room.
    #[inline(always)]
    pub unsafe fn split<const PARTS: usize>(&mut self) {
        // SAFETY: the caller vouches for it.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(self.from), _mm512_loadu_ps(self.from.add(self.second)));
            line(low, high, PARTS, self.to);
        }
        self.from = self.from.wrapping_add(self.apart);
        self.to = self.to.wrapping_add(1);
        self.lines -= 1;
        if self.lines == 0 {
            self.next();
        }
    }

    #[inline(always)]
    fn next(&mut self) {
        self.squares -= 1;
        let (from, to) = if self.squares > 0 { self.next_square } else { self.next_row };
        if self.squares == 0 {
            if self.rows == 0 {
                return;
            }
            (self.rows, self.squares) = (self.rows - 1, self.across);
        }
        self.from = self.from.wrapping_offset(from);
        self.to = self.to.wrapping_offset(to);
        self.lines = SIDE;
    }
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
    fn natural(&self) -> Option<Form> {
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

/// A square of which only so many rows and elements are there.
#[inline(always)]
unsafe fn edge<N: Number>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;
    use crate::nn::kernels::instructions::Instructions;

    /// Both ways of either form, where rows are whole and where they are not.
    #[test]
    fn lines_one_by_one_are_those_of_whole_squares() {
        if Instructions::best() != Instructions::Amx {
            return;
        }
        let (count, k) = (80, 96);
        let values = Generator::new(1).randn((count + 3) * (k + 5));
        let bits = |lines: &[Line]| lines.iter().flat_map(|line| line.0).collect::<Vec<u32>>();
        for form in [Form::Rows, Form::Pairs] {
            let view = match form {
                Form::Rows => View::new(&values, k + 5, 1),
                Form::Pairs => View::new(&values, 1, count + 3),
            };
            for parts in [1, 3] {
                let of = Split { count, k, parts, form };
                for groups in [(0, 5), (1, 3), (4, 5)] {
                    let n = (groups.1 - groups.0) * of.group();
                    let (mut whole, mut single) = (zeros(n), zeros(n));
                    let mut lines = Lines::default();
                    // SAFETY: the view is as large, and there is room for these groups.
                    unsafe {
                        Squares::new(view, of, groups, whole.as_mut_ptr()).finish();
                        let squares = Squares::new(view, of, groups, single.as_mut_ptr());
                        assert!(lines.begin(&squares, parts), "groups {groups:?}");
                        while lines.some() {
                            if parts == 1 { lines.split::<1>() } else { lines.split::<3>() }
                        }
                    }
                    assert!(bits(&whole) == bits(&single), "{} parts of groups {groups:?}", of.parts);
                }
            }
            let mut lines = Lines::default();
            let mut begins = |view, of: Split, groups| {
                lines.begin(&Squares::new(view, of, groups, std::ptr::null_mut()), 3) && of.parts == 3
            };
            let of = Split { count, k, parts: 3, form };
            assert!(begins(view, of, (0, 5)));
            assert!(!begins(view.t(), of, (0, 5)), "turned");
            assert!(!begins(view, Split { k: k - 1, ..of }, (0, 5)), "a chunk is not whole");
            assert!(!begins(view, Split { count: count - 1, ..of }, (4, 5)), "a group is not whole");
            assert!(!begins(view, of, (5, 5)), "nothing");
        }
    }
}
