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
    let y = p * scale * 2.0; // overflows to infinity above 88.72
    if x < -86.9 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The normal distribution: `(Phi(x), phi(x))`, with `Phi(-|x|) = e^(-x^2/2) t P(t)`, `t = 1 / (1 + 0.33 |x|)` and `P`
/// a least-squares fit; `erf(x / sqrt 2) = 2 Phi(x) - 1` is off by less than 3e-7, and the lower tail keeps its relative
/// precision.
#[inline(always)]
pub fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    let t = 1.0 / mul_add::<FMA>(0.33, x.abs(), 1.0);
    let e = exp::<FMA>(-0.5 * x * x);
    let p = mul_add::<FMA>(0.046_767_17, t, -0.226_168_7);
    let p = mul_add::<FMA>(p, t, 0.341_780_45);
    let p = mul_add::<FMA>(p, t, -0.099_822_7);
    let p = mul_add::<FMA>(p, t, 0.186_888_46);
    let p = mul_add::<FMA>(p, t, 0.117_728_28);
    let p = mul_add::<FMA>(p, t, 0.132_827_06);
    let tail = p * t * e;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `Phi` by the series of erf, in `f64`.
    fn phi(x: f64) -> f64 {
        let z = x / std::f64::consts::SQRT_2;
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while f64::abs(term) > 1e-18 && n < 400.0 {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        0.5 + sum / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_within_3e7_relative() {
        for i in -86_800..88_700 {
            let x = i as f32 * 1e-3 + 1e-5;
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) / exact - 1.0).abs() < 3e-7, "exp({x}) = {got}, exactly {exact}");
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-87.5), 0.0);
        assert_eq!(exp::<true>(89.0), f32::INFINITY);
        assert!(exp::<true>(88.7).is_finite());
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn normal_is_within_3e7() {
        for i in -5_000..5_000 {
            let x = i as f32 * 1e-3;
            let (cdf, pdf) = normal::<true>(x);
            // erf(x / sqrt 2) = 2 Phi(x) - 1
            let exact = phi(f64::from(x));
            assert!((2.0 * (f64::from(cdf) - exact)).abs() < 3e-7, "Phi({x}) = {cdf}, exactly {exact}");
            let exact = (-0.5 * f64::from(x) * f64::from(x)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(pdf) - exact).abs() < 3e-7, "phi({x}) = {pdf}");
        }
    }

    #[test]
    fn sums_see_every_element() {
        for n in [0usize, 1, 15, 16, 17, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 7) % 23) as f32).collect();
            let exact: f32 = x.iter().sum();
            assert_eq!(sum1::<16>(&x, |s, x| s + x), exact);
            assert_eq!(sum2::<64>(&x, &x, |s, a, _| s + a), exact);
        }
    }
}
