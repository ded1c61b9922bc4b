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
}

impl Instructions {
    /// The variable that limits which are used, to compare them and to test each: `portable`, `avx2` or `avx512`.
    pub const LIMIT: &'static str = "ERASE_CONCEPT_INSTRUCTIONS";

    /// All, plainest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Those that the kernels use: the best of this machine within the limit, the same for the life of the process.
    pub fn used() -> Self {
        static USED: OnceLock<Instructions> = OnceLock::new();
        *USED.get_or_init(|| Self::best().min(Self::limit().ok().flatten().unwrap_or(Self::Avx512)))
    }

    /// The best of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            let wide = std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq");
            return if wide { Self::Avx512 } else { Self::Avx2 };
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
                "{} is {name:?}; it may be portable, avx2 or avx512, or not be set at all",
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
        }
    }
}
