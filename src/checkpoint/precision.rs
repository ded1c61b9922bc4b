//! In how many bits weights are kept in memory.

use candle_core::Device;
use std::fmt;
use std::str::FromStr;

/// The type of weights in memory; everything is computed in `f32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are in `f32`.
    #[default]
    F32,
    /// Frozen matrices and convolutions rounded to `bf16` (8 bits of mantissa), in half the memory; norms, biases, and what is
    /// scored or trained in `f32`.
    Bf16,
}

impl Precision {
    /// Its name, as `--dtype` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether a tensor of this shape is rounded, unless it is exact.
    pub fn halves(self, shape: &[usize]) -> bool {
        self == Self::Bf16 && shape.len() > 1
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_lowercase().as_str() {
            "f32" | "fp32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            other => Err(format!("{other} is not known; choose f32, or bf16 for half the memory")),
        }
    }
}

/// How to load a model.
#[derive(Clone, Copy)]
pub struct Loading<'a> {
    /// How weights are kept.
    pub precision: Precision,
    /// The UNet's parameters that are kept in `f32` in any case: those that are scored or trained.
    pub exact: &'a (dyn Fn(&str) -> bool + Sync),
    /// A model that was loaded in the same way; what is byte for byte the same in both shares its memory.
    pub beside: Option<(&'a super::ModelFiles, &'a super::LoadedModel)>,
    /// Where weights go.
    pub device: &'a Device,
}

/// Where weights go if nothing is said.
static CPU: Device = Device::Cpu;

impl Default for Loading<'_> {
    fn default() -> Self {
        Self { precision: Precision::F32, exact: &|_| true, beside: None, device: &CPU }
    }
}
