//! The vectors that the matrix products are written in: AVX-512, AVX2, and arrays that the compiler makes vectors of.

use crate::nn::kernels::simd::{BASELINE_FMA, mul_add};
use crate::nn::kernels::values::{widen, widen_f16};
use half::{bf16, f16};

/// What an operand may consist of.
pub(super) trait Number: Copy {
    /// [`Vector::load`], [`Vector::widen`] or [`Vector::widen_f16`].
    ///
    /// # Safety
    /// As of these.
    unsafe fn load<T: Vector>(from: *const Self) -> T;

    fn to_f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<T: Vector>(from: *const Self) -> T {
        // SAFETY: as the caller says.
        unsafe { T::load(from) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    unsafe fn load<T: Vector>(from: *const Self) -> T {
        // SAFETY: as the caller says.
        unsafe { T::widen(from) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        widen(self)
    }
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn load<T: Vector>(from: *const Self) -> T {
        // SAFETY: as the caller says.
        unsafe { T::widen_f16(from) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        widen_f16(self)
    }
}

/// Floats that are multiplied together, and what a product does with them.
///
/// # Safety
/// Of every method: the machine must have the instructions, and the addresses must be valid for what is read or written
/// there.
pub(super) trait Vector: Copy {
    /// Floats of a vector.
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Numbers of half the size, without rounding.
    unsafe fn widen(from: *const bf16) -> Self;
    /// As [`Vector::widen`]; with AVX2, the machine must have F16C too.
    unsafe fn widen_f16(from: *const f16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;

    /// `a b + c` of single floats, rounded as [`Vector::mul_add`] does.
    unsafe fn fused(a: f32, b: f32, c: f32) -> f32;

    /// Writes a square of `LANES` rows, `stride` apart, as columns: row `i` goes to `to[i], to[pitch + i], ..`, one
    /// column after the other (where `pitch` is less than `LANES`, each overwrites the end of the one before). Rows after
    /// `last` are read as `last`.
    unsafe fn transpose<N: Number>(from: *const N, stride: usize, last: usize, to: *mut f32, pitch: usize);
}

/// Four floats for any machine: SSE2, NEON, or whatever the compiler has for them.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Vector for Portable {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: four floats may be read, says the caller.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn widen(from: *const bf16) -> Self {
        // SAFETY: four numbers may be read, says the caller.
        Self(unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(Number::to_f32))
    }

    #[inline(always)]
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: four numbers may be read, says the caller.
        Self(unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(Number::to_f32))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: four floats may be written, says the caller.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|l| mul_add::<BASELINE_FMA>(self.0[l], b.0[l], c.0[l])))
    }

    #[inline(always)]
    unsafe fn fused(a: f32, b: f32, c: f32) -> f32 {
        mul_add::<BASELINE_FMA>(a, b, c)
    }

    #[inline(always)]
    unsafe fn transpose<N: Number>(from: *const N, stride: usize, last: usize, to: *mut f32, pitch: usize) {
        // SAFETY: the caller vouches for four rows and four columns.
        unsafe {
            let mut rows = [[0.0; 4]; 4];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = N::load::<Self>(from.add(i.min(last) * stride)).0;
            }
            let [a, b, c, d] = rows;
            for (j, (((a, b), c), d)) in a.into_iter().zip(b).zip(c).zip(d).enumerate() {
                Self([a, b, c, d]).store(to.add(j * pitch));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, turned};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Number, Vector};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    /// Sixteen floats (AVX-512).
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller vouches for the instructions.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the address too.
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn widen(from: *const bf16) -> Self {
            // SAFETY: as above.
            Self(unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            })
        }

        #[inline(always)]
        unsafe fn widen_f16(from: *const f16) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for the instructions.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn fused(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        unsafe fn transpose<N: Number>(from: *const N, stride: usize, last: usize, to: *mut f32, pitch: usize) {
            // SAFETY: the caller vouches for sixteen rows and columns, and for the instructions.
            unsafe {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = N::load::<Self>(from.add(i.min(last) * stride)).0;
                }
                for (j, column) in turned(rows).iter().enumerate() {
                    _mm512_storeu_ps(to.add(j * pitch), *column);
                }
            }
        }
    }

    /// The rows of a square as its columns.
    ///
    /// # Safety
    /// The machine must have AVX-512.
    #[inline(always)]
    pub unsafe fn turned(mut a: [__m512; 16]) -> [__m512; 16] {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let mut b = a;
            // within each quarter of the vectors: squares of 2, then of 4; then the quarters themselves
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                a[4 * i] = _mm512_shuffle_ps::<0x44>(b[4 * i], b[4 * i + 2]);
                a[4 * i + 1] = _mm512_shuffle_ps::<0xee>(b[4 * i], b[4 * i + 2]);
                a[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b[4 * i + 1], b[4 * i + 3]);
                a[4 * i + 3] = _mm512_shuffle_ps::<0xee>(b[4 * i + 1], b[4 * i + 3]);
            }
            // a[4 g + c]: of rows 4 g to 4 g + 3, columns c, 4 + c, 8 + c and 12 + c
            for c in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(a[c], a[4 + c]); // columns c and 8 + c of rows 0 to 7
                let high = _mm512_shuffle_f32x4::<0x88>(a[8 + c], a[12 + c]);
                let low_odd = _mm512_shuffle_f32x4::<0xdd>(a[c], a[4 + c]); // columns 4 + c and 12 + c
                let high_odd = _mm512_shuffle_f32x4::<0xdd>(a[8 + c], a[12 + c]);
                b[c] = _mm512_shuffle_f32x4::<0x88>(low, high);
                b[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low, high);
                b[4 + c] = _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd);
                b[12 + c] = _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd);
            }
            b
        }
    }

    impl Avx512 {
        /// The vector, for what this trait does not know of.
        #[inline(always)]
        pub fn vector(self) -> __m512 {
            self.0
        }
    }

    /// Eight floats (AVX2 and FMA).
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    impl Vector for Avx2 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller vouches for the instructions.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the address too.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn widen(from: *const bf16) -> Self {
            // SAFETY: as above.
            Self(unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            })
        }

        #[inline(always)]
        unsafe fn widen_f16(from: *const f16) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for the instructions.
            Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn fused(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        unsafe fn transpose<N: Number>(from: *const N, stride: usize, last: usize, to: *mut f32, pitch: usize) {
            // SAFETY: the caller vouches for eight rows and columns, and for the instructions.
            unsafe {
                let mut a = [_mm256_setzero_ps(); 8];
                let mut b = a;
                for (i, row) in a.iter_mut().enumerate() {
                    *row = N::load::<Self>(from.add(i.min(last) * stride)).0;
                }
                // within each half of the vectors: squares of 2, then of 4; then the halves themselves
                for i in 0..4 {
                    b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
                    b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
                }
                for i in 0..2 {
                    a[4 * i] = _mm256_shuffle_ps::<0x44>(b[4 * i], b[4 * i + 2]);
                    a[4 * i + 1] = _mm256_shuffle_ps::<0xee>(b[4 * i], b[4 * i + 2]);
                    a[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b[4 * i + 1], b[4 * i + 3]);
                    a[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b[4 * i + 1], b[4 * i + 3]);
                }
                for c in 0..4 {
                    _mm256_storeu_ps(to.add(c * pitch), _mm256_permute2f128_ps::<0x20>(a[c], a[4 + c]));
                }
                for c in 0..4 {
                    _mm256_storeu_ps(to.add((4 + c) * pitch), _mm256_permute2f128_ps::<0x31>(a[c], a[4 + c]));
                }
            }
        }
    }
}
