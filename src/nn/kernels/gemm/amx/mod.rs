//! Products on AMX, whose tiles multiply `bf16` and sum in `f32`, sixteen times as fast as vectors of `f32`.
//!
//! An `f32` is the sum of three `bf16` parts, exactly: its first eight bits, the next eight, and what is left ([`split`]). Of the nine
//! products of parts the three smallest, each below 2^-22 of the whole, are left out; of each chunk of the inner dimension the five
//! small ones are summed before the largest ([`tile`]). The result is closer to the exact one than a chain of multiply-adds in `f32`
//! is. An operand that is kept in `f16` has two parts: what is left out then would be zero, and the bits stay the same. (Cf. Henry, Tang &
//! Heinecke, «Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision Computations», ARITH 2019.)
//!
//! Beside an operand that is kept in `bf16` the other is rounded to `bf16` too, and there is one product, as on a GPU.
//!
//! As with vectors, each part of the inner dimension is summed in one order, however rows and columns are cut. While tiles multiply, vectors
//! split what comes next and store what is done ([`stream`], [`shadow`]).

mod left;
mod lines;
mod rounded;
mod shadow;
mod shifted;
mod split;
mod square;
mod stream;
mod tile;

use super::{Onto, depth};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, alone, tasks};
use crate::nn::kernels::values::Values;
pub use left::Left;
pub use rounded::Rounded;
pub use shifted::{CHANNELS, Weights};
pub use split::Line;
use split::{Form, Split, split};
use stream::{Operand, Product, Source};
pub use tile::{SQUARE, Sums, Tiles};

/// Rows or columns of a tile.
const SIDE: usize = 16;
/// Elements of the inner dimension in a tile.
const CHUNK: usize = 32;
/// Columns of a right operand that are multiplied together: they stay in the core's cache while rows pass.
const COLUMNS: usize = 512;
/// Elements of the inner dimension from which on tiles are worth splitting the operands.
const DEEP: usize = 48;

/// Whether a product is made here, by its inner dimension alone: no element of a result may depend on how many others there are.
pub fn suits(path: Instructions, k: usize) -> bool {
    path == Instructions::Amx && k >= DEEP
}

/// Rows and columns of a task's block of an `m x n` result. Each splits its rows and columns of the operands, so that blocks are as large,
/// and as square, as the number of threads allows; an element's bits do not depend on them.
pub fn blocks(m: usize, n: usize) -> (usize, usize) {
    let (mut rows, mut columns) = (m, n.min(COLUMNS));
    if alone() {
        return (rows, columns);
    }
    while m.div_ceil(rows) * n.div_ceil(columns) < 4 * rayon::current_num_threads() && rows.max(columns) > SQUARE {
        match rows >= columns {
            true => rows = rows.div_ceil(2).next_multiple_of(SQUARE),
            false => columns = columns.div_ceil(2).next_multiple_of(SQUARE),
        }
    }
    (rows, columns)
}

/// Parts of the numbers of a right operand.
fn right_parts(b: View<'_>) -> usize {
    match b.parts().0 {
        Values::F32(_) => 3,
        Values::F16(_) => 2,
        Values::Bf16(_) => 1,
    }
}

/// Parts of those of a left operand beside it: one beside one. (The second part of a `bf16` is zero.)
fn left_parts(a: View<'_>, right: usize) -> usize {
    match a.parts().0 {
        _ if right == 1 => 1,
        Values::F32(_) => 3,
        Values::F16(_) | Values::Bf16(_) => 2,
    }
}

/// A right operand, split once for many products.
#[derive(Debug)]
pub struct Right {
    k: usize,
    n: usize,
    parts: usize,
    lines: Vec<Line>,
}

impl Right {
    /// Splits `b`, `k x n`, by all threads.
    pub fn new(k: usize, n: usize, b: View<'_>) -> Self {
        assert!(b.has(k, n), "the right matrix is too small");
        let right = Self { k, n, parts: right_parts(b), lines: Vec::new() };
        let mut lines = split::zeros(right.at(k.div_ceil(depth(k)), 0));
        let shared = SharedMut::new(&mut lines);
        let across = n.div_ceil(COLUMNS);
        tasks(k.div_ceil(depth(k)) * across, |task| {
            let (part, j) = (task / across, task % across * COLUMNS);
            let (deep, width) = (right.deep(part), COLUMNS.min(n - j));
            let of = Split { count: width, k: deep, parts: right.parts, form: Form::Pairs };
            // SAFETY: just checked; each task has its own lines.
            unsafe { split(b.from(part * depth(k), j).t(), of, shared.at(right.at(part, j), of.lines())) };
        });
        Self { lines, ..right }
    }

    /// Elements of a part of the inner dimension.
    fn deep(&self, part: usize) -> usize {
        depth(self.k).min(self.k - part * depth(self.k))
    }

    /// Where column `j` (a multiple of [`SIDE`]) of a part of the inner dimension begins.
    fn at(&self, part: usize, j: usize) -> usize {
        let before = part * depth(self.k).div_ceil(CHUNK) * self.n.div_ceil(SIDE);
        let panel = if part * depth(self.k) < self.k { j / SIDE * self.deep(part).div_ceil(CHUNK) } else { 0 };
        (before + panel) * self.parts * SIDE
    }

    /// `dst = scale a b[.., from..from + n] + onto` on this thread; `a` is `m x k`, `dst` has rows `stride` apart.
    ///
    /// # Safety
    /// `dst` must be valid for `m` rows of `n` elements, which no other thread touches.
    pub unsafe fn multiply(
        &self,
        sizes: (usize, usize, usize),
        a: View<'_>,
        dst: *mut f32,
        stride: usize,
        onto: Onto<'_>,
        scale: f32,
    ) {
        // SAFETY: the caller vouches for it.
        unsafe { Self::multiply_each(&[self], sizes, |_| (a, dst), stride, onto, scale) };
    }

    /// As [`Right::multiply`], of operands of the same sizes, one after the other.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn multiply_each<'a>(
        rights: &[&'a Self],
        (m, from, n): (usize, usize, usize),
        each: impl Fn(usize) -> (View<'a>, *mut f32),
        stride: usize,
        onto: Onto<'a>,
        scale: f32,
    ) {
        let Some(&&Self { k, .. }) = rights.first().filter(|_| m * n > 0) else { return };
        let (deep, across) = (k.div_ceil(depth(k)), n.div_ceil(COLUMNS));
        let product = |at: usize| {
            let (at, j, part) = (at / (across * deep), at / deep % across * COLUMNS, at % deep);
            let (right, (a, dst)) = (rights[at], each(at));
            assert!(
                from.is_multiple_of(SIDE) && from + n <= right.n && right.k == k && a.has(m, k),
                "the operands do not fit"
            );
            let (n, deep) = (COLUMNS.min(n - j), right.deep(part));
            let of = Split { count: n, k: deep, parts: right.parts, form: Form::Pairs };
            let lines = &right.lines[right.at(part, from + j)..][..of.lines()];
            let rows = Split { count: m, k: deep, parts: left_parts(a, right.parts), form: Form::Rows };
            Product {
                left: Operand { of: rows, from: Source::View(a.from(0, part * depth(k))) },
                right: Operand { of, from: Source::Lines(lines) },
                dst: dst.wrapping_add(j),
                stride,
                scale,
                onto: onto.from(j).part(part == 0),
            }
        };
        // SAFETY: checked above; the caller vouches for `dst`.
        unsafe { stream::run(&Tiles::begin(), rights.len() * across * deep, product) };
    }
}

/// `dst = scale a b + onto` on this thread, with operands that are used once.
///
/// # Safety
/// `dst` must be valid for `m` rows of `n` elements, `stride` apart, which no other thread touches.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    stride: usize,
    onto: Onto<'_>,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
) {
    assert!(a.has(m, k) && b.has(k, n), "a matrix is too small");
    // where one operand is kept in `bf16`, the other is rounded
    let right_parts = if matches!(a.parts().0, Values::Bf16(_)) { 1 } else { right_parts(b) };
    let deep = k.div_ceil(depth(k));
    let product = |at: usize| {
        let (j, p) = (at / deep * COLUMNS, at % deep * depth(k));
        let (n, k) = (COLUMNS.min(n - j), depth(k).min(k - p));
        let rows = Split { count: m, k, parts: left_parts(a, right_parts), form: Form::Rows };
        let columns = Split { count: n, k, parts: right_parts, form: Form::Pairs };
        Product {
            left: Operand { of: rows, from: Source::View(a.from(0, p)) },
            right: Operand { of: columns, from: Source::View(b.from(p, j).t()) },
            dst: dst.wrapping_add(j),
            stride,
            scale,
            onto: onto.from(j).part(p == 0),
        }
    };
    // SAFETY: just checked; the caller vouches for `dst`.
    unsafe { stream::run(&Tiles::begin(), n.div_ceil(COLUMNS) * deep, product) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;
    use half::{bf16, f16};

    fn available() -> bool {
        Instructions::best() == Instructions::Amx
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn kept_halves_give_the_bits_of_what_they_are_and_beside_bf16_all_is_rounded() {
        if !available() {
            return;
        }
        let (m, n, k) = (45, 50, 100);
        let values = |n, seed| Generator::new(seed).randn(n);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let product = |a: Values<'_>, b: Values<'_>| {
            let mut dst = vec![f32::NAN; m * n];
            // SAFETY: `dst` is as large.
            unsafe {
                product((m, n, k), dst.as_mut_ptr(), n, Onto::Nothing, View::new(a, k, 1), View::new(b, 1, k), 1.0)
            };
            dst
        };
        let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let brains = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
        let (ha, hb, ba, bb) = (halves(&a), halves(&b), brains(&a), brains(&b));
        for a in [Values::F32(&a), Values::F16(&ha), Values::Bf16(&ba)] {
            for b in [Values::F32(&b), Values::F16(&hb), Values::Bf16(&bb)] {
                let brief = [a, b].iter().any(|x| matches!(x, Values::Bf16(_)));
                let round = |x: f32| if brief { bf16::from_f32(x).to_f32() } else { x };
                let wide = |x: Values<'_>| (0..x.len()).map(|i| round(x.at(i))).collect::<Vec<f32>>();
                let (wide_a, wide_b) = (wide(a), wide(b));
                let found = product(a, b);
                if !brief {
                    assert_eq!(bits(&found), bits(&product(Values::F32(&wide_a), Values::F32(&wide_b))));
                }
                for (at, found) in found.iter().enumerate() {
                    let term = |p| f64::from(wide_a[at / n * k + p]) * f64::from(wide_b[at % n * k + p]);
                    let (sum, size) = (0..k).fold((0.0, 0.0), |(sum, size), p| (sum + term(p), size + term(p).abs()));
                    assert!((f64::from(*found) - sum).abs() <= 2e-7 * size, "{at}: {found}, not {sum}");
                }
            }
        }
    }

    #[test]
    fn products_are_closer_than_those_of_a_chain_of_multiply_adds() {
        if !available() {
            return;
        }
        let k = 320;
        let (a, b) = (Generator::new(3).randn(64 * k), Generator::new(4).randn(64 * k));
        let mut tiles = vec![0.0; 64 * 64];
        let (va, vb) = (View::new(&a, k, 1), View::new(&b, 1, k));
        // SAFETY: `tiles` is as large.
        unsafe { product((64, 64, k), tiles.as_mut_ptr(), 64, Onto::Nothing, va, vb, 1.0) };
        let (mut of_tiles, mut of_chains) = (0.0, 0.0);
        for (at, found) in tiles.iter().enumerate() {
            let factors = || a[at / 64 * k..][..k].iter().zip(&b[at % 64 * k..][..k]);
            let exact: f64 = factors().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let chain = factors().fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum));
            of_tiles += (f64::from(*found) - exact).powi(2);
            of_chains += (f64::from(chain) - exact).powi(2);
        }
        assert!(of_tiles < of_chains, "{of_tiles:e} beside {of_chains:e}");
    }

    #[test]
    fn blocks_cover_a_result() {
        for (m, n) in [(1, 1), (33, 16), (4096, 320), (77, 768), (64, 10240), (100_000, 3)] {
            let (rows, columns) = blocks(m, n);
            assert!(rows > 0 && columns > 0 && columns <= COLUMNS, "{m} x {n}");
            assert!(columns >= n || columns.is_multiple_of(2 * SIDE), "{m} x {n}: {columns}");
        }
    }
}
