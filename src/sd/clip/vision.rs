//! CLIP's picture tower (transformers' `CLIPVisionModel` with its projection).

use super::config::ClipVisionConfig;
use crate::nn::{Conv2d, LayerNorm, Linear, ParamPath, ParamStore, by_rows, to_tokens};
use crate::sd::encoder::{CLIP, EncoderLayer, Sizes, check_picture_encoder, check_sizes};
use crate::{Error, Result};
use candle_core::{D, Device, Tensor};

/// A picture as tokens: its class, then its patches, each with its place added.
pub(in crate::sd) struct Patches {
    conv: Conv2d,
    class: Tensor,
    positions: Tensor,
    image_size: usize,
    channels: usize,
}

impl Patches {
    /// `class` is `(1, 1, hidden)`, `positions` `(1, 1 + patches, hidden)`. Neither is copied: where the weights do not fit the
    /// config, they stand in for what there is no memory for.
    pub(in crate::sd) fn new(
        conv: Conv2d,
        class: Tensor,
        positions: Tensor,
        image_size: usize,
        channels: usize,
    ) -> Self {
        Self { conv, class, positions, image_size, channels }
    }

    /// How many patches a picture has.
    pub(in crate::sd) fn count(image_size: usize, patch_size: usize) -> Result<usize> {
        check_sizes(&[("image_size", image_size, 1 << 13), ("patch_size", patch_size, image_size)])?;
        Ok((image_size / patch_size).pow(2))
    }

    /// Where the weights are.
    pub(in crate::sd) fn device(&self) -> &Device {
        self.class.device()
    }

    /// Shape: `(B, C, H, W)` -> `(B, 1 + patches, hidden)`.
    pub(in crate::sd) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pixels.dims4()?;
        if (channels, height, width) != (self.channels, self.image_size, self.image_size) {
            return Err(Error::usage(format!(
                "a picture of {channels} channels and {width}x{height}; the network takes {} and {}x{}: does the \
                 preprocessor's config belong to it?",
                self.channels, self.image_size, self.image_size
            )));
        }
        let patches = to_tokens(&self.conv.forward(pixels)?)?; // (B, patches, hidden)
        let class = self.class.broadcast_as((batch, 1, self.class.dim(D::Minus1)?))?;
        Ok(Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.positions)?)
    }
}

/// The picture tower.
pub struct ClipVision {
    patches: Patches,
    pre_layrnorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    image_size: usize,
    width: usize,
}

/// The sizes of its layers.
fn sizes(c: &ClipVisionConfig) -> Sizes {
    Sizes {
        hidden: c.hidden_size,
        intermediate: c.intermediate_size,
        heads: c.num_attention_heads,
        eps: c.layer_norm_eps,
        activation: c.hidden_act,
        qkv_bias: true,
        causal: false,
    }
}

impl ClipVision {
    /// Builds the tower; its names begin with `vision_model.`, or twice so (safety checkers from before transformers 5).
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(c: &ClipVisionConfig, projection: usize, params: &ParamStore) -> Result<Self> {
        let sizes = sizes(c);
        check_picture_encoder(&sizes, c.num_hidden_layers, c.num_channels)?;
        let patches = Patches::count(c.image_size, c.patch_size)?;
        let loader = params.loader().ignoring("position_ids");
        let root = loader.root();
        let twice = params.tensors().keys().any(|name| name.starts_with("vision_model.vision_model."));
        let model = root.pp(if twice { "vision_model.vision_model" } else { "vision_model" });
        let tower = Self::build(c, patches, projection, &root, &model)?;
        loader.finish("CLIP's picture tower")?;
        Ok(tower)
    }

    fn build(
        c: &ClipVisionConfig,
        patches: usize,
        projection: usize,
        root: &ParamPath<'_>,
        model: &ParamPath<'_>,
    ) -> Result<Self> {
        let embeddings = model.pp("embeddings");
        let (p, hidden) = (c.patch_size, c.hidden_size);
        let conv = Conv2d::no_bias(c.num_channels, hidden, p, p, 0, embeddings.pp("patch_embedding"))?;
        let class = embeddings.get(&[hidden], "class_embedding")?.unsqueeze(0)?.unsqueeze(0)?;
        let positions = embeddings.get(&[1 + patches, hidden], "position_embedding.weight")?.unsqueeze(0)?;
        let sizes = sizes(c);
        let layers = model.pp("encoder.layers");
        let layers = (0..c.num_hidden_layers).map(|i| EncoderLayer::new(&sizes, &CLIP, layers.pp(i)));
        Ok(Self {
            patches: Patches::new(conv, class, positions, c.image_size, c.num_channels),
            pre_layrnorm: LayerNorm::new(hidden, c.layer_norm_eps, model.pp("pre_layrnorm"))?,
            layers: layers.collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(hidden, c.layer_norm_eps, model.pp("post_layernorm"))?,
            visual_projection: Linear::no_bias(hidden, projection, root.pp("visual_projection"))?,
            image_size: c.image_size,
            width: hidden,
        })
    }

    /// Height and width of the pictures that it takes.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Features of pictures, projected, not normalised. A row depends on its own picture alone.
    ///
    /// # Shape
    /// `(B, 3, image_size, image_size)`, prepared as the model's preprocessor says -> `(B, projection)`.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let device = self.patches.device();
        let pixels = pixels.to_device(device)?;
        by_rows(device, pixels.dim(0)?, share(self.width, device), |rows| {
            let mut x = self.patches.forward(&pixels.narrow(0, rows.start, rows.len())?)?; // (B, T, hidden)
            x = self.pre_layrnorm.forward(&x)?;
            for layer in &self.layers {
                x = layer.forward(&x)?;
            }
            let class = x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
            self.visual_projection.forward(&self.post_layernorm.forward(&class)?)
        })
    }
}

/// How many pictures one thread takes through the whole network; a GPU takes what it is given, up to a number.
pub(in crate::sd) fn share(width: usize, device: &Device) -> usize {
    match device.is_cpu() {
        true if width <= 256 => 4,
        true => 8,
        false => 64,
    }
}
