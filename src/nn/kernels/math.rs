//! Branch-free `exp`, the normal distribution and sums, for loops that are to be vectorised.

use super::simd::mul_add;

/// `e^x` with a relative error below 2e-7; 0 below -86.9, infinity above 88.72, NaN for NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer, in the low bits
    let clamped = if x < -86.9 { -86.9 } else { x };
    let clamped = if clamped > 88.8 { 88.8 } else { clamped };
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // x - n ln 2, with ln 2 in two parts
    let r = mul_add::<FMA>(n, -0.693_359_4, clamped);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let p = mul_add::<FMA>(1.987_569_1e-4, r, 1.398_2e-3);
    let p = mul_add::<FMA>(p, r, 8.333_452e-3);
    let p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    let p = mul_add::<FMA>(p, r, 1.666_666_5e-1);
    let p = mul_add::<FMA>(p, r, 0.5);
    let p = mul_add::<FMA>(p * r, r, r) + 1.0;
    // 2^(n-1), then twice that: n may be 128
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let y = p * scale * 2.0;
    let y = if x < -86.9 { 0.0 } else { y };
    if x > 88.722_83 { f32::INFINITY } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The normal distribution: `(Phi(x), phi(x))`, from `erf` by Abramowitz and Stegun 7.1.26 (error of `erf` below 3e-7);
/// `Phi` keeps its relative precision in the lower tail.
#[inline(always)]
pub fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / mul_add::<FMA>(0.327_591_1, z, 1.0);
    let e = exp::<FMA>(-z * z);
    let p = mul_add::<FMA>(1.061_405_4, t, -1.453_152_1);
    let p = mul_add::<FMA>(p, t, 1.421_413_8);
    let p = mul_add::<FMA>(p, t, -0.284_496_72);
    let p = mul_add::<FMA>(p, t, 0.254_829_6);
    let tail = 0.5 * p * t * e;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, e * 0.398_942_3)
}

/// The sum of `f(a[i], b[i])` in `L` lanes.
#[inline(always)]
pub fn sum2<const L: usize>(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; L];
    let (a, a_rest) = a.as_chunks::<L>();
    let (b, b_rest) = b.as_chunks::<L>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..L {
            lanes[i] = f(lanes[i], a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = f(lanes[i], a, b);
    }
    total(lanes)
}

/// As [`sum2`], of one slice.
#[inline(always)]
pub fn sum1<const L: usize>(a: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; L];
    let (a, rest) = a.as_chunks::<L>();
    for a in a {
        for i in 0..L {
            lanes[i] = f(lanes[i], a[i]);
        }
    }
    for (i, &a) in rest.iter().enumerate() {
        lanes[i] = f(lanes[i], a);
    }
    total(lanes)
}

/// The sum of `L` (a power of two) lanes, by halves.
#[inline(always)]
pub fn total<const L: usize>(mut lanes: [f32; L]) -> f32 {
    let mut width = L / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element; `f32::NEG_INFINITY` of none. Ignores NaN.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (a, rest) = a.as_chunks::<16>();
    for a in a {
        for i in 0..16 {
            lanes[i] = if a[i] > lanes[i] { a[i] } else { lanes[i] };
        }
    }
    for (i, &a) in rest.iter().enumerate() {
        lanes[i] = if a > lanes[i] { a } else { lanes[i] };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}
