//! The context term of the repair: what cross-attention reads from the text of retain prompts stays.
//!
//! With `E` the embeddings of every token of every retain prompt, a layer's keys (and values) are `W E`. Their relative
//! squared change is `||(W - W0) E||^2 / ||W0 E||^2 = tr(D C D^T) / tr(W0 C W0^T)` with `D = W - W0` and `C = E E^T`: a
//! `(text, text)` matrix that is computed once, whatever the number of prompts (Unified Concept Editing, Gandikota et al.
//! 2024, equation 4, has the same preservation term). So each step sees all retain prompts, and no UNet is evaluated.

use crate::Result;
use crate::nn::{Gradients, ParamStore, read, total};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The keys' and values' weights as they were, and what they are multiplied with.
pub struct KeptContext {
    /// `C`, `(text, text)`, as a mean over tokens.
    covariance: Tensor,
    /// `W0` and `tr(W0 C W0^T)` of each trainable projection of the text, by name.
    base: BTreeMap<String, (Tensor, f64)>,
}

/// Whether a parameter maps text to keys or values.
pub(super) fn reads_text(name: &str) -> bool {
    name.ends_with("attn2.to_k.weight") || name.ends_with("attn2.to_v.weight")
}

impl KeptContext {
    /// Of those of the parameters `names` that read text, for embeddings `(prompts, tokens, text)`.
    pub fn new<S: AsRef<str>>(params: &ParamStore, names: &[S], embeddings: &Tensor) -> Result<Self> {
        let tokens = embeddings.flatten_to(1)?;
        let covariance = (tokens.t()?.contiguous()?.matmul(&tokens)? / tokens.dim(0)? as f64)?;
        let mut base = BTreeMap::new();
        for name in names.iter().map(AsRef::as_ref).filter(|name| reads_text(name)) {
            let weight = params.get(name)?.detach();
            let size = f64::from((weight.matmul(&covariance)? * &weight)?.sum_all()?.to_scalar::<f32>()?);
            base.insert(name.to_string(), (weight.copy()?, size.max(f64::MIN_POSITIVE)));
        }
        Ok(Self { covariance, base })
    }

    /// Adds `weight` times the term's gradient; returns the term: the mean over layers of the relative squared change.
    pub fn add_gradient(&self, params: &ParamStore, weight: f64, gradients: &mut Gradients) -> Result<f32> {
        let mut changes = Vec::with_capacity(self.base.len());
        let layers = self.base.len().max(1) as f64;
        for (name, (base, size)) in &self.base {
            let change = (params.get(name)?.detach() - base)?;
            let along = change.matmul(&self.covariance)?;
            changes.push(total(&(&along * &change)?)?);
            if let Some(gradient) = gradients.get_mut(name) {
                *gradient = (&*gradient + (along * (2.0 * weight / size / layers))?)?;
            }
        }
        let each = read(&changes)?.into_iter().zip(self.base.values());
        Ok(each.map(|(change, (_, size))| f64::from(change) / size / layers).sum::<f64>() as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_term_is_the_relative_change_and_its_gradient_that_of_autograd() {
        let device = Device::Cpu;
        let name = "x.attn2.to_k.weight";
        let before = Tensor::randn(0f32, 1., (5, 4), &device).unwrap();
        let now = (&before + Tensor::randn(0f32, 0.3, (5, 4), &device).unwrap()).unwrap();
        let embeddings = Tensor::randn(0f32, 1., (3, 7, 4), &device).unwrap();
        let tensors = [(name.to_string(), before.clone()), ("y".into(), before.clone())];
        let kept = KeptContext::new(&ParamStore::new(tensors.into()), &[name, "y"], &embeddings).unwrap();
        let params = ParamStore::new([(name.to_string(), now.clone())].into());

        let var = Var::from_tensor(&now).unwrap();
        let tokens = embeddings.flatten_to(1).unwrap().t().unwrap().contiguous().unwrap();
        let [new, old] = [var.as_tensor(), &before].map(|w| w.matmul(&tokens).unwrap());
        let scale = old.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let term = ((new - old).unwrap().sqr().unwrap().sum_all().unwrap() / f64::from(scale)).unwrap();
        let expected = term.backward().unwrap().remove(&var).unwrap();

        let zero = before.zeros_like().unwrap();
        let mut gradients: Gradients = [(name.to_string(), zero.clone()), ("y".into(), zero.clone())].into();
        let found = kept.add_gradient(&params, 3.0, &mut gradients).unwrap();
        assert!((found / term.to_scalar::<f32>().unwrap() - 1.0).abs() < 1e-4);
        let close =
            |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(close(&gradients[name], &(expected * 3.0).unwrap()) < 1e-4);
        assert_eq!(close(&gradients["y"], &zero), 0.0, "only what reads text");
    }
}
