//! Differences of numbers as integers: exact for every type, and reversible by subtraction.
//!
//! A float's bits, read as an integer, are in order of its value once negative ones are turned round. The difference of two such
//! integers counts how many floats lie between them: small for a weight that moved a little, whatever the type. It wraps, so
//! that NaN, infinities and -0.0 need no care. Signs go into the lowest bit (zigzag), and the bytes of equal weight lie together
//! (planes): the high ones are mostly zero.

use safetensors::Dtype;

/// How the bytes of a tensor are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Bytes of one.
    pub width: usize,
    /// Whether the highest bit is a sign that turns the order round.
    float: bool,
}

/// What a difference leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the base to the result.
    Forward,
    /// From the result to the base.
    Reverse,
}

impl Numbers {
    /// Numbers of this type; what is no whole number of bytes is read as bytes.
    pub fn of(dtype: Dtype) -> Self {
        let (width, float) = match dtype {
            Dtype::F64 => (8, true),
            Dtype::F32 | Dtype::C64 => (4, true),
            Dtype::F16 | Dtype::BF16 => (2, true),
            Dtype::F8_E5M2 | Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => (1, true),
            Dtype::U64 | Dtype::I64 => (8, false),
            Dtype::U32 | Dtype::I32 => (4, false),
            Dtype::U16 | Dtype::I16 => (2, false),
            _ => (1, false),
        };
        Self { width, float }
    }

    /// The planes of the differences `to - from`: plane p has byte p, the lowest first, of each. Both have the same length, a
    /// multiple of the width.
    pub fn differences(self, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
        let mut planes = vec![vec![0; from.len() / self.width]; self.width];
        match self.width {
            1 => differences::<u8, 1>(from, to, self.float, &mut planes),
            2 => differences::<u16, 2>(from, to, self.float, &mut planes),
            4 => differences::<u32, 4>(from, to, self.float, &mut planes),
            _ => differences::<u64, 8>(from, to, self.float, &mut planes),
        }
        planes
    }

    /// Moves `numbers` by the differences in `planes`, which have one byte for each of them.
    pub fn apply(self, numbers: &mut [u8], planes: &[Vec<u8>], direction: Direction) {
        match self.width {
            1 => apply::<u8, 1>(numbers, planes, self.float, direction),
            2 => apply::<u16, 2>(numbers, planes, self.float, direction),
            4 => apply::<u32, 4>(numbers, planes, self.float, direction),
            _ => apply::<u64, 8>(numbers, planes, self.float, direction),
        }
    }
}

/// An unsigned integer of `N` bytes.
trait Word<const N: usize>: Copy {
    fn read(bytes: [u8; N]) -> Self;
    fn bytes(self) -> [u8; N];
    /// A float's bits to an integer that is in order of its value.
    fn ordered(self) -> Self;
    /// The inverse of [`Word::ordered`].
    fn float(self) -> Self;
    /// `self - from`, wrapping, with its sign in the lowest bit.
    fn minus(self, from: Self) -> Self;
    /// The inverse of [`Word::minus`]: `self` moved by a difference, or back by it.
    fn moved(self, difference: Self, direction: Direction) -> Self;
}

macro_rules! word {
    ($unsigned:ty, $signed:ty, $bytes:literal) => {
        impl Word<$bytes> for $unsigned {
            fn read(bytes: [u8; $bytes]) -> Self {
                Self::from_le_bytes(bytes)
            }

            fn bytes(self) -> [u8; $bytes] {
                self.to_le_bytes()
            }

            fn ordered(self) -> Self {
                let negative = (self as $signed >> (Self::BITS - 1)) as Self; // all ones if it is
                self ^ (negative | 1 << (Self::BITS - 1))
            }

            fn float(self) -> Self {
                let negative = (!self as $signed >> (Self::BITS - 1)) as Self;
                self ^ (negative | 1 << (Self::BITS - 1))
            }

            fn minus(self, from: Self) -> Self {
                let difference = self.wrapping_sub(from) as $signed;
                ((difference << 1) ^ (difference >> (Self::BITS - 1))) as Self
            }

            fn moved(self, difference: Self, direction: Direction) -> Self {
                let difference = (difference >> 1) ^ (difference & 1).wrapping_neg();
                match direction {
                    Direction::Forward => self.wrapping_add(difference),
                    Direction::Reverse => self.wrapping_sub(difference),
                }
            }
        }
    };
}

word!(u8, i8, 1);
word!(u16, i16, 2);
word!(u32, i32, 4);
word!(u64, i64, 8);

fn differences<W: Word<N>, const N: usize>(from: &[u8], to: &[u8], float: bool, planes: &mut [Vec<u8>]) {
    let read = |bytes: &[u8; N]| if float { W::read(*bytes).ordered() } else { W::read(*bytes) };
    for (i, (from, to)) in from.as_chunks::<N>().0.iter().zip(to.as_chunks::<N>().0).enumerate() {
        let difference = read(to).minus(read(from)).bytes();
        for (plane, byte) in planes.iter_mut().zip(difference) {
            plane[i] = byte;
        }
    }
}

fn apply<W: Word<N>, const N: usize>(numbers: &mut [u8], planes: &[Vec<u8>], float: bool, direction: Direction) {
    for (i, bytes) in numbers.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let mut difference = [0; N];
        for (byte, plane) in difference.iter_mut().zip(planes) {
            *byte = plane[i];
        }
        let number = if float { W::read(*bytes).ordered() } else { W::read(*bytes) };
        let moved = number.moved(W::read(difference), direction);
        *bytes = if float { moved.float() } else { moved }.bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn there_and_back(dtype: Dtype, from: &[u8], to: &[u8]) {
        let numbers = Numbers::of(dtype);
        let planes = numbers.differences(from, to);
        let mut found = from.to_vec();
        numbers.apply(&mut found, &planes, Direction::Forward);
        assert_eq!(found, to, "{dtype:?} forward");
        numbers.apply(&mut found, &planes, Direction::Reverse);
        assert_eq!(found, from, "{dtype:?} reverse");
    }

    #[test]
    fn every_pair_of_small_floats_comes_back() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        for other in 0..=u8::MAX {
            there_and_back(Dtype::F8_E4M3, &all, &[other; 256]);
            there_and_back(Dtype::I8, &[other; 256], &all);
        }
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for other in [0, 0x8000, 0x7c00, 0xfc00, 0x7e01, 0xffff, 0x3c00, 0xbc01, 0x0001] {
            let other: Vec<u8> = [u16::to_le_bytes(other); 1 << 16].concat();
            there_and_back(Dtype::F16, &all, &other);
            there_and_back(Dtype::BF16, &other, &all);
            there_and_back(Dtype::U16, &other, &all);
        }
    }

    #[test]
    fn special_values_of_wide_floats_come_back() {
        let singles = [0f32, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, -1e-45, f32::MAX, f32::INFINITY, f32::NEG_INFINITY];
        let bits = singles.map(f32::to_bits).into_iter().chain([0x7fc0_0001, 0xffff_ffff, 0x7f80_0001]);
        let singles: Vec<[u8; 4]> = bits.map(u32::to_le_bytes).collect();
        let doubles = [0f64, -0.0, 1.5, f64::NEG_INFINITY, f64::NAN, -f64::NAN, 5e-324].map(f64::to_le_bytes);
        for turn in 0..singles.len() {
            let mut other = singles.clone();
            other.rotate_left(turn);
            there_and_back(Dtype::F32, &singles.concat(), &other.concat());
            there_and_back(Dtype::I32, &singles.concat(), &other.concat());
        }
        for turn in 0..doubles.len() {
            let mut other = doubles;
            other.rotate_left(turn);
            there_and_back(Dtype::F64, &doubles.concat(), &other.concat());
        }
    }

    #[test]
    fn a_difference_counts_the_floats_between() {
        let count = |dtype: Dtype, from: &[u8], to: &[u8]| {
            let planes = Numbers::of(dtype).differences(from, to);
            planes.iter().rev().fold(0u64, |n, plane| n << 8 | u64::from(plane[0]))
        };
        // twice the steps, one less than that upwards: the sign is in the lowest bit
        assert_eq!(count(Dtype::F32, &1f32.to_le_bytes(), &(1.0 + 3.0 * f32::EPSILON).to_le_bytes()), 6);
        assert_eq!(count(Dtype::F32, &(1.0 + f32::EPSILON).to_le_bytes(), &1f32.to_le_bytes()), 1);
        assert_eq!(count(Dtype::F16, &f16::from_f32(-1e-7).to_le_bytes(), &f16::from_f32(1e-7).to_le_bytes()), 10);
        assert_eq!(count(Dtype::BF16, &bf16::ZERO.to_le_bytes(), &bf16::NEG_ZERO.to_le_bytes()), 1);
        assert_eq!(count(Dtype::U8, &[255], &[0]), 2);
    }
}
