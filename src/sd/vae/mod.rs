//! The autoencoder (diffusers' `AutoencoderKL`).

mod attention;
mod blocks;

use crate::nn::{Conv2d, GroupNorm, ParamPath, ParamStore, Stay};
use crate::{Error, Result};
use blocks::{DownEncoderBlock, MidBlock, UpDecoderBlock};
use candle_core::Tensor;
use serde::Deserialize;

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct VaeConfig {
    /// Channels of pictures.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of pictures.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// Channels of latents.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Channels of each resolution level.
    pub block_out_channels: Vec<usize>,
    /// `DownEncoderBlock2D` for each level.
    pub down_block_types: Vec<String>,
    /// `UpDecoderBlock2D` for each level.
    pub up_block_types: Vec<String>,
    /// Resnets an encoder level (a decoder level has one more).
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Groups of every group norm.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Activation.
    #[serde(default = "silu")]
    pub act_fn: String,
    /// What latents are multiplied by for the UNet.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    /// A 1x1 convolution after the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// An attention in the middle blocks.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn silu() -> String {
    "silu".into()
}
fn scaling_factor() -> f64 {
    0.18215
}
fn yes() -> bool {
    true
}

/// Epsilon of every norm.
pub(super) const EPS: f64 = 1e-6;

impl VaeConfig {
    fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        let wrong = |what: String| Err(Error::Usage(what));
        for (key, types, known) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if types.len() != levels || levels == 0 {
                return wrong(format!("block_out_channels has {levels} entries but there are {} {key}", types.len()));
            }
            if let Some(other) = types.iter().find(|t| *t != known) {
                return wrong(format!("block type {other} is not supported; known is {known}"));
            }
        }
        let wide = self.block_out_channels.iter().chain([&self.latent_channels]).max().copied().unwrap_or(0);
        for (key, found, limit) in [
            ("block_out_channels", levels, 8),
            ("block_out_channels or latent_channels", wide, 1 << 16),
            ("layers_per_block", self.layers_per_block, 64),
        ] {
            if found == 0 || found > limit {
                return wrong(format!("{key} of {found} must lie between 1 and {limit}"));
            }
        }
        if self.latent_channels == 0 || self.block_out_channels.contains(&0) {
            return wrong("latent_channels and block_out_channels must not be 0".into());
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            let (a, b) = (self.in_channels, self.out_channels);
            return wrong(format!("in_channels is {a} and out_channels {b}; pictures have 3"));
        }
        if self.act_fn != "silu" {
            return wrong(format!("act_fn is {}; this program supports silu", self.act_fn));
        }
        let groups = self.norm_num_groups;
        if let Some(odd) = self.block_out_channels.iter().find(|c| groups == 0 || !c.is_multiple_of(groups)) {
            return wrong(format!("{odd} channels cannot be divided into {groups} norm groups"));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return wrong(format!("scaling_factor is {}; it must be positive", self.scaling_factor));
        }
        Ok(())
    }
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(c: &VaeConfig, path: ParamPath<'_>) -> Result<Self> {
        let widths = &c.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let blocks = (0..widths.len()).map(|level| {
            let down = level + 1 < widths.len();
            let inputs = widths[level.saturating_sub(1)];
            DownEncoderBlock::new(c, inputs, widths[level], down, path.pp("down_blocks").pp(level))
        });
        Ok(Self {
            conv_in: Conv2d::new(c.in_channels, first, 3, 1, 1, path.pp("conv_in"))?,
            down_blocks: blocks.collect::<Result<_>>()?,
            mid_block: MidBlock::new(c, last, path.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(c.norm_num_groups, last, EPS, path.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(last, 2 * c.latent_channels, 3, 1, 1, path.pp("conv_out"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.conv_in.forward_entering(x)?;
        for block in &self.down_blocks {
            h = block.forward(h)?;
        }
        h = self.mid_block.forward(h)?;
        h = self.conv_norm_out.forward_silu_over(h)?;
        self.conv_out.forward_leaving(&h)
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpDecoderBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(c: &VaeConfig, path: ParamPath<'_>) -> Result<Self> {
        let widths: Vec<usize> = c.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let blocks = (0..widths.len()).map(|i| {
            let inputs = widths[i.saturating_sub(1)];
            UpDecoderBlock::new(c, inputs, widths[i], i + 1 < widths.len(), path.pp("up_blocks").pp(i))
        });
        Ok(Self {
            conv_in: Conv2d::new(c.latent_channels, first, 3, 1, 1, path.pp("conv_in"))?,
            mid_block: MidBlock::new(c, first, path.pp("mid_block"))?,
            up_blocks: blocks.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(c.norm_num_groups, last, EPS, path.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(last, c.out_channels, 3, 1, 1, path.pp("conv_out"))?,
        })
    }

    fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let mut h = self.mid_block.forward(self.conv_in.forward_entering(z)?)?;
        for block in &self.up_blocks {
            h = block.forward(h)?;
        }
        h = self.conv_norm_out.forward_silu_over(h)?;
        self.conv_out.forward_leaving(&h)
    }
}

/// The encoder with the 1x1 convolution after it.
struct Encoding {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
}

impl Encoding {
    /// Whether a parameter belongs to it.
    fn has(name: &str) -> bool {
        name.starts_with("encoder.") || name.starts_with("quant_conv.")
    }

    fn new(c: &VaeConfig, params: &ParamStore) -> Result<Self> {
        let twice = 2 * c.latent_channels;
        let loader = params.loader();
        let root = loader.root();
        let conv = c.use_quant_conv.then(|| Conv2d::new(twice, twice, 1, 1, 0, root.pp("quant_conv")));
        let encoding = Self { encoder: Encoder::new(c, root.pp("encoder"))?, quant_conv: conv.transpose()? };
        loader.finish("vae")?;
        Ok(encoding)
    }
}

/// The decoder with the 1x1 convolution before it.
struct Decoding {
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl Decoding {
    fn new(c: &VaeConfig, params: &ParamStore) -> Result<Self> {
        let latent = c.latent_channels;
        let loader = params.loader();
        let root = loader.root();
        let conv = c.use_post_quant_conv.then(|| Conv2d::new(latent, latent, 1, 1, 0, root.pp("post_quant_conv")));
        let decoding = Self { post_quant_conv: conv.transpose()?, decoder: Decoder::new(c, root.pp("decoder"))? };
        loader.finish("vae")?;
        Ok(decoding)
    }
}

/// Pictures to latents and back.
pub struct Vae {
    encoding: Stay<Encoding>,
    decoding: Stay<Decoding>,
    config: VaeConfig,
    bytes: usize,
}

impl Vae {
    /// Builds the network. On a GPU the encoder waits in main memory until it is asked for something: most jobs only decode.
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(config: &VaeConfig, params: &ParamStore) -> Result<Self> {
        config.check()?;
        let (first, second) = (config.clone(), config.clone());
        let (of_encoding, of_decoding) = (params.filtered(Encoding::has), params.filtered(|name| !Encoding::has(name)));
        let encoding = Stay::new(&of_encoding, move |params| Encoding::new(&first, params))?;
        encoding.leave()?;
        let decoding = Stay::new(&of_decoding, move |params| Decoding::new(&second, params))?;
        Ok(Self { encoding, decoding, config: config.clone(), bytes: params.bytes() })
    }

    /// Gives its memory on a GPU back until it is asked for something.
    ///
    /// # Errors
    /// As [`Stay::leave`].
    pub fn leave(&self) -> Result<()> {
        self.encoding.leave()?;
        self.decoding.leave()
    }

    /// Bytes of its parameters.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Mean and log-variance of the latents, unscaled; the log-variance is clamped to -30..20.
    ///
    /// # Shape
    /// `(B, 3, H, W)` in -1 to 1 -> twice `(B, C, H/f, W/f)`, `f` as [`Vae::downsampling`].
    pub fn encode(&self, image: &Tensor) -> Result<(Tensor, Tensor)> {
        let encoding = self.encoding.here()?;
        let moments = encoding.encoder.forward(image)?;
        let moments = match &encoding.quant_conv {
            Some(conv) => conv.forward(&moments)?,
            None => moments,
        };
        let channels = self.config.latent_channels;
        let logvar = moments.narrow(1, channels, channels)?.clamp(-30f32, 20f32)?;
        Ok((moments.narrow(1, 0, channels)?.contiguous()?, logvar))
    }

    /// The picture of unscaled latents.
    ///
    /// # Shape
    /// `(B, C, h, w)` -> `(B, 3, f h, f w)`, about -1 to 1.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let decoding = self.decoding.here()?;
        match &decoding.post_quant_conv {
            Some(conv) => decoding.decoder.forward(&conv.forward(latent)?),
            None => decoding.decoder.forward(latent),
        }
    }

    /// What unscaled latents are multiplied by for the UNet.
    pub fn scaling_factor(&self) -> f64 {
        self.config.scaling_factor
    }

    /// Pixels along the side of one latent pixel: 8 for SD, 4 for the demo.
    pub fn downsampling(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }
}
