//! Pointwise functions and their derivatives on slices of equal length.

use super::math::{normal, sigmoid};
use super::simd::{dispatched, mul_add};

/// The factor in CLIP's GELU.
const QUICK: f32 = 1.702;

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = f(x);
    }
}

#[inline(always)]
fn map2(x: &[f32], dy: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((o, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
        *o = f(x, dy);
    }
}

/// `d silu / dx = s (1 + x (1 - s))`.
#[inline(always)]
pub fn silu_slope<const FMA: bool>(x: f32) -> f32 {
    let s = sigmoid::<FMA>(x);
    mul_add::<FMA>(s * x, 1.0 - s, s)
}

#[inline(always)]
fn silu_inner<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    map(x, out, |x| x * sigmoid::<FMA>(x));
}

#[inline(always)]
fn silu_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    map2(x, dy, out, |x, dy| dy * silu_slope::<FMA>(x));
}

#[inline(always)]
fn gelu_inner<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    map(x, out, |x| x * normal::<FMA>(x).0);
}

#[inline(always)]
fn gelu_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    map2(x, dy, out, |x, dy| {
        let (cdf, pdf) = normal::<FMA>(x);
        dy * mul_add::<FMA>(x, pdf, cdf)
    });
}

#[inline(always)]
fn quick_gelu_inner<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    map(x, out, |x| x * sigmoid::<FMA>(QUICK * x));
}

#[inline(always)]
fn quick_gelu_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    map2(x, dy, out, |x, dy| dy * silu_slope::<FMA>(QUICK * x));
}

#[inline(always)]
fn geglu_inner<const FMA: bool>(x: &[f32], half: usize, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(half)) {
        let (a, g) = x.split_at(half);
        map2(a, g, out, |a, g| a * (g * normal::<FMA>(g).0));
    }
}

/// Elements whose slopes are computed together: arrays, as the compiler makes no vectors of two slices that are written and lie
/// side by side.
const LANES: usize = 16;

/// `(dy gelu(g), dy a gelu'(g))`.
#[inline(always)]
fn geglu_slopes<const FMA: bool, const L: usize>(a: &[f32; L], g: &[f32; L], dy: &[f32; L]) -> ([f32; L], [f32; L]) {
    let (mut da, mut dg) = ([0.0; L], [0.0; L]);
    for l in 0..L {
        let (cdf, pdf) = normal::<FMA>(g[l]);
        da[l] = dy[l] * (g[l] * cdf);
        dg[l] = dy[l] * a[l] * mul_add::<FMA>(g[l], pdf, cdf);
    }
    (da, dg)
}

#[inline(always)]
fn geglu_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], half: usize, out: &mut [f32]) {
    for ((x, dy), out) in x.chunks_exact(2 * half).zip(dy.chunks_exact(half)).zip(out.chunks_exact_mut(2 * half)) {
        let (a, g) = x.split_at(half);
        let (da, dg) = out.split_at_mut(half);
        let ((da, da_rest), (dg, dg_rest)) = (da.as_chunks_mut(), dg.as_chunks_mut());
        let ((a, a_rest), (g, g_rest), (dy, dy_rest)) = (a.as_chunks(), g.as_chunks(), dy.as_chunks());
        for ((((da, dg), a), g), dy) in da.iter_mut().zip(dg).zip(a).zip(g).zip(dy) {
            (*da, *dg) = geglu_slopes::<FMA, LANES>(a, g, dy);
        }
        for ((((da, dg), a), g), dy) in da_rest.iter_mut().zip(dg_rest).zip(a_rest).zip(g_rest).zip(dy_rest) {
            ([*da], [*dg]) = geglu_slopes::<FMA, 1>(&[*a], &[*g], &[*dy]);
        }
    }
}

#[inline(always)]
fn geglu_grad_over_inner<const FMA: bool>(x: &mut [f32], dy: &[f32], half: usize) {
    for (x, dy) in x.chunks_exact_mut(2 * half).zip(dy.chunks_exact(half)) {
        let (a, g) = x.split_at_mut(half);
        let ((a, a_rest), (g, g_rest), (dy, dy_rest)) = (a.as_chunks_mut(), g.as_chunks_mut(), dy.as_chunks());
        for ((a, g), dy) in a.iter_mut().zip(g).zip(dy) {
            (*a, *g) = geglu_slopes::<FMA, LANES>(a, g, dy);
        }
        for ((a, g), dy) in a_rest.iter_mut().zip(g_rest).zip(dy_rest) {
            ([*a], [*g]) = geglu_slopes::<FMA, 1>(&[*a], &[*g], &[*dy]);
        }
    }
}

dispatched! {
    /// `out = x sigmoid(x)`.
    pub fn silu(x: &[f32], out: &mut [f32]) = silu_inner;
}
dispatched! {
    /// `out = dy d silu(x) / dx`.
    pub fn silu_grad(x: &[f32], dy: &[f32], out: &mut [f32]) = silu_grad_inner;
}
dispatched! {
    /// `out = x Phi(x)`.
    pub fn gelu(x: &[f32], out: &mut [f32]) = gelu_inner;
}
dispatched! {
    /// `out = dy (Phi(x) + x phi(x))`.
    pub fn gelu_grad(x: &[f32], dy: &[f32], out: &mut [f32]) = gelu_grad_inner;
}
dispatched! {
    /// `out = x sigmoid(1.702 x)`.
    pub fn quick_gelu(x: &[f32], out: &mut [f32]) = quick_gelu_inner;
}
dispatched! {
    /// `out = dy silu'(1.702 x)` (`quick_gelu(x) = silu(1.702 x) / 1.702`).
    pub fn quick_gelu_grad(x: &[f32], dy: &[f32], out: &mut [f32]) = quick_gelu_grad_inner;
}
dispatched! {
    /// Rows `[a | g]` of `2 half` elements: `out = a gelu(g)`.
    pub fn geglu(x: &[f32], half: usize, out: &mut [f32]) = geglu_inner;
}
dispatched! {
    /// The gradient of [`geglu`]: rows `[dy gelu(g) | dy a gelu'(g)]`.
    pub fn geglu_grad(x: &[f32], dy: &[f32], half: usize, out: &mut [f32]) = geglu_grad_inner;
}
dispatched! {
    /// As [`geglu_grad`], in place.
    pub fn geglu_grad_over(x: &mut [f32], dy: &[f32], half: usize) = geglu_grad_over_inner;
}
