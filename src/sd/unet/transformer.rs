//! `Transformer2DModel`: self-attention_beside, cross-attention to the text, feed-forward, over the pixels of a feature map.

use super::context::{Context, Keys};
use crate::Result;
use crate::nn::{
    Conv2d, GroupNorm, LayerNorm, Linear, ParamPath, add_last, attention_beside, done_with, feed_forward_by_rows,
    forget, from_tokens, geglu_linear_over, release, repeat_rows, self_attention, to_tokens,
};
use candle_core::{Tensor, TensorId};

/// `attn1` (pixels to pixels) or `attn2` (pixels to text tokens).
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    /// `to_q`, `to_k` and `to_v` in one, of small self-attentions that stay as they are.
    to_qkv: Option<Linear>,
}

impl Attention {
    fn new(channels: usize, context: usize, heads: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, path.pp("to_q"))?,
            to_k: Linear::no_bias(context, channels, path.pp("to_k"))?,
            to_v: Linear::no_bias(context, channels, path.pp("to_v"))?,
            to_out: Linear::new(channels, channels, path.pp("to_out.0"))?,
            heads,
            to_qkv: None,
        })
    }

    /// Pixels to pixels.
    fn of_itself(channels: usize, heads: usize, path: ParamPath<'_>) -> Result<Self> {
        let attention = Self::new(channels, channels, heads, path)?;
        let to_qkv = Linear::joined(&[&attention.to_q, &attention.to_k, &attention.to_v])?;
        Ok(Self { to_qkv, ..attention })
    }

    /// Whether the backward pass reads `x`, as trainable projections do.
    fn reads_input(&self) -> bool {
        [&self.to_q, &self.to_k, &self.to_v].into_iter().any(Linear::is_trainable)
    }

    /// What tells it from all others.
    pub(super) fn id(&self) -> TensorId {
        self.to_k.id()
    }

    /// Shape: `context` `(B, T, context)` -> keys and values, `(B, T, channels)` each.
    pub(super) fn keys(&self, context: &Tensor) -> Result<Keys> {
        Ok((self.to_k.forward(context)?, self.to_v.forward(context)?))
    }

    /// Shape: `x` `(B, S, channels)`, keys and values `(B, T, channels)` -> `(B, S, channels)`.
    fn forward(&self, x: &Tensor, (k, v): Keys) -> Result<Tensor> {
        let q = self.to_q.forward(x)?;
        let attended = attention_beside(&q, &k, &v, self.heads, false, self.to_q.kept())?;
        let y = self.to_out.forward(&attended)?;
        // attention's result is kept: it is the one thing here that takes time
        forget(&q)?;
        Ok(y)
    }

    /// As [`Attention::forward`], to itself.
    fn forward_to_itself(&self, x: &Tensor) -> Result<Tensor> {
        let Some(to_qkv) = &self.to_qkv else {
            let keys = self.keys(x)?;
            let y = self.forward(x, keys.clone())?;
            forget(&keys.0)?;
            forget(&keys.1)?;
            return Ok(y);
        };
        let qkv = to_qkv.forward(x)?;
        let y = self.to_out.forward(&self_attention(&qkv, self.heads, self.to_q.kept())?)?;
        forget(&qkv)?;
        Ok(y)
    }
}

/// `ff`: a GEGLU of four times the width, and back.
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(channels: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self {
            proj: Linear::new(channels, 8 * channels, path.pp("net.0.proj"))?,
            out: Linear::new(4 * channels, channels, path.pp("net.2"))?,
        })
    }

    /// Nothing else reads `x`.
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        if let Some(y) = feed_forward_by_rows(&x, &self.proj, &self.out)? {
            forget(&x)?;
            return Ok(y);
        }
        let projected = self.proj.forward_releasing(x)?;
        let y = geglu_linear_over(projected.clone(), &self.out)?;
        forget(&projected)?;
        Ok(y)
    }
}

/// `BasicTransformerBlock`.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(channels: usize, context: usize, heads: usize, path: ParamPath<'_>) -> Result<Self> {
        const EPS: f64 = 1e-5;
        Ok(Self {
            norm1: LayerNorm::new(channels, EPS, path.pp("norm1"))?,
            attn1: Attention::of_itself(channels, heads, path.pp("attn1"))?,
            norm2: LayerNorm::new(channels, EPS, path.pp("norm2"))?,
            attn2: Attention::new(channels, context, heads, path.pp("attn2"))?,
            norm3: LayerNorm::new(channels, EPS, path.pp("norm3"))?,
            ff: FeedForward::new(channels, path.pp("ff"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let attended = add_last(x, self.attn1.forward_to_itself(&normed)?)?;
        done_with(normed, self.attn1.reads_input())?;
        // from here on every text of a row has a row of its own
        let x = repeat_rows(&attended, context.rows()?)?;
        let normed = self.norm2.forward(&x)?;
        let told = add_last(&x, self.attn2.forward(&normed, context.keys(&self.attn2)?)?)?;
        done_with(normed, self.attn2.reads_input())?;
        forget(&x)?;
        let y = add_last(&told, self.ff.forward(self.norm3.forward(&told)?)?)?;
        forget(&told)?;
        Ok(y)
    }
}

/// `proj_in` and `proj_out`: 1x1 convolutions (SD 1.x) or linear layers (SD 2.x, SDXL).
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(channels: usize, linear: bool, path: ParamPath<'_>) -> Result<Self> {
        Ok(if linear {
            Self::Linear(Linear::new(channels, channels, path)?)
        } else {
            Self::Conv(Conv2d::new(channels, channels, 1, 1, 0, path)?)
        })
    }
}

/// `attentions.N`.
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2d {
    /// Reads one attention of `channels` with `layers` transformer blocks.
    pub fn new(
        channels: usize,
        context: usize,
        heads: usize,
        layers: usize,
        groups: usize,
        linear: bool,
        path: ParamPath<'_>,
    ) -> Result<Self> {
        let blocks = path.pp("transformer_blocks");
        let blocks = (0..layers).map(|i| TransformerBlock::new(channels, context, heads, blocks.pp(i)));
        Ok(Self {
            norm: GroupNorm::new(groups, channels, 1e-6, path.pp("norm"))?,
            proj_in: Projection::new(channels, linear, path.pp("proj_in"))?,
            transformer_blocks: blocks.collect::<Result<_>>()?,
            proj_out: Projection::new(channels, linear, path.pp("proj_out"))?,
        })
    }

    /// Shape: `x` `(B, C, H, W)`, `context` of `n B` rows -> `(n B, C, H, W)`.
    pub fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let normed = self.norm.forward(x)?;
        let mut h = match &self.proj_in {
            Projection::Conv(conv) => {
                let projected = conv.forward_releasing(normed)?;
                let tokens = to_tokens(&projected)?; // (B, HW, C)
                release(projected)?;
                tokens
            }
            Projection::Linear(linear) => {
                let tokens = to_tokens(&normed)?;
                release(normed)?;
                linear.forward_releasing(tokens)?
            }
        };
        let entered = h.clone();
        for block in &self.transformer_blocks {
            h = block.forward(&h, context)?;
        }
        forget(&entered)?;
        let h = match &self.proj_out {
            Projection::Conv(conv) => {
                let map = from_tokens(&h, height, width)?; // (B, C, H, W)
                release(h)?;
                conv.forward_releasing(map)?
            }
            Projection::Linear(linear) => {
                let projected = linear.forward_releasing(h)?;
                let map = from_tokens(&projected, height, width)?;
                release(projected)?;
                map
            }
        };
        add_last(&repeat_rows(x, h.dim(0)?)?, h)
    }
}
