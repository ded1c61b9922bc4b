//! `ResnetBlock2D`, and the convolutions between levels.

use crate::Result;
use crate::nn::{Conv2d, GroupNorm, Linear, ParamPath, add_last, add_per_channel, release, upsample_nearest2x};
use candle_core::Tensor;

/// Two 3x3 convolutions around a residual, with the timestep added between them (diffusers' `ResnetBlock2D`).
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Reads a resnet from `inputs` to `outputs` channels; `conv_shortcut` where they differ.
    pub fn new(
        inputs: usize,
        outputs: usize,
        time_features: usize,
        groups: usize,
        eps: f64,
        path: ParamPath<'_>,
    ) -> Result<Self> {
        let shortcut = (inputs != outputs).then(|| Conv2d::new(inputs, outputs, 1, 1, 0, path.pp("conv_shortcut")));
        Ok(Self {
            norm1: GroupNorm::new(groups, inputs, eps, path.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, 3, 1, 1, path.pp("conv1"))?,
            time_emb_proj: Linear::new(time_features, outputs, path.pp("time_emb_proj"))?,
            norm2: GroupNorm::new(groups, outputs, eps, path.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, 3, 1, 1, path.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    /// # Shape
    /// `x` `(B, in, H, W)`, `silu_temb` `(B, time_features)` (SiLU already applied; of more rows the first `B` are meant) ->
    /// `(B, out, H, W)`.
    pub fn forward(&self, x: &Tensor, silu_temb: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let of_rows = if silu_temb.dim(0)? > rows { silu_temb.narrow(0, 0, rows)? } else { silu_temb.clone() };
        let convolved = self.conv1.forward_releasing(self.norm1.forward_silu(x)?)?;
        let h = add_per_channel(&convolved, &self.time_emb_proj.forward(&of_rows)?)?;
        release(convolved)?;
        let h = self.conv2.forward_releasing(self.norm2.forward_silu_over(h)?)?;
        match &self.conv_shortcut {
            Some(conv) => {
                let shortcut = conv.forward(x)?;
                let sum = add_last(&shortcut, h)?;
                release(shortcut)?;
                Ok(sum)
            }
            None => add_last(x, h),
        }
    }
}

/// `downsamplers.0`: a 3x3 convolution of stride 2, padding 1.
pub struct Downsample(Conv2d);

impl Downsample {
    /// Reads `conv`.
    pub fn new(channels: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self(Conv2d::new(channels, channels, 3, 2, 1, path.pp("conv"))?))
    }

    /// Shape: `(B, C, H, W)` -> `(B, C, ceil(H/2), ceil(W/2))`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// `upsamplers.0`: nearest neighbour to twice the size, then a 3x3 convolution.
pub struct Upsample(Conv2d);

impl Upsample {
    /// Reads `conv`.
    pub fn new(channels: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self(Conv2d::new(channels, channels, 3, 1, 1, path.pp("conv"))?))
    }

    /// Shape: `(B, C, H, W)` -> `(B, C, 2H, 2W)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_releasing(upsample_nearest2x(x)?)
    }
}
