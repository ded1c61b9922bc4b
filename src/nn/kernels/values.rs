//! Numbers as they lie in memory.

use super::simd::prefetch;
use half::{bf16, f16};

/// Without rounding. (`half`'s own asks for NaNs, and is not inlined into the loops.)
#[inline(always)]
pub fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// A number rounded to the nearest `bf16`, ties to even, in the upper half of its bits.
#[inline(always)]
pub fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

/// As [`widen`], without a branch: a loop of them becomes vectors.
#[inline(always)]
pub fn widen_f16(value: f16) -> f32 {
    const REBIASED: u32 = (127 - 15) << 23;
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let normal = magnitude + REBIASED;
    // 2^-14 (1 + fraction) - 2^-14
    let least = f32::from_bits(REBIASED + (1 << 23));
    let subnormal = (f32::from_bits(normal + (1 << 23)) - least).to_bits();
    let widened = if magnitude < 1 << 23 { subnormal } else { normal };
    let infinite = if magnitude >= 31 << 23 { REBIASED } else { 0 };
    f32::from_bits((widened + infinite) | ((bits & 0x8000) << 16))
}

/// `f32`, or the `bf16` or `f16` of frozen weights, which are widened (exactly) where an operand is packed.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Values<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// The number at `i`.
    pub fn at(self, i: usize) -> f32 {
        match self {
            Self::F32(values) => values[i],
            Self::Bf16(values) => widen(values[i]),
            Self::F16(values) => widen_f16(values[i]),
        }
    }

    /// From `i` on.
    pub fn from(self, i: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[i..]),
            Self::Bf16(values) => Self::Bf16(&values[i..]),
            Self::F16(values) => Self::F16(&values[i..]),
        }
    }

    /// Asks for `n` neighbours from `i` on, which will be read soon: where strides are long, the processor does not guess them.
    #[inline(always)]
    pub fn fetch(self, i: usize, n: usize) {
        const LINE: usize = 64;
        let (at, size) = match self {
            Self::F32(values) => (values.as_ptr().wrapping_add(i).cast::<u8>(), size_of::<f32>()),
            Self::Bf16(values) => (values.as_ptr().wrapping_add(i).cast(), size_of::<bf16>()),
            Self::F16(values) => (values.as_ptr().wrapping_add(i).cast(), size_of::<f16>()),
        };
        for byte in (0..n * size).step_by(LINE).chain((n * size).checked_sub(1)) {
            prefetch(at.wrapping_add(byte));
        }
    }

    /// `N` neighbours.
    #[inline(always)]
    pub fn some<const N: usize>(self, i: usize) -> [f32; N] {
        match self {
            Self::F32(values) => std::array::from_fn(|n| values[i..i + N][n]),
            Self::Bf16(values) => std::array::from_fn(|n| widen(values[i..i + N][n])),
            Self::F16(values) => std::array::from_fn(|n| widen_f16(values[i..i + N][n])),
        }
    }
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Values<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_sixteen_bits_is_widened_without_rounding() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            for (found, exact) in [(widen_f16(half), half.to_f64()), (widen(brain), brain.to_f64())] {
                let same = f64::from(found) == exact && found.is_sign_negative() == exact.is_sign_negative();
                assert!(same || found.is_nan() && exact.is_nan(), "{bits:#06x}: {found}, not {exact}");
            }
        }
    }
}
