//! The UNet (diffusers' `UNet2DConditionModel`), built from its `config.json`.

mod blocks;
mod checkpoint;
mod config;
mod context;
mod embeddings;
mod footprint;
mod resnet;
mod transformer;

pub use checkpoint::{Tape, backward_through};
pub use config::{OneOrEach, UnetConfig};
use context::Context;
pub use embeddings::{AddedConditions, sinusoid};
pub use footprint::Footprint;

use crate::nn::{Conv2d, GroupNorm, LoadReport, ParamPath, ParamStore, repeat_rows, silu};
use crate::sd::Conditions;
use crate::{Error, Result};
use blocks::{DownBlock, MidBlock, UpBlock};
use candle_core::{Device, Tensor};
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

    /// Predicts the noise (or v) in `x`, under one or several texts.
    ///
    /// # Shape
    /// `x` `(B, in, H, W)`, a timestep for each row (fractions allowed), conditions with a context
    /// `(n B, tokens, cross_attention_dim)`, the first text of every row before the second -> `(n B, out, H, W)`. `H` and `W` must be
    /// multiples of `2^(levels - 1)`. What comes before the first cross-attention is computed once for all texts of a row, as long as
    /// the timestep's embedding has nothing of the text (as in SDXL).
    ///
    /// # Errors
    /// If these do not fit each other, or an SDXL model gets no pooled text.
    pub fn forward(&self, x: &Tensor, t: &[f32], conditions: impl Into<Conditions>) -> Result<Tensor> {
        let Conditions { context, added } = &conditions.into();
        self.predict(x, t, &Context::new(context), added.as_ref())
    }

    /// The network with conditions that stay the same over many steps: what cross-attention makes of the text is made once. Only for
    /// networks that do not change meanwhile and keep no graph.
    pub fn reading(&self, conditions: &Conditions) -> Reader<'_> {
        Reader { unet: self, context: Context::remembering(&conditions.context), added: conditions.added.clone() }
    }

    fn predict(&self, x: &Tensor, t: &[f32], context: &Context, added: Option<&AddedConditions>) -> Result<Tensor> {
        self.check_operands(x, t, context)?;
        let rows = context.rows()?;
        let temb = self.embed(&t.repeat(rows / t.len().max(1)), added, x.device())?;
        let (mut h, mut skips) = (if added.is_none() { x.clone() } else { repeat_rows(x, rows)? }, Vec::new());
        for stage in self.stages() {
            h = self.run(stage, &h, &temb, context, &mut skips)?;
        }
        Ok(h)
    }

    fn check_operands(&self, x: &Tensor, t: &[f32], context: &Context) -> Result<()> {
        let (batch, _, height, width) = x.dims4()?;
        let multiple = 1 << (self.down_blocks.len() - 1);
        let rows = context.rows()?;
        if t.len() != batch || rows == 0 || !rows.is_multiple_of(batch) {
            return Err(Error::Usage(format!("{batch} latents, {} timesteps and {rows} texts do not match", t.len())));
        }
        if height % multiple != 0 || width % multiple != 0 {
            return Err(Error::Usage(format!("latents of {height}x{width} are not multiples of {multiple}")));
        }
        Ok(())
    }

    /// The embedded timesteps; every user applies SiLU first, so it is applied here.
    fn embed(&self, t: &[f32], added: Option<&AddedConditions>, device: &Device) -> Result<Tensor> {
        silu(&self.embeddings.forward(t, added, device)?)
    }

    /// The network in pieces, in order.
    fn stages(&self) -> Vec<Stage> {
        let mut stages = vec![Stage::In];
        for (i, block) in self.down_blocks.iter().enumerate() {
            stages.extend((0..block.layers()).map(|j| Stage::Down(i, j)));
            stages.push(Stage::Downsample(i));
        }
        stages.push(Stage::Mid);
        for (i, block) in self.up_blocks.iter().enumerate() {
            stages.extend((0..block.layers()).map(|j| Stage::Up(i, j)));
            stages.push(Stage::Upsample(i));
        }
        stages.push(Stage::Out);
        stages
    }

    /// One piece: what comes out of the one before, and the skips so far, to which it adds or of which it takes.
    fn run(
        &self,
        stage: Stage,
        h: &Tensor,
        temb: &Tensor,
        context: &Context,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        match stage {
            Stage::In => {
                let h = self.conv_in.forward_entering(h)?;
                skips.push(h.clone());
                Ok(h)
            }
            Stage::Down(i, j) => self.down_blocks[i].layer(j, h, temb, context, skips),
            Stage::Downsample(i) => self.down_blocks[i].downsample(h, skips),
            Stage::Mid => self.mid_block.forward(h, temb, context),
            Stage::Up(i, j) => self.up_blocks[i].layer(j, h, temb, context, skips),
            Stage::Upsample(i) => self.up_blocks[i].upsample(h),
            Stage::Out => self.conv_out.forward_leaving(&self.conv_norm_out.forward_silu(h)?),
        }
    }
}

/// A network and what it is told in every step, as [`Unet::reading`] says.
pub struct Reader<'u> {
    unet: &'u Unet,
    context: Context,
    added: Option<AddedConditions>,
}

impl Reader<'_> {
    /// As [`Unet::forward`].
    ///
    /// # Errors
    /// As [`Unet::forward`].
    pub fn forward(&self, x: &Tensor, t: &[f32]) -> Result<Tensor> {
        self.unet.predict(x, t, &self.context, self.added.as_ref())
    }
}

/// A piece of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    In,
    /// Of `down_blocks` this one, of it this resnet with its attention.
    Down(usize, usize),
    /// The end of one of `down_blocks`.
    Downsample(usize),
    Mid,
    /// Of `up_blocks` this one, of it this resnet with its attention.
    Up(usize, usize),
    /// The end of one of `up_blocks`.
    Upsample(usize),
    Out,
}

impl Stage {
    /// Whether a parameter belongs to it. The timestep embedding belongs to none.
    fn has(self, name: &str) -> bool {
        let layer = |block: &str, i: usize, j: usize| {
            let of_layer = |part: &str| name.starts_with(&format!("{block}.{i}.{part}.{j}."));
            of_layer("resnets") || of_layer("attentions")
        };
        match self {
            Self::In => name.starts_with("conv_in."),
            Self::Down(i, j) => layer("down_blocks", i, j),
            Self::Downsample(i) => name.starts_with(&format!("down_blocks.{i}.downsamplers.")),
            Self::Mid => name.starts_with("mid_block."),
            Self::Up(i, j) => layer("up_blocks", i, j),
            Self::Upsample(i) => name.starts_with(&format!("up_blocks.{i}.upsamplers.")),
            Self::Out => name.starts_with("conv_norm_out.") || name.starts_with("conv_out."),
        }
    }
}
