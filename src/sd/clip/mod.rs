//! CLIP (Radford et al. 2021): a picture and a text as vectors of one space (transformers' `CLIPModel`).

mod config;
mod vision;

pub(super) use config::projection_dim;
pub use config::{ClipConfig, ClipVisionConfig};
pub use vision::ClipVision;
pub(super) use vision::{Patches, share};

use super::text_encoder::TextEncoder;
use crate::nn::ParamStore;
use crate::{Error, Result};
use candle_core::{D, Tensor};
use std::collections::BTreeMap;

/// Both towers with their projections.
pub struct Clip {
    text: TextEncoder,
    vision: ClipVision,
    logit_scale: f32,
    eos: Option<u32>,
}

impl Clip {
    /// Builds both towers.
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(config: &ClipConfig, params: &ParamStore) -> Result<Self> {
        let (mut text, mut vision) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in params.tensors() {
            let tower = if name.starts_with("text_") { &mut text } else { &mut vision };
            tower.insert(name.clone(), tensor.clone());
        }
        let missing = |name: &str| Error::Weights(format!("CLIP: {name} is missing; download the weights again"));
        if !text.contains_key("text_projection.weight") {
            return Err(missing("text_projection.weight"));
        }
        let scale = vision.remove("logit_scale").ok_or_else(|| missing("logit_scale"))?;
        let logit_scale = scale.flatten_all()?.to_vec1::<f32>()?.first().copied().unwrap_or_default().exp();
        let text = TextEncoder::new(&config.text_config, &ParamStore::new(text))?;
        let vision = ClipVision::new(&config.vision_config, config.projection_dim, &ParamStore::new(vision))?;
        Ok(Self { text, vision, logit_scale, eos: config.eos() })
    }

    /// The text tower.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// The picture tower.
    pub fn vision(&self) -> &ClipVision {
        &self.vision
    }

    /// What a cosine is multiplied by to make a logit: the exponential of the checkpoint's `logit_scale`.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale
    }

    /// Features of texts, projected, not normalised; `eos` is the tokenizer's, for configs that do not say it.
    ///
    /// # Shape
    /// `B` texts of `L` ids -> `(B, projection)`.
    pub fn text_features(&self, ids: &[Vec<u32>], eos: u32) -> Result<Tensor> {
        let output = self.text.forward_all(ids, self.eos.unwrap_or(eos))?;
        output.pooled.ok_or_else(|| Error::Weights("CLIP: text_projection.weight is missing".into()))
    }

    /// Features of pictures, projected, not normalised; see [`ClipVision::features`].
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision.features(pixels)
    }
}

/// Rows divided by their length, as transformers has it (`image_embeds`, `text_embeds`).
///
/// # Shape
/// `(B, features)` -> the same.
pub(super) fn normalised(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}
