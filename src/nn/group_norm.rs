//! Group normalisation, with the SiLU that follows it in resnets.

use super::params::ParamPath;
use super::silu;
use crate::Result;
use candle_core::{D, Tensor};

/// A group norm with the checkpoint's `weight` and `bias` `(channels)`.
#[derive(Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(groups: usize, channels: usize, eps: f64, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { weight: path.get(&[channels], "weight")?, bias: path.get(&[channels], "bias")?, groups, eps })
    }

    /// Shape: `(B, C, H, W)` -> the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.weight, &self.bias, self.groups, self.eps, false)
    }

    /// The norm, then SiLU, in one op. Shape: `(B, C, H, W)` -> the same.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.weight, &self.bias, self.groups, self.eps, true)
    }
}

/// Group normalisation over `(C/groups, H, W)`, population variance, then SiLU if `with_silu`.
///
/// # Shape
/// `x` `(B, C, ..)`, `weight` and `bias` `(C)` -> as `x`.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    with_silu: bool,
) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let grouped = x.reshape((batch, groups, x.elem_count() / (batch * groups)))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, channels, ()))?;
    let y = y.broadcast_mul(&weight.reshape((1, channels, 1))?)?.broadcast_add(&bias.reshape((1, channels, 1))?)?;
    let y = y.reshape(x.shape())?;
    if with_silu { silu(&y) } else { Ok(y) }
}
