//! A whole model: configs and weights to the networks, checked against each other.

use super::files::ModelFiles;
use super::hash::base_sha256;
use super::read::{Component, load_tensors};
use super::{UNET_WEIGHTS, save_edited};
use crate::diffusion::SchedulerConfig;
use crate::nn::ParamStore;
use crate::sd::{StableDiffusion, TextEncoder, Tokenizer, Unet, UnetConfig, Vae};
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::Dtype;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Pipelines that consist of one text encoder, a UNet and a VAE, as this program has them.
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];

/// A model ready for use, and what saving it needs.
pub struct LoadedModel {
    /// The networks.
    pub model: StableDiffusion,
    /// The UNet's file (or the index of its shards), relative to the model.
    pub unet_file: String,
    /// The type of each of the UNet's tensors in the file.
    pub unet_dtypes: BTreeMap<String, Dtype>,
    /// The hash of all files; see [`base_sha256`].
    pub base_sha256: String,
}

/// Loads a model in diffusers' layout.
///
/// # Errors
/// If a file is missing or malformed, weights do not fit their config or each other, or the pipeline is of a kind that this
/// program does not know: the message names the file.
pub fn load_model(files: &ModelFiles) -> Result<LoadedModel> {
    check_pipeline(files)?;
    let in_file = |rel: &'static str| move |e: Error| name_file(files, rel, e);
    let text = |rel: &'static str| -> Result<String> {
        String::from_utf8(files.read(rel)?.into_owned()).map_err(|e| Error::file(files.describe(rel), e))
    };

    let scheduler = "scheduler/scheduler_config.json";
    let scheduler = SchedulerConfig::from_json(&text(scheduler)?).map_err(in_file(scheduler))?;
    let tokenizer = Tokenizer::from_files(&|name| {
        let bytes = files.try_read(&format!("tokenizer/{name}"))?;
        Ok(bytes.map(std::borrow::Cow::into_owned))
    })
    .map_err(in_file("tokenizer"))?;
    check_widths(files)?;

    let unet_config = UnetConfig::from_json(&text("unet/config.json")?).map_err(in_file("unet/config.json"))?;
    let unet = load_tensors(files, UNET_WEIGHTS)?;
    let unet_params = ParamStore::new(unet.tensors);
    Unet::new(&unet_config, &unet_params).map_err(in_file("unet"))?; // every tensor has its place

    let (config, params) = load_component(files, "text_encoder", "model.safetensors")?;
    let text_encoder = TextEncoder::new(&config, &params);
    let (config, params) = load_component(files, "vae", "diffusion_pytorch_model.safetensors")?;
    let vae = Vae::new(&config, &params);
    let model = StableDiffusion {
        tokenizer,
        text_encoder: text_encoder.map_err(in_file("text_encoder"))?,
        unet_config,
        unet_params,
        vae: vae.map_err(in_file("vae"))?,
        scheduler,
    };
    Ok(LoadedModel {
        model,
        unet_file: unet.files.name().to_string(),
        unet_dtypes: unet.dtypes,
        base_sha256: base_sha256(files)?,
    })
}

/// Writes the model with the `changed` UNet tensors into the existing folder `into`; returns what of the source folder was
/// left out. See [`save_edited`].
///
/// # Errors
/// As [`save_edited`], and if the source is no longer what was loaded.
pub fn save_model(
    files: &ModelFiles,
    loaded: &LoadedModel,
    changed: &BTreeMap<String, Tensor>,
    into: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    if base_sha256(files)? != loaded.base_sha256 {
        let what = "the model's files changed since they were loaded; nothing was saved, run again";
        return Err(Error::file(files.describe(""), what));
    }
    save_edited(files, changed, into, metadata)
}

/// A component's config (`config.json` in `folder`) and its frozen weights (`weights` in the same folder).
pub fn load_component<T: DeserializeOwned>(files: &ModelFiles, folder: &str, weights: &str) -> Result<(T, ParamStore)> {
    let Component { tensors, .. } = load_tensors(files, &format!("{folder}/{weights}"))?;
    Ok((json(files, &format!("{folder}/config.json"))?, ParamStore::new(tensors)))
}

fn json<T: DeserializeOwned>(files: &ModelFiles, rel: &str) -> Result<T> {
    serde_json::from_slice(&files.read(rel)?).map_err(|e| Error::file(files.describe(rel), e))
}

/// Says which file a complaint about settings or weights is about.
fn name_file(files: &ModelFiles, rel: &str, e: Error) -> Error {
    match e {
        Error::Usage(what) | Error::Weights(what) => Error::file(files.describe(rel), what),
        other => other,
    }
}

fn check_pipeline(files: &ModelFiles) -> Result<()> {
    let rel = "model_index.json";
    let index: Value = json(files, rel)?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
    if PIPELINES.contains(&class) {
        return Ok(());
    }
    let what = format!("_class_name is {class}; this program edits {} (SD 1.x and 2.x)", PIPELINES.join(" and "));
    Err(Error::file(files.describe(rel), what))
}

/// What the configs say about each other's tensors.
fn check_widths(files: &ModelFiles) -> Result<()> {
    let unet: Value = json(files, "unet/config.json")?;
    for (ours, other, theirs) in [
        ("cross_attention_dim", "text_encoder/config.json", "hidden_size"),
        ("in_channels", "vae/config.json", "latent_channels"),
    ] {
        let config: Value = json(files, other)?;
        if let (Some(a), Some(b)) = (unet.get(ours).and_then(Value::as_u64), config.get(theirs).and_then(Value::as_u64))
            && a != b
        {
            let what = format!("{ours} is {a}, but {theirs} in {other} is {b}; are they from one text-to-image model?");
            return Err(Error::file(files.describe("unet/config.json"), what));
        }
    }
    Ok(())
}
