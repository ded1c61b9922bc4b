//! Trimming: the parameters that matter most to the concept are given up and start anew.

use super::select::kth_smallest;
use crate::diffusion::Generator;
use crate::nn::ParamStore;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Connection sensitivity of each parameter of the score scope, by name, flat: `|a * theta|` with `a` the sum over
/// batches of `|dL/dtheta|`.
pub type Scores = BTreeMap<String, Vec<f32>>;

/// What a trimmed entry of a weight becomes; entries of a bias become 0, of a norm's weight 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Uniform in `+-sqrt(6 / fan_in)` (PyTorch's `kaiming_uniform_`, a = 0; the published nudity script).
    Kaiming,
    /// Normal with standard deviation 0.02 (the published class script).
    Normal,
    /// Normal with the standard deviation that the tensor itself has.
    Matched,
}

/// What trimming did; part of the report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrimSummary {
    /// Entries of the score scope, over which the threshold was taken.
    pub scored: usize,
    /// `floor(kept * scored)`.
    pub k: usize,
    /// The k-th smallest score; greater ones are trimmed.
    pub threshold: f32,
    /// Trimmed entries of each tensor in the trim scope that lost any.
    pub trimmed: BTreeMap<String, usize>,
    /// Trimmed entries in all.
    pub total: usize,
}

/// `k = floor(kept * n)`, in f64 as Python does.
pub fn kept_count(kept: f64, n: usize) -> usize {
    (kept * n as f64).floor() as usize
}

/// The threshold over all scores: the `floor(kept * n)`-th smallest.
///
/// # Errors
/// If that is no position, or a score is not a finite number.
pub fn threshold(scores: &Scores, kept: f64) -> Result<(usize, f32)> {
    let slices: Vec<(&str, &[f32])> = scores.iter().map(|(name, s)| (name.as_str(), s.as_slice())).collect();
    let k = kept_count(kept, slices.iter().map(|(_, s)| s.len()).sum());
    Ok((k, kth_smallest(&slices, k)?))
}

/// Re-initialises every entry of the tensors `scope` whose score is strictly greater than the threshold. The trimmed
/// parameters must be trainable in `params`.
///
/// Draws for every entry of a tensor that loses any, in order of name, so that the outcome depends on the seed alone.
pub fn trim(
    params: &ParamStore,
    scores: &Scores,
    kept: f64,
    scope: &[String],
    init: Init,
    noise: &mut Generator,
) -> Result<TrimSummary> {
    let (k, threshold) = threshold(scores, kept)?;
    let mut summary =
        TrimSummary { scored: scores.values().map(Vec::len).sum(), k, threshold, ..TrimSummary::default() };
    for name in scope {
        let Some(scores) = scores.get(name) else { continue };
        let count = scores.iter().filter(|s| **s > threshold).count();
        if count == 0 {
            continue;
        }
        let var = params.vars().get(name);
        let var = var.ok_or_else(|| Error::Weights(format!("{name} is trimmed but not trainable")))?;
        let mut values = var.flatten_all()?.to_vec1::<f32>()?;
        let fresh = fresh(name, var.dims(), &values, init, noise);
        for ((value, fresh), score) in values.iter_mut().zip(fresh).zip(scores) {
            if *score > threshold {
                *value = fresh;
            }
        }
        var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
        summary.trimmed.insert(name.clone(), count);
        summary.total += count;
    }
    if summary.total == 0 {
        return Err(Error::usage(
            "nothing was trimmed: no score in the trim scope is above the threshold; lower --kept or widen --trim-scope",
        ));
    }
    Ok(summary)
}

/// A new value for every entry of a tensor.
fn fresh(name: &str, dims: &[usize], old: &[f32], init: Init, noise: &mut Generator) -> Vec<f32> {
    let n = old.len();
    if dims.len() < 2 {
        return vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; n];
    }
    let fan_in: usize = dims[1..].iter().product();
    let normal = |noise: &mut Generator, deviation: f32| noise.randn(n).into_iter().map(|v| v * deviation).collect();
    match init {
        Init::Kaiming => {
            let bound = (6.0 / fan_in as f64).sqrt() as f32;
            (0..n).map(|_| noise.uniform() * 2.0 * bound - bound).collect()
        }
        Init::Normal => normal(noise, 0.02),
        Init::Matched => {
            let mean = old.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
            let variance = old.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n as f64;
            normal(noise, variance.sqrt() as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn store(weight: &[f32], bias: &[f32]) -> ParamStore {
        let tensors = [
            ("a.bias".to_string(), Tensor::new(bias, &Device::Cpu).unwrap()),
            ("a.weight".to_string(), Tensor::from_slice(weight, (2, weight.len() / 2), &Device::Cpu).unwrap()),
        ];
        let mut params = ParamStore::new(tensors.into_iter().collect());
        params.make_trainable(["a.weight", "a.bias"]).unwrap();
        params
    }

    fn value(params: &ParamStore, name: &str) -> Vec<f32> {
        params.vars()[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn exactly_the_strictly_greater_entries_in_scope_change() {
        let scores: Scores =
            [("a.bias".into(), vec![9., 1.]), ("a.weight".into(), vec![1., 2., 5., 5., 3., 7.])].into();
        for init in [Init::Kaiming, Init::Normal, Init::Matched] {
            let params = store(&[1., 2., 3., 4., 5., 6.], &[7., 8.]);
            // n = 8, k = 6: sorted 1 1 2 3 5 5 7 9, so tau = 5 and 7, 9 are trimmed; the ties stay
            let scope = ["a.bias".to_string(), "a.weight".to_string()];
            let summary = trim(&params, &scores, 0.75, &scope, init, &mut Generator::new(0)).unwrap();
            assert_eq!((summary.k, summary.threshold, summary.total, summary.scored), (6, 5.0, 2, 8));
            assert_eq!(value(&params, "a.bias"), [0., 8.]);
            let weight = value(&params, "a.weight");
            assert_eq!(weight[..5], [1., 2., 3., 4., 5.]);
            assert!(weight[5] != 6. && weight[5] != 0. && weight[5].abs() <= 6., "never zero: {}", weight[5]);
        }
        let params = store(&[1., 2., 3., 4., 5., 6.], &[7., 8.]);
        let scope = ["a.weight".to_string()];
        let summary = trim(&params, &scores, 0.75, &scope, Init::Kaiming, &mut Generator::new(0)).unwrap();
        assert_eq!((summary.total, value(&params, "a.bias")), (1, vec![7., 8.]));
    }

    #[test]
    fn kaiming_fills_its_interval() {
        let n = 4096;
        let params = store(&vec![100.; n], &[0., 0.]);
        let scores: Scores = [("a.bias".into(), vec![0.; 2]), ("a.weight".into(), vec![1.; n])].into();
        trim(&params, &scores, 0.0003, &["a.weight".into()], Init::Kaiming, &mut Generator::new(3)).unwrap();
        let weight = value(&params, "a.weight");
        let bound = (6.0f32 / (n as f32 / 2.0)).sqrt();
        let largest = weight.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest <= bound && largest > 0.99 * bound, "{largest} of {bound}");
    }

    #[test]
    fn k_is_taken_in_f64() {
        assert_eq!(kept_count(0.99, 4_800_000), 4_752_000);
        assert_eq!(kept_count(0.9, 10), 9);
    }
}
