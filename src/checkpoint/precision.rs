//! In how many bits weights are kept in memory.

use crate::Result;
use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
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
    /// The same rounded to `f16` (11 bits of mantissa): a checkpoint in `f16`, as most are published, is kept exactly. A tensor that
    /// `f16` does not hold well ([`Precision::keep`]) stays `f32`. Only weights are `f16`, on a GPU too: nothing that is computed can
    /// overflow.
    F16,
}

impl Precision {
    /// Its name, as `--dtype` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Whether a tensor of this shape is rounded, unless it is exact.
    pub fn halves(self, shape: &[usize]) -> bool {
        self != Self::F32 && shape.len() > 1
    }

    /// The type of a tensor of this shape, unless it is exact or [`Precision::keep`] finds that it does not fit.
    pub fn kept_as(self, shape: &[usize]) -> DType {
        match self {
            Self::Bf16 if self.halves(shape) => DType::BF16,
            Self::F16 if self.halves(shape) => DType::F16,
            _ => DType::F32,
        }
    }

    /// The tensor of these finite values in the type of [`Precision::kept_as`], rounded to nearest; in `f32` if one of them is beyond
    /// that type's range, or if rounding to `f16` would change them by more than 2^-10 of their norm (they are below its normal range,
    /// 6.1e-5, all in all: `bf16` would lose less).
    ///
    /// # Errors
    /// If the values do not fit the shape, or there is no room for them on the device.
    pub fn keep(self, values: Vec<f32>, shape: &[usize], device: &Device) -> Result<Tensor> {
        Ok(match self.kept_as(shape) {
            DType::BF16 => match to_bf16(&values) {
                Some(halves) => Tensor::from_vec(halves, shape, device)?,
                None => Tensor::from_vec(values, shape, device)?,
            },
            DType::F16 => match to_f16(&values) {
                Some(halves) => Tensor::from_vec(halves, shape, device)?,
                None => Tensor::from_vec(values, shape, device)?,
            },
            _ => Tensor::from_vec(values, shape, device)?,
        })
    }
}

/// `None` if a value becomes infinite.
fn to_bf16(values: &[f32]) -> Option<Vec<bf16>> {
    let mut halves = vec![bf16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves.iter().fold(true, |finite, x| finite & x.is_finite()).then_some(halves)
}

/// `None` if a value becomes infinite, or rounding loses more than [`Precision::keep`] allows.
fn to_f16(values: &[f32]) -> Option<Vec<f16>> {
    const LOSS: f64 = 1.0 / (1 << 10) as f64;
    const PART: usize = 1 << 10;
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let (mut off, mut size) = ([0f64; 8], [0f64; 8]);
    let mut back = [0f32; PART];
    for (values, halves) in values.chunks(PART).zip(halves.chunks(PART)) {
        let back = &mut back[..halves.len()];
        halves.convert_to_f32_slice(back);
        // eight sums side by side, so that it vectorises; what became infinite is infinitely far off
        let mut add = |i: usize, value: f32, back: f32| {
            off[i] += f64::from(value - back).powi(2);
            size[i] += f64::from(value).powi(2);
        };
        let ((values, rest), (back, rest_back)) = (values.as_chunks::<8>(), back.as_chunks::<8>());
        for (values, back) in values.iter().zip(back) {
            (0..8).for_each(|i| add(i, values[i], back[i]));
        }
        rest.iter().zip(rest_back).for_each(|(value, back)| add(0, *value, *back));
    }
    let (off, size): (f64, f64) = (off.iter().sum(), size.iter().sum());
    (off <= LOSS * LOSS * size).then_some(halves)
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.to_lowercase().as_str() {
            "f32" | "fp32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "float16" => Ok(Self::F16),
            other => Err(format!("{other} is not known; choose f32, or f16 or bf16 for half the memory")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(precision: Precision, values: &[f32]) -> (DType, Vec<f32>) {
        let tensor = precision.keep(values.to_vec(), &[1, values.len()], &Device::Cpu).unwrap();
        let widened = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        (tensor.dtype(), widened)
    }

    #[test]
    fn what_f16_does_not_hold_stays_f32() {
        let with = |more: &[f32]| [&[1.0, -0.5, 3.0, 0.25, -0.75, 2.0, 1.5, 0.125, 0.375][..], more].concat();
        // as large as f16 goes, and as small; what is rounded away beside others is nothing that counts
        for values in [with(&[65504.0, -65519.0]), with(&[2f32.powi(-24), 1e-9, -1e-30]), vec![0.0; 3], vec![]] {
            let (dtype, found) = kept(Precision::F16, &values);
            assert_eq!(dtype, DType::F16, "{values:?}");
            let rounded: Vec<f32> = values.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
            assert_eq!(found, rounded);
        }
        // beyond its range; below it all in all, by a little and so far that squares vanish; not where f16 is exact there too
        for values in [with(&[65520.0]), with(&[-1e30]), vec![1e-5, -1.37e-6, 3.3e-6], vec![1e-30; 20]] {
            assert_eq!(kept(Precision::F16, &values), (DType::F32, values));
        }
        assert_eq!(kept(Precision::F16, &[2f32.powi(-24), 3.0 * 2f32.powi(-24)]).0, DType::F16);
        assert_eq!(kept(Precision::Bf16, &with(&[65520.0, 1e-30])).0, DType::BF16);
        assert_eq!(kept(Precision::Bf16, &with(&[f32::MAX])), (DType::F32, with(&[f32::MAX])));
        let (dtype, found) = kept(Precision::F32, &with(&[1e-30]));
        assert_eq!((dtype, found), (DType::F32, with(&[1e-30])));
        let bias = Precision::F16.keep(vec![1.0; 3], &[3], &Device::Cpu).unwrap();
        assert_eq!(bias.dtype(), DType::F32);
    }

    /// Whatever is kept in f16 is off by less than bf16 would be.
    #[test]
    fn f16_never_loses_more_than_bf16() {
        let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mut types = Vec::new();
        for power in -26..=17 {
            let values = crate::diffusion::Generator::new(power as u64).randn(1000);
            let values: Vec<f32> = values.iter().map(|x| x * 2f32.powi(power)).collect();
            let off = |precision: Precision| {
                let (dtype, found) = kept(precision, &values);
                let errors: Vec<f32> = values.iter().zip(&found).map(|(a, b)| a - b).collect();
                (dtype, norm(&errors) / norm(&values))
            };
            let ((dtype, half), (_, brain)) = (off(Precision::F16), off(Precision::Bf16));
            assert!(half < brain, "times 2^{power}: {half:e} where bf16 loses {brain:e}");
            types.push(dtype);
        }
        assert_eq!(types, [&[DType::F32; 11][..], &[DType::F16; 30], &[DType::F32; 3]].concat()); // from 2^-15 to 2^14
    }
}
