//! The closed-form edit: where the repair starts. Cross-attention's keys and values of forget prompts become those of their
//! anchors, as far as a linear map can without moving those of retain prompts.
//!
//! For a projection of the text with weight `W0` before and `W1` after trimming, `(out, text)`, the edited weight minimises
//!
//! ```text
//! mean_r ||W r - W0 r||^2  +  w mean_f (||W f - W0 b||^2 + ||W a - W0 a||^2)  +  rho ||W - W1||^2
//! ```
//!
//! over the embeddings r of retain tokens, f of forget tokens, a of the token at the same place in the forget prompt's
//! anchor, and `b = a + push (a - f)`: `W (R + w (F + A) + rho I) = W0 (R + w (A + C)) + rho W1` with `R = E[r r^T]`,
//! `F = E[f f^T]`, `A = E[a a^T]`, `C = E[b f^T]`. All layers share one symmetric system of the text's width (Unified Concept
//! Editing, Gandikota et al. 2024, equation 7, in means instead of sums, with the trimmed weights as its prior; that anchors
//! stay is ours: what is like the concept would follow it halfway). No UNet is evaluated.

use super::context::reads_text;
use crate::nn::ParamStore;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

/// `rho`, as a fraction of the mean diagonal of `R`.
const RIDGE: f64 = 1e-4;
/// Rows of a weight that are edited together.
const ROWS: usize = 128;

/// Text embeddings, each `(prompts, tokens, text)`.
pub struct Texts<'a> {
    /// Of the forget prompts.
    pub forget: &'a Tensor,
    /// Of their anchors, pair by pair.
    pub anchors: &'a Tensor,
    /// Of the retain prompts.
    pub retain: &'a Tensor,
    /// Of the empty prompt, `(1, tokens, text)`.
    pub empty: &'a Tensor,
    /// The part of `R` that the empty prompt makes up.
    pub unconditional: f64,
    /// How far beyond the anchors forget prompts are sent.
    pub push: f64,
}

/// A solved edit, for every layer that reads this text.
pub struct Edit {
    /// What weights are multiplied by, on the right: `(R + w (A + C)) S` those before the trimming, and `rho S` those after it,
    /// where `S` is the inverse of `R + w (F + A) + rho I`. Both `(text, text)`.
    of_base: DMatrix<f64>,
    of_trimmed: DMatrix<f64>,
}

impl Edit {
    /// With `weight` w on the forget prompts.
    ///
    /// # Errors
    /// If an embedding is not finite, so that the system cannot be solved.
    pub fn new(texts: &Texts<'_>, weight: f64) -> Result<Self> {
        let (forget, anchors) = (matrix(texts.forget)?, matrix(texts.anchors)?);
        let (retain, empty) = (matrix(texts.retain)?, matrix(texts.empty)?);
        let mean = |a: &DMatrix<f64>, b: &DMatrix<f64>| a * b.transpose() / a.ncols() as f64;
        let share = texts.unconditional;
        let kept = mean(&retain, &retain) * (1.0 - share) + mean(&empty, &empty) * share;
        let width = kept.nrows();
        let rho = RIDGE * kept.trace() / width as f64;
        let beyond = &anchors * (1.0 + texts.push) - &forget * texts.push;
        let stay = kept + mean(&anchors, &anchors) * weight;
        let system = &stay + mean(&forget, &forget) * weight + DMatrix::identity(width, width) * rho;
        let wanted = stay + mean(&beyond, &forget) * weight;
        let factor = Cholesky::new(system)
            .ok_or_else(|| Error::Weights("the text encoder gives embeddings that are not finite numbers".into()))?;
        let inverse = factor.inverse();
        Ok(Self { of_base: wanted * &inverse, of_trimmed: inverse * rho })
    }

    /// Edits those of the trainable `params` that read text. `base` are the weights before trimming.
    pub fn apply(&self, params: &ParamStore, base: &ParamStore) -> Result<()> {
        for (name, var) in params.vars().iter().filter(|(name, _)| reads_text(name)) {
            let [before, trimmed] =
                [base.get(name)?, var.as_tensor()].map(|weight| weight.flatten_all()?.to_vec1::<f32>());
            let (before, mut edited) = (before?, trimmed?);
            let rows = ROWS * self.of_base.nrows();
            edited.par_chunks_mut(rows).zip(before.par_chunks(rows)).for_each(|(edited, before)| {
                let sum = self.rows(before) * &self.of_base + self.rows(edited) * &self.of_trimmed;
                // nalgebra's columns are the weight's columns
                for (row, values) in edited.chunks_exact_mut(sum.ncols()).enumerate() {
                    values.iter_mut().enumerate().for_each(|(column, value)| *value = sum[(row, column)] as f32);
                }
            });
            var.set(&Tensor::from_vec(edited, var.shape(), var.device())?)?;
        }
        Ok(())
    }

    /// Rows of a weight.
    fn rows(&self, values: &[f32]) -> DMatrix<f64> {
        let width = self.of_base.nrows();
        DMatrix::from_row_iterator(values.len() / width, width, values.iter().map(|value| f64::from(*value)))
    }
}

/// `(.., text)` as a matrix whose columns are the rows of the last axis.
fn matrix(tensor: &Tensor) -> Result<DMatrix<f64>> {
    let rows = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?;
    let width = rows.dim(candle_core::D::Minus1)?;
    let values = rows.flatten_all()?.to_vec1::<f64>()?;
    Ok(DMatrix::from_vec(width, values.len() / width, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "x.attn2.to_k.weight";

    fn random(shape: (usize, usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
    }

    /// The rows of the last axis.
    fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
        let width = tensor.dims()[tensor.rank() - 1];
        tensor.to_dtype(DType::F64).unwrap().reshape(((), width)).unwrap().to_vec2().unwrap()
    }

    /// `||W x - V y||^2`
    fn distance(w: &[Vec<f64>], x: &[f64], v: &[Vec<f64>], y: &[f64]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        w.iter().zip(v).map(|(w, v)| (dot(w, x) - dot(v, y)).powi(2)).sum()
    }

    #[test]
    fn the_edited_weight_minimises_what_it_says() {
        let [forget, anchors, retain, empty] = [(3, 2, 4), (3, 2, 4), (5, 2, 4), (1, 2, 4)].map(random);
        let [before, trimmed] = [(1, 3, 4), (1, 3, 4)].map(|shape| random(shape).squeeze(0).unwrap());
        let base = ParamStore::new([(KEYS.to_string(), before.clone()), ("y.weight".into(), before.clone())].into());
        let mut params =
            ParamStore::new([(KEYS.to_string(), trimmed.clone()), ("y.weight".into(), trimmed.clone())].into());
        params.make_trainable([KEYS, "y.weight"]).unwrap();
        let texts =
            Texts { forget: &forget, anchors: &anchors, retain: &retain, empty: &empty, unconditional: 0.3, push: 0.5 };
        Edit::new(&texts, 2.0).unwrap().apply(&params, &base).unwrap();
        assert_eq!(rows(params.get("y.weight").unwrap()), rows(&trimmed), "only what reads text");

        let (w0, w1) = (rows(&before), rows(&trimmed));
        let (f, a, r, e) = (rows(&forget), rows(&anchors), rows(&retain), rows(&empty));
        let b: Vec<Vec<f64>> =
            a.iter().zip(&f).map(|(a, f)| a.iter().zip(f).map(|(a, f)| a + 0.5 * (a - f)).collect()).collect();
        let mean = |x: &[Vec<f64>], f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).sum::<f64>() / x.len() as f64;
        let squares = |x: &[Vec<f64>]| mean(x, &|i| x[i].iter().map(|v| v * v).sum());
        let rho = RIDGE * (0.7 * squares(&r) + 0.3 * squares(&e)) / 4.0;
        let objective = |w: &[Vec<f64>]| {
            let prior: f64 = w.iter().flatten().zip(w1.iter().flatten()).map(|(a, b)| (a - b).powi(2)).sum();
            0.7 * mean(&r, &|i| distance(w, &r[i], &w0, &r[i]))
                + 0.3 * mean(&e, &|i| distance(w, &e[i], &w0, &e[i]))
                + 2.0 * mean(&f, &|i| distance(w, &f[i], &w0, &b[i]) + distance(w, &a[i], &w0, &a[i]))
                + rho * prior
        };
        let edited = rows(params.get(KEYS).unwrap());
        let least = objective(&edited);
        assert!(least < objective(&w0) && least < objective(&w1));
        for (row, column) in (0..3).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let at = |step: f64| {
                let mut w = edited.clone();
                w[row][column] += step;
                objective(&w)
            };
            let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!(slope.abs() < 1e-4, "slope {slope} at {row}, {column}");
        }
    }

    #[test]
    fn embeddings_that_are_no_numbers_are_an_error() {
        let bad = (random((1, 2, 4)) * f64::NAN).unwrap();
        let texts = Texts { forget: &bad, anchors: &bad, retain: &bad, empty: &bad, unconditional: 0.3, push: 0.5 };
        assert!(Edit::new(&texts, 1.0).is_err());
    }
}
