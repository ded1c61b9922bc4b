//! Levels of encoder and decoder.

use super::attention::Attention;
use super::{EPS, VaeConfig};
use crate::Result;
use crate::nn::{Conv2d, GroupNorm, ParamPath, add};
use candle_core::Tensor;

/// `ResnetBlock2D` without a timestep.
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    fn new(c: &VaeConfig, inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<Self> {
        let shortcut = (inputs != outputs).then(|| Conv2d::new(inputs, outputs, 1, 1, 0, path.pp("conv_shortcut")));
        Ok(Self {
            norm1: GroupNorm::new(c.norm_num_groups, inputs, EPS, path.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, 3, 1, 1, path.pp("conv1"))?,
            norm2: GroupNorm::new(c.norm_num_groups, outputs, EPS, path.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, 3, 1, 1, path.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    /// Of an `x` that nothing else reads: maps are large, so that none is kept longer than it is needed.
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let (normed, around) = match &self.conv_shortcut {
            Some(conv) => {
                let around = conv.forward(&x)?;
                (self.norm1.forward_silu_over(x)?, around)
            }
            None => (self.norm1.forward_silu(&x)?, x),
        };
        let h = self.conv1.forward(&normed)?;
        drop(normed);
        let normed = self.norm2.forward_silu_over(h)?;
        let h = self.conv2.forward(&normed)?;
        drop(normed);
        add(&around, &h)
    }
}

/// `encoder.down_blocks.N`.
pub(super) struct DownEncoderBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Conv2d>,
}

impl DownEncoderBlock {
    pub(super) fn new(c: &VaeConfig, inputs: usize, outputs: usize, down: bool, path: ParamPath<'_>) -> Result<Self> {
        let resnets = (0..c.layers_per_block)
            .map(|j| ResnetBlock::new(c, if j == 0 { inputs } else { outputs }, outputs, path.pp("resnets").pp(j)));
        let downsampler = down.then(|| Conv2d::new(outputs, outputs, 3, 2, 0, path.pp("downsamplers.0.conv")));
        Ok(Self { resnets: resnets.collect::<Result<_>>()?, downsampler: downsampler.transpose()? })
    }

    /// `(B, in, H, W)` -> `(B, out, H/2, W/2)`.
    pub(super) fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x)?;
        }
        match &self.downsampler {
            // padded at the right and at the bottom only
            Some(conv) => conv.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?),
            None => Ok(x),
        }
    }
}

/// `mid_block` of encoder and decoder.
pub(super) struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    pub(super) fn new(c: &VaeConfig, channels: usize, path: ParamPath<'_>) -> Result<Self> {
        let resnet = |i: usize| ResnetBlock::new(c, channels, channels, path.pp("resnets").pp(i));
        let attention = c.mid_block_add_attention.then(|| Attention::new(c, channels, path.pp("attentions.0")));
        Ok(Self { resnets: [resnet(0)?, resnet(1)?], attention: attention.transpose()? })
    }

    /// `(B, C, H, W)` -> the same.
    pub(super) fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        x = self.resnets[0].forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnets[1].forward(x)
    }
}

/// `decoder.up_blocks.N`.
pub(super) struct UpDecoderBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv2d>,
}

impl UpDecoderBlock {
    pub(super) fn new(c: &VaeConfig, inputs: usize, outputs: usize, up: bool, path: ParamPath<'_>) -> Result<Self> {
        let resnets = (0..=c.layers_per_block)
            .map(|j| ResnetBlock::new(c, if j == 0 { inputs } else { outputs }, outputs, path.pp("resnets").pp(j)));
        let upsampler = up.then(|| Conv2d::new(outputs, outputs, 3, 1, 1, path.pp("upsamplers.0.conv")));
        Ok(Self { resnets: resnets.collect::<Result<_>>()?, upsampler: upsampler.transpose()? })
    }

    /// `(B, in, H, W)` -> `(B, out, 2H, 2W)`.
    pub(super) fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x)?;
        }
        match &self.upsampler {
            Some(conv) => conv.forward_upsampled(&x),
            None => Ok(x),
        }
    }
}
