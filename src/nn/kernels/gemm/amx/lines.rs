//! Squares that are split line by line, a few at each step of a product.

use super::split::{Form, Line, Squares};
use super::square::line;
use super::{CHUNK, SIDE};
use crate::nn::kernels::values::Values;
use std::arch::x86_64::*;

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
        let &Squares { from, of, groups, to, .. } = squares;
        let (values, rs, cs) = from.parts();
        let Values::F32(values) = values else { return false };
        let natural = squares.natural() == Some(of.form);
        let whole = of.k.is_multiple_of(CHUNK) && groups.1 * SIDE <= of.count;
        let (count, chunks) = (groups.1 - groups.0, of.chunks());
        if !natural || !whole || of.parts != parts || count * chunks == 0 {
            return false;
        }
        self.from = values[groups.0 * SIDE * rs..].as_ptr();
        self.to = to;
        self.lines = SIDE;
        self.parts = parts;
        let (side, chunk) = ((SIDE * rs) as isize, (CHUNK * cs) as isize);
        let (tile, group) = ((parts * SIDE) as isize, of.group() as isize);
        let back = -(SIDE as isize);
        let (across, rows) = if of.form == Form::Rows {
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
        (self.squares, self.across, self.rows) = (across, across, rows - 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;
    use crate::nn::kernels::gemm::amx::split::{Split, zeros};
    use crate::nn::kernels::instructions::Instructions;
    use crate::nn::kernels::matmul::View;

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
