//! Statistics, normalisation and its gradient on rows and groups.

use super::activation::silu_slope;
use super::math::{sigmoid, sum1, sum2};
use super::simd::{dispatched, mul_add};

/// Sums are kept in `f32` over this many elements, and in `f64` beyond.
const BLOCK: usize = 4096;
/// Lanes for long slices: several registers, to hide the latency of additions.
const LANES: usize = 64;

// Loops, not iterator adaptors: what std does not inline would be compiled for the baseline instruction set.

#[inline(always)]
fn sum_long(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks(BLOCK) {
        sum += f64::from(sum1::<LANES>(x, &f));
    }
    sum
}

#[inline(always)]
fn sum2_long(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        sum += f64::from(sum2::<LANES>(a, b, &f));
    }
    sum
}

/// `(mean, 1 / sqrt(var + eps))` in two passes.
#[inline(always)]
fn statistics<const FMA: bool>(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = (sum_long(x, |s, x| s + x) / n) as f32;
    let variance = sum_long(x, |s, x| mul_add::<FMA>(x - mean, x - mean, s)) / n;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}

/// As [`statistics`], for a row of a layer norm: `f32` lanes suffice.
#[inline(always)]
fn row_statistics<const FMA: bool>(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = (f64::from(sum1::<16>(x, |s, x| s + x)) / n) as f32;
    let variance = f64::from(sum1::<16>(x, |s, x| mul_add::<FMA>(x - mean, x - mean, s))) / n;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}

#[inline(always)]
fn group_inner<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    silu: bool,
    out: &mut [f32],
) -> (f32, f32) {
    let (mean, rstd) = statistics::<FMA>(x, eps);
    let pixels = x.len() / weight.len();
    let channels = x.chunks_exact(pixels).zip(out.chunks_exact_mut(pixels));
    for ((x, out), (w, b)) in channels.zip(weight.iter().zip(bias)) {
        let scale = rstd * w;
        if silu {
            for (o, &x) in out.iter_mut().zip(x) {
                let y = mul_add::<FMA>(x - mean, scale, *b);
                *o = y * sigmoid::<FMA>(y);
            }
        } else {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = mul_add::<FMA>(x - mean, scale, *b);
            }
        }
    }
    (mean, rstd)
}

#[inline(always)]
fn group_over_inner<const FMA: bool>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) {
    let (mean, rstd) = statistics::<FMA>(x, eps);
    let pixels = x.len() / weight.len();
    for (x, (w, b)) in x.chunks_exact_mut(pixels).zip(weight.iter().zip(bias)) {
        let scale = rstd * w;
        for x in x {
            let y = mul_add::<FMA>(*x - mean, scale, *b);
            *x = y * sigmoid::<FMA>(y);
        }
    }
}

/// With `y = w h + b`, `h = (x - mean) rstd`, `g = w dy`: `dx = rstd (g - mean(g) - h mean(g h))`; the sums over the
/// pixels of `dy` and `dy h` of each channel are its part of `db` and `dw`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn group_grad_inner<const FMA: bool>(
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    bias: &[f32],
    stats: (f32, f32),
    silu: bool,
    dw: &mut [f32],
    db: &mut [f32],
    dx: &mut [f32],
) {
    let (mean, rstd) = stats;
    let pixels = x.len() / weight.len();
    let n = x.len() as f64;
    let (mut sum_g, mut sum_gh) = (0.0, 0.0);
    for (c, (x, dy)) in x.chunks_exact(pixels).zip(dy.chunks_exact(pixels)).enumerate() {
        let dx = &mut dx[c * pixels..(c + 1) * pixels];
        let (w, b) = (weight[c], bias[c]);
        if silu {
            let scale = rstd * w;
            for ((d, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                *d = dy * silu_slope::<FMA>(mul_add::<FMA>(x - mean, scale, b));
            }
        } else {
            dx.copy_from_slice(dy);
        }
        let sum = sum_long(dx, |s, d| s + d);
        let sum_h = sum2_long(dx, x, |s, d, x| mul_add::<FMA>(d, x - mean, s)) * f64::from(rstd);
        (db[c], dw[c]) = (sum as f32, sum_h as f32);
        sum_g += f64::from(w) * sum;
        sum_gh += f64::from(w) * sum_h;
    }
    let shift = -(f64::from(rstd) * sum_g / n) as f32;
    let slope = -(f64::from(rstd) * f64::from(rstd) * sum_gh / n) as f32;
    for ((x, dx), w) in x.chunks_exact(pixels).zip(dx.chunks_exact_mut(pixels)).zip(weight) {
        let scale = rstd * w;
        for (d, &x) in dx.iter_mut().zip(x) {
            *d = mul_add::<FMA>(*d, scale, mul_add::<FMA>(x - mean, slope, shift));
        }
    }
}

#[inline(always)]
fn rows_inner<const FMA: bool>(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) {
    let n = weight.len();
    for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let (mean, rstd) = row_statistics::<FMA>(x, eps);
        for (((o, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *o = mul_add::<FMA>((x - mean) * rstd, w, b);
        }
    }
}

#[inline(always)]
fn rows_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], weight: &[f32], eps: f64, dx: &mut [f32]) {
    let n = weight.len();
    for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let (mean, rstd) = row_statistics::<FMA>(x, eps);
        for ((d, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
            *d = dy * w;
        }
        let sum_g = sum1::<16>(dx, |s, g| s + g);
        let sum_gh = rstd * sum2::<16>(dx, x, |s, g, x| mul_add::<FMA>(g, x - mean, s));
        let (shift, slope) = (-rstd * sum_g / n as f32, -rstd * rstd * sum_gh / n as f32);
        for (d, &x) in dx.iter_mut().zip(x) {
            *d = mul_add::<FMA>(*d, rstd, mul_add::<FMA>(x - mean, slope, shift));
        }
    }
}

#[inline(always)]
fn rows_weight_grad_inner<const FMA: bool>(x: &[f32], dy: &[f32], eps: f64, dw: &mut [f32], db: &mut [f32]) {
    let n = dw.len();
    for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
        let (mean, rstd) = row_statistics::<FMA>(x, eps);
        for (((dw, db), &x), &dy) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(dy) {
            *dw = mul_add::<FMA>(dy, (x - mean) * rstd, *dw);
            *db += dy;
        }
    }
}

#[inline(always)]
fn column_sums_inner<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    for x in x.chunks_exact(out.len()) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o += x;
        }
    }
}

dispatched! {
    /// Normalises one group (`weight.len()` channels of equally many pixels), then SiLU if `silu`; returns
    /// `(mean, 1 / standard deviation)`.
    pub fn group(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, silu: bool, out: &mut [f32]) -> (f32, f32)
        = group_inner;
}
dispatched! {
    /// As [`group`] with SiLU, in place.
    pub fn group_over(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) = group_over_inner;
}
dispatched! {
    /// The gradient of [`group`] in `x`, and this sample's part of `dw` and `db` for the channels of the group.
    pub fn group_grad(
        x: &[f32], dy: &[f32], weight: &[f32], bias: &[f32], stats: (f32, f32), silu: bool,
        dw: &mut [f32], db: &mut [f32], dx: &mut [f32],
    ) = group_grad_inner;
}
dispatched! {
    /// Normalises rows of `weight.len()` elements.
    pub fn rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) = rows_inner;
}
dispatched! {
    /// The gradient of [`rows`] in `x`: as of a group norm, with the weight inside the row.
    pub fn rows_grad(x: &[f32], dy: &[f32], weight: &[f32], eps: f64, dx: &mut [f32]) = rows_grad_inner;
}
dispatched! {
    /// Adds the gradients of [`rows`] in its weight and bias.
    pub fn rows_weight_grad(x: &[f32], dy: &[f32], eps: f64, dw: &mut [f32], db: &mut [f32]) = rows_weight_grad_inner;
}
dispatched! {
    /// Adds each row of `x` to `out`.
    pub fn column_sums(x: &[f32], out: &mut [f32]) = column_sums_inner;
}
