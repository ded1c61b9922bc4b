//! `unet/config.json` of a diffusers folder.

use crate::{Error, Result};
use serde::Deserialize;

/// The fields of diffusers' `UNet2DConditionModel` config that change what is computed; any other value of a field that
/// is listed under `fixed` is refused by [`UnetConfig::from_json`].
#[derive(Debug, Clone, Deserialize)]
pub struct UnetConfig {
    /// Channels of the latents that come in.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Height and width of the latents that the model was trained on.
    #[serde(default)]
    pub sample_size: Option<usize>,
    /// Channels of each resolution level.
    pub block_out_channels: Vec<usize>,
    /// `CrossAttnDownBlock2D` or `DownBlock2D` for each level.
    pub down_block_types: Vec<String>,
    /// `CrossAttnUpBlock2D` or `UpBlock2D` for each level, lowest resolution first.
    pub up_block_types: Vec<String>,
    /// Resnets a down level (an up level has one more).
    pub layers_per_block: usize,
    /// Number of attention *heads* (diffusers keeps the misleading name), one for all levels or one each.
    pub attention_head_dim: OneOrEach,
    /// Transformer blocks in each attention, one for all levels or one each.
    #[serde(default = "one")]
    pub transformer_layers_per_block: OneOrEach,
    /// Features of the text embeddings.
    pub cross_attention_dim: usize,
    /// Groups of every group norm.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Epsilon of the resnets' group norms.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// `proj_in` and `proj_out` of an attention are linear layers rather than 1x1 convolutions.
    #[serde(default)]
    pub use_linear_projection: bool,
    /// The timestep embedding is `[cos | sin]` rather than `[sin | cos]`.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shift in the exponent of the timestep frequencies.
    #[serde(default)]
    pub freq_shift: f64,
    /// `text_time` for SDXL's pooled text and sizes, absent otherwise.
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Features of the embedding of each of SDXL's six sizes.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Features of pooled text and embedded sizes together.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
}

/// One value for all levels, or a list with one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrEach {
    /// The same for every level.
    One(usize),
    /// One for each level.
    Each(Vec<usize>),
}

impl OneOrEach {
    /// The value at `level` (0 is the highest resolution).
    pub fn at(&self, level: usize) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values[level],
        }
    }

    fn largest(&self) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values.iter().copied().max().unwrap_or(0),
        }
    }

    fn fits(&self, levels: usize) -> bool {
        match self {
            Self::One(value) => *value > 0,
            Self::Each(values) => values.len() == levels && values.iter().all(|v| *v > 0),
        }
    }
}

fn one() -> OneOrEach {
    OneOrEach::One(1)
}
fn thirty_two() -> usize {
    32
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

/// Fields that exist in other models, with the values under which they change nothing here.
const FIXED: [(&str, &[&str]); 17] = [
    ("act_fn", &["\"silu\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("num_attention_heads", &["null"]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
];

impl UnetConfig {
    /// Reads and checks a config.
    ///
    /// # Errors
    /// If a field is missing or contradicts another, or names a variant that this program does not know.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |what: String| Error::Usage(what);
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        for (key, known) in FIXED {
            if let Some(found) = value.get(key).map(ToString::to_string)
                && !known.contains(&found.as_str())
            {
                return Err(wrong(format!("{key} is {found}; this program supports {}", known.join(" or "))));
            }
        }
        let config: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let levels = self.block_out_channels.len();
        if levels == 0 || self.layers_per_block == 0 || self.in_channels == 0 || self.out_channels == 0 {
            return Err(
                "block_out_channels, layers_per_block, in_channels and out_channels must not be empty or 0".into()
            );
        }
        let wide = self.block_out_channels.iter().chain([&self.cross_attention_dim, &self.in_channels]).max();
        for (key, found, limit) in [
            ("block_out_channels", levels, 8),
            ("block_out_channels or cross_attention_dim", wide.copied().unwrap_or(0), 1 << 16),
            ("layers_per_block", self.layers_per_block, 64),
            ("transformer_layers_per_block", self.transformer_layers_per_block.largest(), 64),
            ("sample_size", self.sample_size.unwrap_or(64), 1024),
        ] {
            if found > limit {
                return Err(format!("{key} of {found} is beyond what this program takes ({limit})"));
            }
        }
        let (size, multiple) = (self.sample_size.unwrap_or(64), 1 << (levels - 1));
        if size == 0 || !size.is_multiple_of(multiple) {
            return Err(format!("sample_size is {size}; with {levels} levels it must be a multiple of {multiple}"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("norm_eps is {}; it must lie above 0 and below 1", self.norm_eps));
        }
        if !self.freq_shift.is_finite() || self.freq_shift.abs() >= self.block_out_channels[0] as f64 / 2.0 {
            return Err(format!("freq_shift is {}; it must be 0 or near it", self.freq_shift));
        }
        for (key, found) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if found != levels {
                return Err(format!("block_out_channels has {levels} entries but there are {found} {key}"));
            }
        }
        for (types, known) in [
            (&self.down_block_types, ["CrossAttnDownBlock2D", "DownBlock2D"]),
            (&self.up_block_types, ["CrossAttnUpBlock2D", "UpBlock2D"]),
        ] {
            if let Some(other) = types.iter().find(|t| !known.contains(&t.as_str())) {
                return Err(format!("block type {other} is not supported; known are {} and {}", known[0], known[1]));
            }
        }
        if !self.attention_head_dim.fits(levels) {
            return Err(format!("attention_head_dim must be a positive number or a list of {levels} of them"));
        }
        if !self.transformer_layers_per_block.fits(levels) {
            return Err(format!(
                "transformer_layers_per_block must be a positive number or a list of {levels} of them"
            ));
        }
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.attention_head_dim.at(level);
            if self.norm_num_groups == 0
                || channels % self.norm_num_groups != 0
                || channels % heads != 0
                || channels % 2 != 0
            {
                return Err(format!(
                    "{channels} channels cannot be divided into {} norm groups and {heads} heads",
                    self.norm_num_groups
                ));
            }
        }
        match self.addition_embed_type.as_deref() {
            None => Ok(()),
            Some("text_time") => match (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim) {
                (Some(each), Some(all)) if each > 0 && each % 2 == 0 && all > 6 * each => Ok(()),
                _ => Err("text_time needs addition_time_embed_dim and projection_class_embeddings_input_dim".into()),
            },
            Some(other) => Err(format!("addition_embed_type is {other}; this program supports null and text_time")),
        }
    }

    /// Number of resolution levels.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }
}
