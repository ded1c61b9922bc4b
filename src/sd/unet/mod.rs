//! The UNet (diffusers' `UNet2DConditionModel`), built from its `config.json`.

mod blocks;
mod config;
mod embeddings;
mod resnet;
mod transformer;

pub use config::{OneOrEach, UnetConfig};
pub use embeddings::{AddedConditions, sinusoid};

use crate::nn::{Conv2d, GroupNorm, LoadReport, ParamPath, ParamStore, silu};
use crate::{Error, Result};
use blocks::{DownBlock, MidBlock, UpBlock};
use candle_core::Tensor;
use embeddings::Embeddings;

/// The noise (or v) predictor. Fields are named as in the checkpoint.
pub struct Unet {
    embeddings: Embeddings,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Builds the network on the parameters of `params`; trainable ones are tracked.
    ///
    /// # Errors
    /// If a tensor is missing, left over or misshapen; the message names them.
    pub fn new(config: &UnetConfig, params: &ParamStore) -> Result<Self> {
        Ok(Self::with_report(config, params)?.0)
    }

    /// As [`Unet::new`], with what the load found.
    pub fn with_report(config: &UnetConfig, params: &ParamStore) -> Result<(Self, LoadReport)> {
        let loader = params.loader();
        let unet = Self::load(config, &loader.root())?;
        let report = loader.finish("unet")?;
        Ok((unet, report))
    }

    fn load(c: &UnetConfig, path: &ParamPath<'_>) -> Result<Self> {
        let (first, last) = (c.block_out_channels[0], c.block_out_channels[c.levels() - 1]);
        let down = (0..c.levels()).map(|level| DownBlock::new(c, level, path.pp("down_blocks").pp(level)));
        let up = (0..c.levels()).map(|i| UpBlock::new(c, i, path.pp("up_blocks").pp(i)));
        Ok(Self {
            embeddings: Embeddings::new(c, path)?,
            conv_in: Conv2d::new(c.in_channels, first, 3, 1, 1, path.pp("conv_in"))?,
            down_blocks: down.collect::<Result<_>>()?,
            mid_block: MidBlock::new(c, last, path.pp("mid_block"))?,
            up_blocks: up.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(c.norm_num_groups, first, c.norm_eps, path.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(first, c.out_channels, 3, 1, 1, path.pp("conv_out"))?,
        })
    }

    /// Predicts the noise (or v) in `x`.
    ///
    /// # Shape
    /// `x` `(B, in, H, W)`, a timestep for each row (fractions allowed), `context` `(B, tokens, cross_attention_dim)` ->
    /// `(B, out, H, W)`. `H` and `W` must be multiples of `2^(levels - 1)`.
    pub fn forward(&self, x: &Tensor, t: &[f32], context: &Tensor) -> Result<Tensor> {
        self.forward_with(x, t, context, None)
    }

    /// As [`Unet::forward`], with SDXL's further conditions.
    pub fn forward_with(
        &self,
        x: &Tensor,
        t: &[f32],
        context: &Tensor,
        added: Option<&AddedConditions>,
    ) -> Result<Tensor> {
        let (batch, _, height, width) = x.dims4()?;
        let multiple = 1 << (self.down_blocks.len() - 1);
        if t.len() != batch || context.dim(0)? != batch {
            let rows = context.dim(0)?;
            return Err(Error::Usage(format!("{batch} latents, {} timesteps and {rows} texts do not match", t.len())));
        }
        if height % multiple != 0 || width % multiple != 0 {
            return Err(Error::Usage(format!("latents of {height}x{width} are not multiples of {multiple}")));
        }
        let temb = silu(&self.embeddings.forward(t, added, x.device())?)?; // every user applies SiLU first
        let mut h = self.conv_in.forward(x)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(&h, &temb, context, &mut skips)?;
        }
        h = self.mid_block.forward(&h, &temb, context)?;
        for block in &self.up_blocks {
            h = block.forward(&h, &temb, context, &mut skips)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&h)?)
    }
}
