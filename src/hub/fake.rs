//! Models of real sizes with made-up weights, for measuring memory and time without a download: `fake:sd14`, as a single file
//! `fake:sd14-single`.
//!
//! The weights follow a rule that any language can repeat (`make_goldens.py`'s `made_up`), so that what the network computes
//! can be compared with PyTorch's at full size. A made-up model is written once, as a folder in diffusers' layout, and
//! from then on is a model like any other.

use super::demo;
use crate::checkpoint::single_file::write_single_file;
use crate::checkpoint::{ModelFiles, OutputFolder, Precision, SingleFile, write_file, write_safetensors};
use crate::diffusion::Generator;
use crate::nn::{ParamStore, Shapes};
use crate::progress::check_interrupted;
use crate::sd::{TextEncoder, TextEncoderConfig, Unet, UnetConfig, Vae, VaeConfig};
use crate::{Error, Result};
use candle_core::Device;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What such a model's name begins with.
pub(super) const PREFIX: &str = "fake:";

/// Changes whenever the files would.
const VERSION: &str = "v1";

/// The made-up model `name` (without the prefix): a folder, or `NAME-single`, a single file.
///
/// # Errors
/// If there is no such model, or it cannot be written.
pub(super) fn files(name: &str) -> Result<ModelFiles> {
    let Some(name) = name.strip_suffix("-single") else { return Ok(ModelFiles::Folder(folder(name)?)) };
    let folder = folder(name)?;
    let path = folder.with_extension("safetensors");
    if !path.is_file() {
        let partial = path.with_extension("partial");
        write_single_file(&ModelFiles::Folder(folder), &partial, &BTreeMap::new())?;
        std::fs::rename(&partial, &path).map_err(Error::io(&path))?;
    }
    Ok(ModelFiles::Single(Arc::new(SingleFile::open(&path)?)))
}

/// The folder of the made-up model `name`, written if it is not there yet.
///
/// # Errors
/// If there is no such model, or it cannot be written.
fn folder(name: &str) -> Result<PathBuf> {
    if name != "sd14" {
        return Err(Error::usage(format!("--model \"{PREFIX}{name}\" is not known; there is {PREFIX}sd14")));
    }
    let folder = cache()?.join("fake").join(format!("{name}-{VERSION}"));
    if !folder.join("model_index.json").is_file() {
        write(&folder)?;
    }
    Ok(folder)
}

/// Where this program may keep what it can make again.
fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let root = variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home);
    let root = root.ok_or_else(|| Error::usage("no place for a cache: set XDG_CACHE_HOME to a folder"))?;
    Ok(root.join("erase-concept"))
}

fn write(folder: &Path) -> Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let output = OutputFolder::create(folder, true)?;
    let root = output.path();
    for (rel, content) in demo::FILES.iter().filter(|(rel, _)| rel.starts_with("tokenizer/")) {
        let longer = |content: &str| content.replace("\"model_max_length\": 32", "\"model_max_length\": 77");
        match std::str::from_utf8(content) {
            Ok(text) if rel.ends_with("tokenizer_config.json") => put(root, rel, longer(text).as_bytes())?,
            _ => put(root, rel, content)?,
        }
    }
    let (unet, vae, text) = (unet(), vae(), text_encoder());
    for (rel, config) in [
        ("model_index.json", index()),
        ("scheduler/scheduler_config.json", scheduler()),
        ("unet/config.json", unet.clone()),
        ("vae/config.json", vae.clone()),
        ("text_encoder/config.json", text.clone()),
    ] {
        put(root, rel, format!("{config:#}\n").as_bytes())?;
    }
    let shapes = shapes(|store| Unet::new(&UnetConfig::from_json(&unet.to_string())?, store).map(drop))?;
    weights(&root.join("unet/diffusion_pytorch_model.safetensors"), &shapes)?;
    let shapes = self::shapes(|store| Vae::new(&parsed::<VaeConfig>(&vae)?, store).map(drop))?;
    weights(&root.join("vae/diffusion_pytorch_model.safetensors"), &shapes)?;
    let shapes = self::shapes(|store| TextEncoder::new(&parsed::<TextEncoderConfig>(&text)?, store).map(drop))?;
    weights(&root.join("text_encoder/model.safetensors"), &shapes)?;
    output.commit()
}

/// The UNet alone, in memory; matrices and convolutions that are not `exact` are kept as `precision` says.
pub(super) fn unet_parameters(
    precision: Precision,
    exact: &(dyn Fn(&str) -> bool + Sync),
) -> Result<(UnetConfig, ParamStore)> {
    let config = UnetConfig::from_json(&unet().to_string())?;
    let params = parameters(|store| Unet::new(&config, store).map(drop), precision, exact)?;
    Ok((config, params))
}

/// The VAE alone, in memory.
pub(super) fn vae_parameters() -> Result<(VaeConfig, ParamStore)> {
    let config = parsed::<VaeConfig>(&vae())?;
    let params = parameters(|store| Vae::new(&config, store).map(drop), Precision::F32, &|_| true)?;
    Ok((config, params))
}

/// The text encoder alone, in memory.
pub(super) fn text_encoder_parameters() -> Result<(TextEncoderConfig, ParamStore)> {
    let config = parsed::<TextEncoderConfig>(&text_encoder())?;
    let params = parameters(|store| TextEncoder::new(&config, store).map(drop), Precision::F32, &|_| true)?;
    Ok((config, params))
}

/// Made-up weights of all that a network asks for.
fn parameters(
    build: impl FnOnce(&ParamStore) -> Result<()>,
    precision: Precision,
    exact: &(dyn Fn(&str) -> bool + Sync),
) -> Result<ParamStore> {
    let tensors: Result<_> = shapes(build)?
        .par_iter()
        .map(|(name, shape)| {
            let precision = if exact(name) { Precision::F32 } else { precision };
            Ok((name.clone(), precision.keep(made_up(name, shape), shape, &Device::Cpu)?))
        })
        .collect();
    Ok(ParamStore::new(tensors?))
}

fn put(root: &Path, rel: &str, content: &[u8]) -> Result<()> {
    let path = root.join(rel);
    let folder = path.parent().unwrap_or(root);
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    write_file(&path, content)
}

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    serde_json::from_value(config.clone()).map_err(|e| Error::usage(format!("a made-up config: {e}")))
}

fn shapes(build: impl FnOnce(&ParamStore) -> Result<()>) -> Result<Shapes> {
    let recorder = ParamStore::recorder();
    build(&recorder)?;
    Ok(recorder.recorded())
}

fn weights(path: &Path, shapes: &Shapes) -> Result<()> {
    let tensors: Result<BTreeMap<_, _>> = shapes
        .par_iter()
        .map(|(name, shape)| {
            check_interrupted()?;
            let bytes = made_up(name, shape).iter().flat_map(|value| value.to_le_bytes()).collect();
            Ok((name.clone(), (Dtype::F32, shape.clone(), bytes)))
        })
        .collect();
    write_safetensors(path, &tensors?, &BTreeMap::from([("format".to_string(), "pt".to_string())]))
}

/// `r = randn(crc32(NAME))`. A norm's weight is `1 + 0.1 r`, any other vector `0.02 r`, a table of embeddings `r`; any other
/// tensor is `r / sqrt(fan_in)`, twice that for queries and keys, so that every part of the network matters.
fn made_up(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut values = Generator::new(u64::from(crc32fast::hash(name.as_bytes()))).randn(shape.iter().product());
    let table = name.contains("embedding")
        && !["time_embedding", "add_embedding", "patch_embedding"].iter().any(|layer| name.contains(layer));
    let map: Box<dyn Fn(f32) -> f32> = match shape.len() {
        1 if name.ends_with("weight") => Box::new(|r| 1.0 + 0.1 * r),
        1 => Box::new(|r| 0.02 * r),
        _ if table => return values,
        _ => {
            let sharp = ["to_q.", "to_k.", "q_proj.", "k_proj."].iter().any(|layer| name.contains(layer));
            let fan_in = shape[1..].iter().product::<usize>() as f64;
            let (gain, root) = (if sharp { 2.0 } else { 1.0 }, fan_in.sqrt() as f32);
            Box::new(move |r| r * gain / root)
        }
    };
    values.iter_mut().for_each(|value| *value = map(*value));
    values
}

fn index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]
    })
}

fn scheduler() -> Value {
    json!({
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.7.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
        "clip_sample": false
    })
}

fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": false,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    })
}

fn vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
    })
}

fn text_encoder() -> Value {
    json!({
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unet_has_stable_diffusions_parameters() {
        let config = UnetConfig::from_json(&unet().to_string()).unwrap();
        let shapes = shapes(|store| Unet::new(&config, store).map(drop)).unwrap();
        assert_eq!(shapes.len(), 686);
        assert_eq!(shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), 859_520_964);
        let shapes = super::shapes(|store| Vae::new(&parsed::<VaeConfig>(&vae())?, store).map(drop)).unwrap();
        assert_eq!(shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), 83_653_863);
        let text = parsed::<TextEncoderConfig>(&text_encoder()).unwrap();
        let shapes = super::shapes(|store| TextEncoder::new(&text, store).map(drop)).unwrap();
        assert_eq!(shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), 123_060_480);
    }

    #[test]
    fn weights_follow_the_rule() {
        let r = |name: &str, n: usize| Generator::new(u64::from(crc32fast::hash(name.as_bytes()))).randn(n);
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926, "zlib's polynomial");
        let close = |name: &str, shape: &[usize], map: &dyn Fn(f32) -> f32| {
            let n = shape.iter().product();
            let expected: Vec<f32> = r(name, n).into_iter().map(map).collect();
            let found = made_up(name, shape);
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
        };
        close("norm1.weight", &[20], &|r| 1.0 + 0.1 * r);
        close("conv1.bias", &[20], &|r| 0.02 * r);
        close("token_embedding.weight", &[20, 2], &|r| r);
        close("time_embedding.linear_1.weight", &[20, 4], &|r| r / 2.0);
        close("attn2.to_v.weight", &[20, 4], &|r| r / 2.0);
        close("attn2.to_k.weight", &[20, 4], &|r| r);
        close("conv1.weight", &[2, 4, 2, 2], &|r| r / 4.0);
    }
}
