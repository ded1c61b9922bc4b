//! Timesteps (and SDXL's sizes) as features.

use super::UnetConfig;
use crate::Result;
use crate::nn::{Linear, ParamPath, silu};
use candle_core::{Device, Tensor};

/// Sinusoidal features of each number, always computed in f64 and rounded to f32 once (diffusers' `get_timestep_embedding`).
///
/// # Shape
/// `n` numbers -> `(n, features)`, `[cos | sin]` if `flip_sin_to_cos`.
pub fn sinusoid(
    values: &[f32],
    features: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = features / 2;
    let mut rows = Vec::with_capacity(values.len() * features);
    for value in values {
        let angle = |i: usize| {
            // diffusers computes the frequencies in f32
            let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f32 - freq_shift as f32);
            f64::from(exponent.exp() * value)
        };
        let (sin, cos) = (|i| angle(i).sin() as f32, |i| angle(i).cos() as f32);
        if flip_sin_to_cos {
            rows.extend((0..half).map(cos).chain((0..half).map(sin)));
        } else {
            rows.extend((0..half).map(sin).chain((0..half).map(cos)));
        }
    }
    Ok(Tensor::from_vec(rows, (values.len(), features), device)?)
}

/// `time_embedding` and `add_embedding`: linear, SiLU, linear.
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads `linear_1` `(features, inputs)` and `linear_2` `(features, features)`.
    pub fn new(inputs: usize, features: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(inputs, features, path.pp("linear_1"))?,
            linear_2: Linear::new(features, features, path.pp("linear_2"))?,
        })
    }

    /// Shape: `(B, inputs)` -> `(B, features)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&silu(&self.linear_1.forward(x)?)?)
    }
}

/// What SDXL's UNet is told besides the text embeddings.
#[derive(Debug, Clone)]
pub struct AddedConditions {
    /// The second text encoder's pooled embedding, `(B, features)`.
    pub text_embeds: Tensor,
    /// Original height and width, crop top and left, target height and width, in pixels, for each row.
    pub time_ids: Vec<[f32; 6]>,
}

/// Everything that is added to the timestep: its own embedding and, in SDXL, pooled text and sizes.
pub struct Embeddings {
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    config: UnetConfig,
}

impl Embeddings {
    /// Reads `time_embedding` and, for `text_time`, `add_embedding`.
    pub fn new(config: &UnetConfig, path: &ParamPath<'_>) -> Result<Self> {
        let features = 4 * config.block_out_channels[0];
        let time_embedding = TimestepEmbedding::new(config.block_out_channels[0], features, path.pp("time_embedding"))?;
        let add = config.projection_class_embeddings_input_dim.filter(|_| config.addition_embed_type.is_some());
        let add = add.map(|inputs| TimestepEmbedding::new(inputs, features, path.pp("add_embedding")));
        Ok(Self { time_embedding, add_embedding: add.transpose()?, config: config.clone() })
    }

    /// Shape: `B` timesteps -> `(B, 4 * block_out_channels[0])`.
    ///
    /// # Errors
    /// If the model needs `added` and there is none.
    pub fn forward(&self, t: &[f32], added: Option<&AddedConditions>, device: &Device) -> Result<Tensor> {
        let c = &self.config;
        let time = sinusoid(t, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift, device)?;
        let time = self.time_embedding.forward(&time)?;
        let Some(add_embedding) = &self.add_embedding else { return Ok(time) };
        let added =
            added.ok_or_else(|| crate::Error::usage("this UNet needs pooled text embeddings and sizes (SDXL)"))?;
        let sizes: Vec<f32> = added.time_ids.iter().flatten().copied().collect();
        let features = c.addition_time_embed_dim.unwrap_or(256);
        let sizes = sinusoid(&sizes, features, c.flip_sin_to_cos, c.freq_shift, device)?; // (B * 6, features)
        let sizes = sizes.reshape((t.len(), 6 * features))?;
        let all = Tensor::cat(&[&added.text_embeds, &sizes], 1)?; // pooled text first
        Ok((time + add_embedding.forward(&all)?)?)
    }
}
