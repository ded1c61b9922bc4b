//! CLIP's text tower (transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`).

use super::encoder::{Activation, CLIP, EncoderLayer, Sizes, check_layers, check_sizes};
use crate::nn::{LayerNorm, Linear, ParamStore, Stay};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Deserialize;

/// `text_encoder/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct TextEncoderConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Features.
    pub hidden_size: usize,
    /// Features between the two layers of an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// The longest prompt, in tokens.
    #[serde(default = "seventy_seven")]
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Features of the pooled projection, where the model has one.
    #[serde(default = "projection_dim")]
    pub projection_dim: usize,
}

fn seventy_seven() -> usize {
    77
}
fn layer_norm_eps() -> f64 {
    1e-5
}
fn projection_dim() -> usize {
    512
}

/// The text encoder.
pub struct TextEncoder {
    layers: Stay<Layers>,
    config: TextEncoderConfig,
    bytes: usize,
}

/// The network.
struct Layers {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

/// What the encoder computed of some prompts.
pub struct TextOutput {
    /// After the final norm, `(B, L, hidden)`.
    pub last_hidden_state: Tensor,
    /// Of the last layer but one, without a norm, `(B, L, hidden)`.
    pub penultimate: Tensor,
    /// The projected state at each prompt's first EOS, `(B, projection)`, where the model has a projection.
    pub pooled: Option<Tensor>,
}

impl TextEncoder {
    /// Builds the network; names may begin with `text_model.` (transformers 4) or not (5).
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(config: &TextEncoderConfig, params: &ParamStore) -> Result<Self> {
        let c = config;
        check_layers(c.hidden_size, c.num_attention_heads, c.num_hidden_layers, c.layer_norm_eps)?;
        check_sizes(&[
            ("num_hidden_layers", c.num_hidden_layers, 256),
            ("hidden_size", c.hidden_size, 1 << 16),
            ("intermediate_size", c.intermediate_size, 1 << 18),
            ("max_position_embeddings", c.max_position_embeddings, 1 << 16),
            ("vocab_size", c.vocab_size, 1 << 24),
        ])?;
        if c.max_position_embeddings < 3 {
            return Err(Error::usage("max_position_embeddings leaves no place for a word"));
        }
        let c = config.clone();
        let layers = Stay::new(params, move |params| Layers::new(&c, params))?;
        Ok(Self { layers, config: config.clone(), bytes: params.bytes() })
    }

    /// Gives its memory on a GPU back until it is asked for something.
    ///
    /// # Errors
    /// As [`Stay::leave`].
    pub fn leave(&self) -> Result<()> {
        self.layers.leave()
    }

    /// Bytes of its parameters.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its config.
    pub fn config(&self) -> &TextEncoderConfig {
        &self.config
    }

    /// For each text's ids, the mean of its tokens' embeddings before the first layer.
    ///
    /// # Shape
    /// `N` texts -> `(N, hidden)`.
    pub fn mean_tokens(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let ids: Vec<u32> = texts.iter().flatten().copied().collect();
        let embedding = &self.layers.here()?.token_embedding;
        let index = Tensor::new(ids, embedding.device())?;
        let tokens = embedding.index_select(&index, 0)?.to_dtype(DType::F32)?;
        if texts.iter().all(|ids| ids.len() == 1) {
            return Ok(tokens); // a vocabulary's words, by the ten thousand
        }
        let mut first = 0;
        let means = texts.iter().map(|ids| {
            first += ids.len();
            tokens.narrow(0, first - ids.len(), ids.len())?.mean_keepdim(0)
        });
        Ok(Tensor::cat(&means.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }

    /// The last hidden state after the final norm.
    ///
    /// # Shape
    /// `B` prompts of `L` ids -> `(B, L, hidden)`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let layers = self.layers.here()?;
        let (last, _) = self.states(&layers, ids)?;
        layers.final_layer_norm.forward(&last)
    }

    /// All that SDXL needs; `eos` is the id whose first place is pooled.
    pub fn forward_all(&self, ids: &[Vec<u32>], eos: u32) -> Result<TextOutput> {
        let layers = self.layers.here()?;
        let (last, penultimate) = self.states(&layers, ids)?;
        let last_hidden_state = layers.final_layer_norm.forward(&last)?;
        let pooled = match &layers.text_projection {
            Some(projection) => {
                let place = |row: &Vec<u32>| row.iter().position(|id| *id == eos).unwrap_or(row.len() - 1);
                let rows = ids.iter().enumerate().map(|(i, row)| last_hidden_state.get(i)?.narrow(0, place(row), 1));
                Some(projection.forward(&Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)?)
            }
            None => None,
        };
        Ok(TextOutput { last_hidden_state, penultimate, pooled })
    }

    fn states(&self, layers: &Layers, ids: &[Vec<u32>]) -> Result<(Tensor, Tensor)> {
        let (batch, length) = (ids.len(), ids.first().map_or(0, Vec::len));
        let positions = self.config.max_position_embeddings;
        if length == 0 || length > positions || ids.iter().any(|row| row.len() != length) {
            return Err(Error::usage(format!(
                "prompts of {length} tokens; the text encoder takes 1 to {positions}, all alike"
            )));
        }
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        if let Some(id) = flat.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::usage(format!(
                "token {id} is beyond the text encoder's vocabulary of {}; tokenizer and text encoder do not belong together",
                self.config.vocab_size
            )));
        }
        layers.states(flat, batch, length)
    }
}

impl Layers {
    fn new(c: &TextEncoderConfig, params: &ParamStore) -> Result<Self> {
        let loader = params.loader().ignoring("position_ids");
        let root = loader.root();
        let prefixed = params.tensors().keys().any(|name| name.starts_with("text_model."));
        let model = if prefixed { root.pp("text_model") } else { root.clone() };
        let (embeddings, layers) = (model.pp("embeddings"), model.pp("encoder.layers"));
        let projection = root
            .contains("text_projection.weight")
            .then(|| Linear::no_bias(c.hidden_size, c.projection_dim, root.pp("text_projection")));
        let sizes = Sizes {
            hidden: c.hidden_size,
            intermediate: c.intermediate_size,
            heads: c.num_attention_heads,
            eps: c.layer_norm_eps,
            activation: c.hidden_act,
            qkv_bias: true,
            causal: true,
        };
        let network = Self {
            token_embedding: embeddings.get(&[c.vocab_size, c.hidden_size], "token_embedding.weight")?,
            position_embedding: embeddings
                .get(&[c.max_position_embeddings, c.hidden_size], "position_embedding.weight")?
                .to_dtype(DType::F32)?,
            layers: (0..c.num_hidden_layers)
                .map(|i| EncoderLayer::new(&sizes, &CLIP, layers.pp(i)))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, model.pp("final_layer_norm"))?,
            text_projection: projection.transpose()?,
        };
        loader.finish("text encoder")?;
        Ok(network)
    }

    /// The last state, and the one before it.
    fn states(&self, ids: Vec<u32>, batch: usize, length: usize) -> Result<(Tensor, Tensor)> {
        let index = Tensor::from_vec(ids, batch * length, self.token_embedding.device())?;
        let tokens = self.token_embedding.index_select(&index, 0)?.to_dtype(DType::F32)?;
        let tokens = tokens.reshape((batch, length, ()))?;
        let mut x = tokens.broadcast_add(&self.position_embedding.narrow(0, 0, length)?)?; // (B, L, hidden)
        let mut before = x.clone();
        for layer in &self.layers {
            before = x;
            x = layer.forward(&before)?;
        }
        Ok((x, before))
    }
}
