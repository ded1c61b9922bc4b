//! The two sizes of tiles, and their transforms along one axis.

use crate::nn::conv2d::Geometry;
use crate::nn::kernels::simd::mul_add;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

/// `F(m x m, 3 x 3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `m = 2`, points 0, +-1 and infinity: hardly more rounding than the plain sum.
    F2,
    /// `m = 4`, points 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose rounding error is a third of that of the customary 0, +-1,
    /// +-2.
    F4,
}

impl Form {
    /// Outputs of a tile along one side.
    pub fn out(self) -> usize {
        match self {
            Self::F2 => 2,
            Self::F4 => 4,
        }
    }

    /// Tiles of a map.
    pub(super) fn tiles(self, g: &Geometry) -> usize {
        g.height.div_ceil(self.out()) * g.width.div_ceil(self.out())
    }

    /// Points of a tile.
    pub fn points(self) -> usize {
        (self.out() + 2) * (self.out() + 2)
    }
}

/// The transforms of `OUT` outputs and the `IN` inputs that they meet, `L` channels side by side.
pub(super) trait Points<const OUT: usize, const IN: usize> {
    /// `B^T d`.
    fn input<const FMA: bool, const L: usize>(d: [&[f32; L]; IN]) -> [[f32; L]; IN];
    /// `A^T r`.
    fn output<const FMA: bool, const L: usize>(r: [&[f32; L]; IN]) -> [[f32; L]; OUT];
    /// `G g`.
    fn kernel<const L: usize>(g: [&[f32; L]; 3]) -> [[f32; L]; IN];
}

#[inline(always)]
fn zip2<const L: usize>(a: &[f32; L], b: &[f32; L], f: impl Fn(f32, f32) -> f32) -> [f32; L] {
    let mut out = [0.0; L];
    for l in 0..L {
        out[l] = f(a[l], b[l]);
    }
    out
}

/// `a + s b`.
#[inline(always)]
fn plus<const FMA: bool, const L: usize>(a: &[f32; L], s: f32, b: &[f32; L]) -> [f32; L] {
    zip2(a, b, |a, b| mul_add::<FMA>(s, b, a))
}

#[inline(always)]
fn add<const L: usize>(a: &[f32; L], b: &[f32; L]) -> [f32; L] {
    zip2(a, b, |a, b| a + b)
}

#[inline(always)]
fn subtract<const L: usize>(a: &[f32; L], b: &[f32; L]) -> [f32; L] {
    zip2(a, b, |a, b| a - b)
}

#[inline(always)]
fn scaled<const L: usize>(a: &[f32; L], s: f32) -> [f32; L] {
    let mut out = *a;
    for l in 0..L {
        out[l] *= s;
    }
    out
}

pub(super) struct F2;

impl Points<2, 4> for F2 {
    #[inline(always)]
    fn input<const FMA: bool, const L: usize>(d: [&[f32; L]; 4]) -> [[f32; L]; 4] {
        [subtract(d[0], d[2]), add(d[1], d[2]), subtract(d[2], d[1]), subtract(d[1], d[3])]
    }

    #[inline(always)]
    fn output<const FMA: bool, const L: usize>(r: [&[f32; L]; 4]) -> [[f32; L]; 2] {
        [add(r[0], &add(r[1], r[2])), subtract(&subtract(r[1], r[2]), r[3])]
    }

    #[inline(always)]
    fn kernel<const L: usize>(g: [&[f32; L]; 3]) -> [[f32; L]; 4] {
        let (even, odd) = (scaled(&add(g[0], g[2]), 0.5), scaled(g[1], 0.5));
        [*g[0], add(&even, &odd), subtract(&even, &odd), *g[2]]
    }
}

pub(super) struct F4;

impl Points<4, 6> for F4 {
    #[inline(always)]
    fn input<const FMA: bool, const L: usize>(d: [&[f32; L]; 6]) -> [[f32; L]; 6] {
        let even = plus::<FMA, L>(d[4], -2.0, d[2]);
        let odd = plus::<FMA, L>(d[3], -2.0, d[1]);
        let even_half = plus::<FMA, L>(d[4], -0.5, d[2]);
        let odd_half = plus::<FMA, L>(d[3], -0.5, d[1]);
        let first = plus::<FMA, L>(d[0], -2.5, d[2]);
        let last = plus::<FMA, L>(d[1], -2.5, d[3]);
        [
            zip2(&first, d[4], |a, b| a + b),
            plus::<FMA, L>(&even, FRAC_1_SQRT_2, &odd),
            plus::<FMA, L>(&even, -FRAC_1_SQRT_2, &odd),
            plus::<FMA, L>(&even_half, SQRT_2, &odd_half),
            plus::<FMA, L>(&even_half, -SQRT_2, &odd_half),
            zip2(&last, d[5], |a, b| a + b),
        ]
    }

    #[inline(always)]
    fn output<const FMA: bool, const L: usize>(r: [&[f32; L]; 6]) -> [[f32; L]; 4] {
        let (sum, difference) = (zip2(r[1], r[2], |a, b| a + b), zip2(r[1], r[2], |a, b| a - b));
        let (sum_two, difference_two) = (zip2(r[3], r[4], |a, b| a + b), zip2(r[3], r[4], |a, b| a - b));
        let first = zip2(r[0], &sum, |a, b| a + b);
        let second = difference.map(|a| a * FRAC_1_SQRT_2);
        let third = sum.map(|a| a * 0.5);
        let last = plus::<FMA, L>(r[5], 0.5 * FRAC_1_SQRT_2, &difference);
        [
            zip2(&first, &sum_two, |a, b| a + b),
            plus::<FMA, L>(&second, SQRT_2, &difference_two),
            plus::<FMA, L>(&third, 2.0, &sum_two),
            plus::<FMA, L>(&last, 2.0 * SQRT_2, &difference_two),
        ]
    }

    #[inline(always)]
    fn kernel<const L: usize>(g: [&[f32; L]; 3]) -> [[f32; L]; 6] {
        let even = scaled(&add(g[0], &scaled(g[2], 0.5)), -2.0 / 3.0);
        let odd = scaled(g[1], -2.0 / 3.0 * FRAC_1_SQRT_2);
        let even_two = scaled(&add(g[0], &scaled(g[2], 2.0)), 1.0 / 6.0);
        let odd_two = scaled(g[1], 1.0 / 6.0 * SQRT_2);
        [*g[0], add(&even, &odd), subtract(&even, &odd), add(&even_two, &odd_two), subtract(&even_two, &odd_two), *g[2]]
    }
}
