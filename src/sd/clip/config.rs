//! `config.json` of a CLIP, as transformers reads it: what is left out has OpenAI's ViT-B/32's value.

use crate::sd::{Activation, TextEncoderConfig};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Both towers.
#[derive(Debug, Clone)]
pub struct ClipConfig {
    /// Features of the space that both towers project into.
    pub projection_dim: usize,
    /// The text tower.
    pub text_config: TextEncoderConfig,
    /// The picture tower.
    pub vision_config: ClipVisionConfig,
    eos_token_id: Option<u32>,
}

/// The picture tower.
#[derive(Debug, Clone, Deserialize)]
pub struct ClipVisionConfig {
    /// Features.
    pub hidden_size: usize,
    /// Features between the two layers of an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of the pictures.
    pub num_channels: usize,
    /// Height and width of the pictures, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl ClipConfig {
    /// Reads a config. A `text_config_dict` or `vision_config_dict` (old files have both forms) counts in place of
    /// `text_config` and `vision_config`, as in transformers.
    ///
    /// # Errors
    /// If a value is of the wrong kind; the message names it.
    pub fn from_value(config: &Value) -> Result<Self> {
        let projection_dim = projection_dim(config)?;
        let mut text = tower(config, "text", &text_defaults())?;
        text.insert("projection_dim".into(), json!(projection_dim));
        let eos_token_id = text.get("eos_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        Ok(Self {
            projection_dim,
            text_config: parse("text_config", text)?,
            vision_config: ClipVisionConfig::of(config)?,
            eos_token_id,
        })
    }

    /// The id that ends a text. Configs from before 2023 say 2, which is wrong and means the tokenizer's
    /// (<https://github.com/huggingface/transformers/pull/24773>).
    pub(super) fn eos(&self) -> Option<u32> {
        self.eos_token_id.filter(|id| *id != 2)
    }
}

impl ClipVisionConfig {
    /// The picture tower of a CLIP's config.
    ///
    /// # Errors
    /// As [`ClipConfig::from_value`].
    pub fn of(config: &Value) -> Result<Self> {
        parse("vision_config", tower(config, "vision", &vision_defaults())?)
    }
}

/// `projection_dim`, or its default.
pub(in crate::sd) fn projection_dim(config: &Value) -> Result<usize> {
    match config.get("projection_dim") {
        None | Some(Value::Null) => Ok(512),
        Some(value) => {
            let found = value.as_u64().filter(|dim| (1..=1 << 16).contains(dim));
            let wrong = || Error::usage(format!("projection_dim is {value}; it must lie between 1 and {}", 1 << 16));
            Ok(found.ok_or_else(wrong)? as usize)
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, config: Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(config)).map_err(|e| Error::usage(format!("{name}: {e}")))
}

fn tower(config: &Value, name: &str, defaults: &Value) -> Result<Map<String, Value>> {
    let of = |key: String| config.get(&key).filter(|value| !value.is_null()).cloned();
    let found = of(format!("{name}_config_dict")).or_else(|| of(format!("{name}_config")));
    let mut all = defaults.as_object().cloned().unwrap_or_default();
    match found {
        None => {}
        Some(Value::Object(found)) => all.extend(found.into_iter().filter(|(_, value)| !value.is_null())),
        Some(other) => return Err(Error::usage(format!("{name}_config is {other}, not an object"))),
    }
    Ok(all)
}

fn text_defaults() -> Value {
    json!({"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
           "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407})
}

fn vision_defaults() -> Value {
    json!({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
           "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_that_of_vit_b_32() {
        let config = ClipConfig::from_value(&json!({})).unwrap();
        assert_eq!((config.projection_dim, config.text_config.projection_dim), (512, 512));
        assert_eq!((config.vision_config.patch_size, config.vision_config.hidden_size), (32, 768));
        assert_eq!(config.eos(), Some(49407));
    }

    #[test]
    fn old_files_say_it_twice_and_have_a_wrong_eos() {
        let old = json!({"projection_dim": 768, "text_config": {"hidden_size": 1, "eos_token_id": 2},
            "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}, "vision_config_dict": null,
            "vision_config": {"patch_size": 14, "hidden_act": "gelu"}});
        let config = ClipConfig::from_value(&old).unwrap();
        assert_eq!((config.text_config.hidden_size, config.text_config.num_attention_heads), (768, 12));
        assert_eq!((config.vision_config.patch_size, config.vision_config.hidden_act), (14, Activation::Gelu));
        assert_eq!(ClipConfig::from_value(&json!({"text_config": {"eos_token_id": 2}})).unwrap().eos(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (config, expected) in [
            (json!({"projection_dim": 0}), "projection_dim is 0"),
            (json!({"vision_config": 3}), "vision_config is 3, not an object"),
            (json!({"vision_config": {"patch_size": [16, 16]}}), "vision_config: invalid type"),
            (json!({"text_config": {"hidden_act": "relu"}}), "text_config: unknown variant `relu`"),
        ] {
            let message = ClipConfig::from_value(&config).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
