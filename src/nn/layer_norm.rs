//! Layer normalisation over the last dimension.

use super::params::ParamPath;
use crate::Result;
use candle_core::{D, Tensor};

/// A layer norm with the checkpoint's `weight` and `bias` `(features)`.
#[derive(Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(features: usize, eps: f64, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { weight: path.get(&[features], "weight")?, bias: path.get(&[features], "bias")?, eps })
    }

    /// Shape: `(.., features)` -> the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Normalisation over the last dimension, population variance.
///
/// # Shape
/// `x` `(.., features)`, `weight` and `bias` `(features)` -> as `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    Ok(y.broadcast_mul(weight)?.broadcast_add(bias)?)
}
