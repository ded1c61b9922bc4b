//! Which vector instructions the kernels use.

use crate::{Error, Result};
use std::sync::OnceLock;

/// A set of vector instructions, each with all that the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// What the target's baseline has: SSE2, NEON.
    Portable,
    /// AVX2 and FMA: eight floats a vector.
    Avx2,
    /// AVX-512 (F, VL, BW, DQ): sixteen floats a vector.
    Avx512,
    /// AMX beside it: tiles of `bf16`, of which products of `f32` are made without loss (Linux alone).
    Amx,
}

impl Instructions {
    /// The variable that limits which are used, to compare them and to test each: `portable`, `avx2`, `avx512` or `amx`.
    pub const LIMIT: &'static str = "ERASE_CONCEPT_INSTRUCTIONS";

    /// All, plainest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Those that the kernels use: the best of this machine within the limit, the same for the life of the process.
    pub fn used() -> Self {
        static USED: OnceLock<Instructions> = OnceLock::new();
        *USED.get_or_init(|| Self::best().min(Self::limit().ok().flatten().unwrap_or(Self::Amx)))
    }

    /// The best of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            let wide = std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq");
            return match wide {
                true if tiles() => Self::Amx,
                true => Self::Avx512,
                false => Self::Avx2,
            };
        }
        Self::Portable
    }

    /// What [`Self::LIMIT`] asks for.
    ///
    /// # Errors
    /// If it names none of them.
    pub fn limit() -> Result<Option<Self>> {
        let Some(name) = std::env::var_os(Self::LIMIT).filter(|name| !name.is_empty()) else { return Ok(None) };
        let known = Self::ALL.into_iter().find(|set| name == set.name());
        let unknown = || {
            Error::Usage(format!(
                "{} is {name:?}; it may be portable, avx2, avx512 or amx, or not be set at all",
                Self::LIMIT
            ))
        };
        known.map(Some).ok_or_else(unknown)
    }

    /// The name in the limit and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

/// Whether the processor has tiles of `bf16`, and the system lets this process use them, which it has to be asked.
#[cfg(target_arch = "x86_64")]
fn tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        *GRANTED.get_or_init(|| {
            const REQUEST: libc::c_ulong = 0x1023; // ARCH_REQ_XCOMP_PERM
            const TILES: libc::c_ulong = 18; // XFEATURE_XTILEDATA
            let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
            let (bf16, tile) = (features & 1 << 22 != 0, features & 1 << 24 != 0);
            // SAFETY: asks for leave to use registers, for all threads of this process; no memory is touched.
            bf16 && tile && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) } == 0
        })
    }
    #[cfg(not(target_os = "linux"))]
    false
}
