//! An image classifier: transformers' `ViTForImageClassification` (Dosovitskiy et al. 2021).

use super::clip::Patches;
use super::encoder::{Activation, EncoderLayer, Sizes, VIT, check_picture_encoder};
use crate::nn::{Conv2d, LayerNorm, Linear, ParamStore, by_rows};
use crate::{Error, Result};
use candle_core::Tensor;
use serde::Deserialize;
use std::collections::BTreeMap;

/// `config.json` of a ViT classifier.
#[derive(Debug, Clone, Deserialize)]
pub struct VitConfig {
    /// Features.
    pub hidden_size: usize,
    /// Features between the two layers of an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of the pictures.
    #[serde(default = "three")]
    pub num_channels: usize,
    /// Height and width of the pictures, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Activation of the MLPs.
    #[serde(default = "gelu")]
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// Name of each output.
    pub id2label: BTreeMap<usize, String>,
}

fn three() -> usize {
    3
}
fn gelu() -> Activation {
    Activation::Gelu
}
fn layer_norm_eps() -> f64 {
    1e-12
}
fn yes() -> bool {
    true
}

/// The classifier.
pub struct Vit {
    patches: Patches,
    layers: Vec<EncoderLayer>,
    layernorm: LayerNorm,
    classifier: Linear,
    labels: Vec<String>,
    width: usize,
}

/// The sizes of its layers.
fn sizes(c: &VitConfig) -> Sizes {
    Sizes {
        hidden: c.hidden_size,
        intermediate: c.intermediate_size,
        heads: c.num_attention_heads,
        eps: c.layer_norm_eps,
        activation: c.hidden_act,
        qkv_bias: c.qkv_bias,
        causal: false,
    }
}

impl Vit {
    /// Builds the network.
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(c: &VitConfig, params: &ParamStore) -> Result<Self> {
        let sizes = sizes(c);
        check_picture_encoder(&sizes, c.num_hidden_layers, c.num_channels)?;
        let patches = Patches::count(c.image_size, c.patch_size)?;
        let labels: Vec<String> = c.id2label.values().cloned().collect();
        if labels.is_empty() || !c.id2label.keys().copied().eq(0..labels.len()) {
            return Err(Error::usage("id2label must name the outputs 0, 1, 2, ..."));
        }
        // some checkpoints keep a pooler that classification does not use
        let loader = params.loader().ignoring("pooler.dense.weight").ignoring("pooler.dense.bias");
        let root = loader.root();
        let (vit, hidden, p) = (root.pp("vit"), c.hidden_size, c.patch_size);
        let embeddings = vit.pp("embeddings");
        let conv = Conv2d::new(c.num_channels, hidden, p, p, 0, embeddings.pp("patch_embeddings.projection"))?;
        let class = embeddings.get(&[1, 1, hidden], "cls_token")?;
        let positions = embeddings.get(&[1, 1 + patches, hidden], "position_embeddings")?;
        let path = vit.pp("encoder.layer");
        let layers = (0..c.num_hidden_layers).map(|i| EncoderLayer::new(&sizes, &VIT, path.pp(i)));
        let vit = Self {
            patches: Patches::new(conv, class, positions, c.image_size, c.num_channels),
            layers: layers.collect::<Result<_>>()?,
            layernorm: LayerNorm::new(hidden, c.layer_norm_eps, vit.pp("layernorm"))?,
            classifier: Linear::new(hidden, labels.len(), root.pp("classifier"))?,
            labels,
            width: hidden,
        };
        loader.finish("classifier")?;
        Ok(vit)
    }

    /// Names of the outputs.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// One number for each label, before a softmax.
    ///
    /// # Shape
    /// `(B, 3, image_size, image_size)`, prepared as the model's preprocessor says -> `(B, labels)`.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let device = self.patches.device();
        let pixels = pixels.to_device(device)?;
        by_rows(device, pixels.dim(0)?, super::clip::share(self.width, device), |rows| {
            let mut x = self.patches.forward(&pixels.narrow(0, rows.start, rows.len())?)?; // (B, T, hidden)
            for layer in &self.layers {
                x = layer.forward(&x)?;
            }
            let class = x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
            self.classifier.forward(&self.layernorm.forward(&class)?)
        })
    }
}
