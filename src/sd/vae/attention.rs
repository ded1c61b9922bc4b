//! The single-head self-attention in the middle of the VAE.

use super::{EPS, VaeConfig};
use crate::Result;
use crate::nn::{GroupNorm, ParamPath, add, attention_beside, from_tokens, linear, to_tokens};
use candle_core::Tensor;

/// A linear layer under its present or its old name, its weight `(C, C)` or `(C, C, 1, 1)`.
struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    fn new(channels: usize, names: [&str; 2], path: &ParamPath<'_>) -> Result<Self> {
        let old = !path.pp(names[0]).contains("weight") && path.pp(names[1]).contains("weight");
        let path = path.pp(names[usize::from(old)]);
        let weight = match path.rank("weight") {
            Some(4) => path.get(&[channels, channels, 1, 1], "weight")?.reshape((channels, channels))?,
            _ => path.get(&[channels, channels], "weight")?,
        };
        Ok(Self { weight, bias: path.get(&[channels], "bias")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }
}

/// `attentions.0`.
pub(super) struct Attention {
    group_norm: GroupNorm,
    to_q: Projection,
    to_k: Projection,
    to_v: Projection,
    to_out: Projection,
}

impl Attention {
    pub(super) fn new(c: &VaeConfig, channels: usize, path: ParamPath<'_>) -> Result<Self> {
        let projection = |new: &str, old: &str| Projection::new(channels, [new, old], &path);
        Ok(Self {
            group_norm: GroupNorm::new(c.norm_num_groups, channels, EPS, path.pp("group_norm"))?,
            to_q: projection("to_q", "query")?,
            to_k: projection("to_k", "key")?,
            to_v: projection("to_v", "value")?,
            to_out: projection("to_out.0", "proj_attn")?,
        })
    }

    /// `(B, C, H, W)` -> the same, with the residual.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let h = to_tokens(&self.group_norm.forward(x)?)?; // (B, HW, C)
        let (q, k, v) = (self.to_q.forward(&h)?, self.to_k.forward(&h)?, self.to_v.forward(&h)?);
        let h = self.to_out.forward(&attention_beside(&q, &k, &v, 1, false, self.to_q.weight.dtype())?)?;
        add(x, &from_tokens(&h, height, width)?)
    }
}
