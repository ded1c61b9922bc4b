//! Transformer layers with a norm before each of their parts, as CLIP's two towers and ViT have them.

use crate::nn::{LayerNorm, Linear, ParamPath, add, attention, gelu, quick_gelu};
use crate::{Error, Result};
use candle_core::Tensor;
use serde::Deserialize;

/// The activations of these models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP, SD 1.x.
    #[default]
    QuickGelu,
    /// The exact GELU: SD 2.x, ViT.
    Gelu,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    /// Whether queries, keys and values have a bias.
    pub(super) qkv_bias: bool,
    /// Whether a token sees no later one.
    pub(super) causal: bool,
}

/// What a checkpoint calls the parts of a layer.
pub(super) struct Names {
    norm1: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    out: &'static str,
    norm2: &'static str,
    fc1: &'static str,
    fc2: &'static str,
}

/// `encoder.layers.N` of both of CLIP's towers.
pub(super) const CLIP: Names = Names {
    norm1: "layer_norm1",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    out: "self_attn.out_proj",
    norm2: "layer_norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
};

/// `vit.encoder.layer.N`.
pub(super) const VIT: Names = Names {
    norm1: "layernorm_before",
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    out: "attention.output.dense",
    norm2: "layernorm_after",
    fc1: "intermediate.dense",
    fc2: "output.dense",
};

/// One layer.
pub(super) struct EncoderLayer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    sizes: Sizes,
}

impl EncoderLayer {
    pub(super) fn new(s: &Sizes, names: &Names, path: ParamPath<'_>) -> Result<Self> {
        let projection = |name: &str| match s.qkv_bias {
            true => Linear::new(s.hidden, s.hidden, path.pp(name)),
            false => Linear::no_bias(s.hidden, s.hidden, path.pp(name)),
        };
        Ok(Self {
            norm1: LayerNorm::new(s.hidden, s.eps, path.pp(names.norm1))?,
            query: projection(names.query)?,
            key: projection(names.key)?,
            value: projection(names.value)?,
            out: Linear::new(s.hidden, s.hidden, path.pp(names.out))?,
            norm2: LayerNorm::new(s.hidden, s.eps, path.pp(names.norm2))?,
            fc1: Linear::new(s.hidden, s.intermediate, path.pp(names.fc1))?,
            fc2: Linear::new(s.intermediate, s.hidden, path.pp(names.fc2))?,
            sizes: *s,
        })
    }

    /// Shape: `(B, T, hidden)` -> the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let (q, k, v) = (self.query.forward(&h)?, self.key.forward(&h)?, self.value.forward(&h)?);
        let x = add(x, &self.out.forward(&attention(&q, &k, &v, self.sizes.heads, self.sizes.causal)?)?)?;
        let h = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let h = match self.sizes.activation {
            Activation::QuickGelu => quick_gelu(&h)?,
            Activation::Gelu => gelu(&h)?,
        };
        add(&x, &self.fc2.forward(&h)?)
    }
}

/// Refuses sizes of which no network can be made: `(key, value, largest)`.
pub(super) fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, found, limit)| *found == 0 || found > limit) {
        Some((key, found, limit)) => Err(Error::usage(format!("{key} is {found}; it must lie between 1 and {limit}"))),
        None => Ok(()),
    }
}

/// Refuses a network over pictures that cannot be: [`check_layers`], and sizes beyond all reason.
pub(super) fn check_picture_encoder(sizes: &Sizes, layers: usize, channels: usize) -> Result<()> {
    check_layers(sizes.hidden, sizes.heads, layers, sizes.eps)?;
    check_sizes(&[
        ("num_hidden_layers", layers, 256),
        ("hidden_size", sizes.hidden, 1 << 16),
        ("intermediate_size", sizes.intermediate, 1 << 18),
        ("num_channels", channels, 16),
    ])
}

/// Refuses layers that cannot be: heads that do not divide the features, no layers, an odd epsilon.
pub(super) fn check_layers(hidden: usize, heads: usize, layers: usize, eps: f64) -> Result<()> {
    if heads == 0 || !hidden.is_multiple_of(heads) || layers == 0 {
        return Err(Error::usage(format!("{hidden} features cannot be divided into {heads} heads in {layers} layers")));
    }
    if !(eps > 0.0 && eps < 1.0) {
        return Err(Error::usage(format!("layer_norm_eps is {eps}; it must lie above 0 and below 1")));
    }
    Ok(())
}
