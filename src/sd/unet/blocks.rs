//! `down_blocks`, `mid_block`, `up_blocks`.

use super::UnetConfig;
use super::context::Context;
use super::resnet::{Downsample, ResnetBlock, Upsample};
use super::transformer::Transformer2d;
use crate::nn::{ParamPath, concat_channels, forget, release, repeat_rows};
use crate::{Error, Result};
use candle_core::Tensor;

fn resnet(c: &UnetConfig, inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<ResnetBlock> {
    ResnetBlock::new(inputs, outputs, 4 * c.block_out_channels[0], c.norm_num_groups, c.norm_eps, path)
}

fn transformer(c: &UnetConfig, level: usize, path: ParamPath<'_>) -> Result<Transformer2d> {
    Transformer2d::new(
        c.block_out_channels[level],
        c.cross_attention_dim,
        c.attention_head_dim.at(level),
        c.transformer_layers_per_block.at(level),
        c.norm_num_groups,
        c.use_linear_projection,
        path,
    )
}

/// A level on the way down: resnets, each followed by an attention in `CrossAttnDownBlock2D`, then a downsampler.
pub struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2d>,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    /// Reads `down_blocks.LEVEL`.
    pub fn new(c: &UnetConfig, level: usize, path: ParamPath<'_>) -> Result<Self> {
        let outputs = c.block_out_channels[level];
        let inputs = c.block_out_channels[level.saturating_sub(1)];
        let cross = c.down_block_types[level] == "CrossAttnDownBlock2D";
        let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
        for j in 0..c.layers_per_block {
            resnets.push(resnet(c, if j == 0 { inputs } else { outputs }, outputs, path.pp("resnets").pp(j))?);
            if cross {
                attentions.push(transformer(c, level, path.pp("attentions").pp(j))?);
            }
        }
        let down = (level + 1 < c.levels()).then(|| Downsample::new(outputs, path.pp("downsamplers.0")));
        Ok(Self { resnets, attentions, downsampler: down.transpose()? })
    }

    /// Its layers: resnets, each with its attention.
    pub fn layers(&self) -> usize {
        self.resnets.len()
    }

    /// Layer `j`: `(B, in, H, W)` -> `(B, out, H, W)`, pushed to `skips` too.
    pub fn layer(
        &self,
        j: usize,
        x: &Tensor,
        temb: &Tensor,
        context: &Context,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = self.resnets[j].forward(x, temb)?;
        if let Some(attention) = self.attentions.get(j) {
            x = attention.forward(&x, context)?;
        }
        skips.push(x.clone());
        Ok(x)
    }

    /// `(B, out, H, W)` -> `(B, out, H/2, W/2)`, pushed to `skips` too, if it has a downsampler.
    pub fn downsample(&self, x: &Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let Some(downsampler) = &self.downsampler else { return Ok(x.clone()) };
        let x = downsampler.forward(x)?;
        skips.push(x.clone());
        Ok(x)
    }
}

/// The lowest resolution: resnet, attention, resnet.
pub struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Transformer2d,
}

impl MidBlock {
    /// Reads `mid_block`.
    pub fn new(c: &UnetConfig, channels: usize, path: ParamPath<'_>) -> Result<Self> {
        let resnet = |i: usize| resnet(c, channels, channels, path.pp("resnets").pp(i));
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: transformer(c, c.levels() - 1, path.pp("attentions.0"))?,
        })
    }

    /// `(B, C, H, W)` -> the same.
    pub fn forward(&self, x: &Tensor, temb: &Tensor, context: &Context) -> Result<Tensor> {
        let x = self.resnets[0].forward(x, temb)?;
        self.resnets[1].forward(&self.attention.forward(&x, context)?, temb)
    }
}

/// A level on the way up: resnets over `[x | skip]`, attentions in `CrossAttnUpBlock2D`, then an upsampler.
pub struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2d>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// Reads `up_blocks.INDEX`; index 0 is the lowest resolution.
    pub fn new(c: &UnetConfig, index: usize, path: ParamPath<'_>) -> Result<Self> {
        let level = c.levels() - 1 - index;
        let outputs = c.block_out_channels[level];
        let below = c.block_out_channels[(level + 1).min(c.levels() - 1)];
        let above = c.block_out_channels[level.saturating_sub(1)];
        let cross = c.up_block_types[index] == "CrossAttnUpBlock2D";
        let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
        for j in 0..=c.layers_per_block {
            let skip = if j == c.layers_per_block { above } else { outputs };
            let inputs = if j == 0 { below } else { outputs } + skip;
            resnets.push(resnet(c, inputs, outputs, path.pp("resnets").pp(j))?);
            if cross {
                attentions.push(transformer(c, level, path.pp("attentions").pp(j))?);
            }
        }
        let up = (index + 1 < c.levels()).then(|| Upsample::new(outputs, path.pp("upsamplers.0")));
        Ok(Self { resnets, attentions, upsampler: up.transpose()? })
    }

    /// Its layers: resnets, each with its attention.
    pub fn layers(&self) -> usize {
        self.resnets.len()
    }

    /// Layer `j`: `(B, in, H, W)` -> `(B, out, H, W)`; takes a skip from the end of `skips`. Nothing else reads `x`.
    pub fn layer(
        &self,
        j: usize,
        x: &Tensor,
        temb: &Tensor,
        context: &Context,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let skip = skips.pop().ok_or_else(|| Error::Weights("the UNet has more up resnets than skips".into()))?;
        let both = concat_channels(x, &repeat_rows(&skip, x.dim(0)?)?)?; // (B, in + skip, H, W)
        let h = self.resnets[j].forward(&both, temb)?;
        // what they can be joined of again is kept instead
        if !forget(&both)? {
            release(x.clone())?;
        }
        match self.attentions.get(j) {
            Some(attention) => attention.forward(&h, context),
            None => Ok(h),
        }
    }

    /// `(B, out, H, W)` -> `(B, out, 2H, 2W)`, if it has an upsampler.
    pub fn upsample(&self, x: &Tensor) -> Result<Tensor> {
        self.upsampler.as_ref().map_or_else(|| Ok(x.clone()), |upsampler| upsampler.forward(x))
    }
}
