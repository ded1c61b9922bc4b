//! Multi-head scaled dot-product attention.

use crate::Result;
use candle_core::{D, Tensor};

/// `softmax(q k^T / sqrt(d)) v` in each head.
///
/// # Shape
/// `q` `(B, S, heads * d)`, `k` and `v` `(B, T, heads * d)` -> `(B, S, heads * d)`. With `causal`, position `i` sees
/// `j <= i` only (and `S = T`).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, s, width) = q.dims3()?;
    let t = k.dim(1)?;
    let d = width / heads;
    let split = |x: &Tensor, len: usize| x.reshape((batch, len, heads, d))?.transpose(1, 2)?.contiguous(); // (B, heads, len, d)
    let (q, k, v) = (split(q, s)?, split(k, t)?, split(v, t)?);
    let mut scores = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?; // (B, heads, S, T)
    if causal {
        let mask: Vec<f32> = (0..s * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (s, t), q.device())?)?;
    }
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    Ok(probs.matmul(&v)?.transpose(1, 2)?.reshape((batch, s, width))?)
}
