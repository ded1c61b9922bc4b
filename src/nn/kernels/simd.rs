//! Run-time choice of the instruction set.
//!
//! A kernel is written once as an `#[inline(always)]` function with a `const FMA: bool`, in loops that the compiler
//! vectorises by itself; [`dispatched`] compiles it for AVX-512, for AVX2 with FMA, and for the baseline.

/// Whether the baseline of this architecture has a fused multiply-add.
pub const BASELINE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// `a b + c`, fused where the instruction set has it (a call into libm otherwise, hence the switch).
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Asks for what lies at an address and will be read soon, where the processor does not guess it. Nothing is read: any address may be.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64, and not a read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Declares `fn name(args)` which runs `inner::<FMA>(args)` with the best instruction set of this machine.
macro_rules! dispatched {
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $inner:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $inner::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $inner::<true>($($arg),*)
                }
                use crate::nn::kernels::instructions::Instructions;
                match Instructions::used() {
                    // SAFETY: every feature that the function enables was found on this machine.
                    Instructions::Amx | Instructions::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Instructions::Avx2 => return unsafe { avx2($($arg),*) },
                    Instructions::Portable => {}
                }
            }
            $inner::<{ crate::nn::kernels::simd::BASELINE_FMA }>($($arg),*)
        }
    };
}
pub(crate) use dispatched;
