//! Numbers as they lie in memory.

use half::bf16;

/// Without rounding. (`half`'s own asks for NaNs, and is not inlined into the loops.)
#[inline(always)]
pub fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// `f32`, or the `bf16` of frozen weights, which are widened (exactly) where an operand is packed.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The number at `i`.
    pub fn at(self, i: usize) -> f32 {
        match self {
            Self::F32(values) => values[i],
            Self::Bf16(values) => widen(values[i]),
        }
    }

    /// From `i` on.
    pub fn from(self, i: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[i..]),
            Self::Bf16(values) => Self::Bf16(&values[i..]),
        }
    }

    /// `N` neighbours.
    #[inline(always)]
    pub fn some<const N: usize>(self, i: usize) -> [f32; N] {
        match self {
            Self::F32(values) => std::array::from_fn(|n| values[i..i + N][n]),
            Self::Bf16(values) => std::array::from_fn(|n| widen(values[i..i + N][n])),
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
