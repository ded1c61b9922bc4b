//! A left operand that is split once for many products, each with another right operand.

use super::split::{self, Form, Line, Split, split};
use super::stream::{self, Operand, Product, Source};
use super::tile::Tiles;
use super::{COLUMNS, depth, left_parts, right_parts};
use crate::nn::kernels::gemm::Onto;
use crate::nn::kernels::matmul::View;

/// The lines of `m x k`, part after part of the inner dimension.
#[derive(Debug)]
pub struct Left {
    m: usize,
    k: usize,
    parts: usize,
    lines: Vec<Line>,
}

impl Left {
    /// Splits `a`, `m x k`, for right operands of `f32`.
    pub fn new(m: usize, k: usize, a: View<'_>) -> Self {
        assert!(a.has(m, k), "the left matrix is too small");
        let left = Self { m, k, parts: left_parts(a, 3), lines: Vec::new() };
        let mut lines = split::zeros((0..left.deep()).map(|part| left.rows(part).lines()).sum());
        let mut rest = &mut lines[..];
        for part in 0..left.deep() {
            let of = left.rows(part);
            let (here, after) = rest.split_at_mut(of.lines());
            // SAFETY: just checked; there is room for as many lines.
            unsafe { split(a.from(0, part * depth(k)), of, here.as_mut_ptr()) };
            rest = after;
        }
        Self { lines, ..left }
    }

    /// Parts of the inner dimension.
    fn deep(&self) -> usize {
        self.k.div_ceil(depth(self.k))
    }

    /// The rows of one.
    fn rows(&self, part: usize) -> Split {
        let k = depth(self.k).min(self.k - part * depth(self.k));
        Split { count: self.m, k, parts: self.parts, form: Form::Rows }
    }

    /// `dst(i) = a b(i) + onto` for `i < count` on this thread, one after the other; each `b` is `k x n`, each `dst` has rows `stride` apart.
    ///
    /// # Safety
    /// Each `dst` must be valid for `m` rows of `n` elements, which no other thread touches.
    pub unsafe fn multiply_each<'a>(
        &'a self,
        n: usize,
        count: usize,
        each: impl Fn(usize) -> (View<'a>, *mut f32),
        stride: usize,
        onto: Onto<'a>,
    ) {
        let (deep, across) = (self.deep(), n.div_ceil(COLUMNS));
        // all parts but the last are as long
        let part_lines = self.rows(0).lines();
        let product = |at: usize| {
            let (i, j, part) = (at / (across * deep), at / deep % across * COLUMNS, at % deep);
            let (b, dst) = each(i);
            assert!(b.has(self.k, n) && right_parts(b) == 3, "the right matrix does not fit");
            let rows = self.rows(part);
            let columns = Split { count: COLUMNS.min(n - j), k: rows.k, parts: 3, form: Form::Pairs };
            let lines = &self.lines[part * part_lines..][..rows.lines()];
            Product {
                left: Operand { of: rows, from: Source::Lines(lines) },
                right: Operand { of: columns, from: Source::View(b.from(part * depth(self.k), j).t()) },
                dst: dst.wrapping_add(j),
                stride,
                scale: 1.0,
                onto: onto.from(j).part(part == 0),
            }
        };
        // SAFETY: checked above; the caller vouches for each `dst`.
        unsafe { stream::run(&Tiles::begin(), count * across * deep, product) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;
    use crate::nn::kernels::gemm::amx;
    use crate::nn::kernels::instructions::Instructions;

    #[test]
    fn products_have_the_bits_of_those_whose_operands_are_used_once() {
        if Instructions::best() != Instructions::Amx {
            return;
        }
        for (m, n, k, count) in [(64, 256, 64, 3), (1, 1, 48, 1), (33, 70, 100, 4), (20, 600, 900, 2), (96, 16, 64, 5)]
        {
            let (a, b) = (Generator::new(1).randn(m * k), Generator::new(2).randn(count * k * n));
            let before = Generator::new(3).randn(count * m * n);
            let left = Left::new(m, k, View::new(&a, k, 1));
            for onto in [Onto::Nothing, Onto::Before] {
                let (mut found, mut expected) = (before.clone(), before.clone());
                let (to, of) = (found.as_mut_ptr(), |i: usize| View::new(&b[i * k * n..], n, 1));
                // SAFETY: both have room for `count` results.
                unsafe {
                    left.multiply_each(n, count, |i| (of(i), to.wrapping_add(i * m * n)), n, onto);
                    for i in 0..count {
                        let dst = expected[i * m * n..].as_mut_ptr();
                        amx::product((m, n, k), dst, n, onto, View::new(&a, k, 1), of(i), 1.0);
                    }
                }
                assert!(found == expected, "{m} x {n} x {k}");
            }
        }
    }
}
