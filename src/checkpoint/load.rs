//! A whole model: configs and weights to the networks, checked against each other.

use super::files::ModelFiles;
use super::hash::{base_sha256, sha256_hex};
use super::precision::Loading;
use super::read::{Component, load_tensors, load_tensors_as, same_weights};
use super::{UNET_WEIGHTS, save_edited};
use crate::diffusion::SchedulerConfig;
use crate::nn::ParamStore;
use crate::progress::check_interrupted;
use crate::sd::{Classifier, StableDiffusion, TextEncoder, Tokenizer, Unet, UnetConfig, Vae};
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::Dtype;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Pipelines that consist of one text encoder, a UNet and a VAE, as this program has them.
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];

/// What to do about a config that makes no sense.
const REMEDY: &str = "correct it, or download the file again";

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
    load_model_with(files, &Loading::default())
}

/// As [`load_model`], in less memory if `loading` says so.
///
/// # Errors
/// As [`load_model`].
pub fn load_model_with(files: &ModelFiles, loading: &Loading<'_>) -> Result<LoadedModel> {
    check_pipeline(&json(files, "model_index.json")?, &files.describe("model_index.json"))?;
    let in_file = |rel: &'static str| move |e: Error| name_file(files, rel, e);
    let text = |rel: &'static str| -> Result<String> {
        String::from_utf8(files.read(rel)?.into_owned()).map_err(|e| Error::file(files.describe(rel), e))
    };

    let scheduler = "scheduler/scheduler_config.json";
    let scheduler = SchedulerConfig::from_json(&text(scheduler)?).map_err(in_file(scheduler))?;
    let mut tokenizer = Tokenizer::from_files(&|name| {
        let bytes = files.try_read(&format!("tokenizer/{name}"))?;
        Ok(bytes.map(std::borrow::Cow::into_owned))
    })
    .map_err(in_file("tokenizer"))?;
    check_widths(files)?;
    check_interrupted()?;

    let unet_config = UnetConfig::from_json(&text("unet/config.json")?).map_err(in_file("unet/config.json"))?;
    let beside = loading.beside.map(|(files, loaded)| (files, loaded.model.unet_params.tensors()));
    let unet = load_tensors_as(files, UNET_WEIGHTS, loading.precision, loading.exact, beside)?;
    let unet_params = ParamStore::new(unet.tensors);
    Unet::new(&unet_config, &unet_params).map_err(in_file("unet/config.json"))?; // every tensor has its place

    let text_encoder =
        frozen(files, ("text_encoder", "model.safetensors"), loading, |m| &m.text_encoder, TextEncoder::new)?;
    let vae = frozen(files, ("vae", "diffusion_pytorch_model.safetensors"), loading, |m| &m.vae, Vae::new)?;
    tokenizer.limit_to(text_encoder.config().max_position_embeddings);
    check_vocabulary(files, &tokenizer, text_encoder.config().vocab_size)?;
    let model = StableDiffusion { tokenizer, text_encoder, unet_config, unet_params, vae, scheduler };
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

/// A component that is never trained: that of the model beside this one, if its files are the same.
fn frozen<C: DeserializeOwned, N>(
    files: &ModelFiles,
    (folder, weights): (&str, &str),
    loading: &Loading<'_>,
    of: impl Fn(&StableDiffusion) -> &Arc<N>,
    new: impl Fn(&C, &ParamStore) -> Result<N>,
) -> Result<Arc<N>> {
    let (config_file, weights) = (format!("{folder}/config.json"), format!("{folder}/{weights}"));
    if let Some((other, loaded)) = loading.beside
        && files.read(&config_file)? == other.read(&config_file)?
        && same_weights(files, other, &weights)?
    {
        return Ok(of(&loaded.model).clone());
    }
    let config = json(files, &config_file)?;
    let Component { tensors, .. } = load_tensors_as(files, &weights, loading.precision, &|_| false, None)?;
    Ok(Arc::new(new(&config, &ParamStore::new(tensors)).map_err(|e| name_file(files, &config_file, e))?))
}

/// A component's config (`config.json` in `folder`) and its frozen weights (`weights` in the same folder).
pub fn load_component<T: DeserializeOwned>(files: &ModelFiles, folder: &str, weights: &str) -> Result<(T, ParamStore)> {
    let Component { tensors, .. } = load_tensors(files, &format!("{folder}/{weights}"))?;
    Ok((json(files, &format!("{folder}/config.json"))?, ParamStore::new(tensors)))
}

/// The image classifier that lies beside a model, and the SHA-256 of its weights; `None` if there is none.
///
/// # Errors
/// As [`load_model`], for the classifier's files.
pub fn load_classifier(files: &ModelFiles) -> Result<Option<(Classifier, String)>> {
    let weights = "classifier/model.safetensors";
    let Some(bytes) = files.try_read(weights)? else { return Ok(None) };
    let (config, params) = load_component(files, "classifier", "model.safetensors")?;
    let classifier = Classifier::new(&config, &params).map_err(|e| name_file(files, "classifier/config.json", e))?;
    Ok(Some((classifier, sha256_hex(&bytes))))
}

fn json<T: DeserializeOwned>(files: &ModelFiles, rel: &str) -> Result<T> {
    let wrong = |e: serde_json::Error| Error::file(files.describe(rel), format!("{e}; {REMEDY}"));
    serde_json::from_slice(&files.read(rel)?).map_err(wrong)
}

/// Says which file a complaint about settings or weights is about.
fn name_file(files: &ModelFiles, rel: &str, e: Error) -> Error {
    match e {
        Error::Usage(what) => Error::file(files.describe(rel), format!("{what}; {REMEDY}")),
        Error::Weights(what) => Error::file(files.describe(rel), what),
        other => other,
    }
}

/// Whether `model_index.json` names a pipeline that this program knows; `place` is what a message calls the file.
///
/// # Errors
/// If not.
pub(crate) fn check_pipeline(index: &Value, place: &str) -> Result<()> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
    if PIPELINES.contains(&class) {
        return Ok(());
    }
    let what = format!("_class_name is {class}; this program edits {} (SD 1.x and 2.x)", PIPELINES.join(" and "));
    Err(Error::file(place, what))
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
    let channels = |key: &str| unet.get(key).and_then(Value::as_u64);
    if let (Some(a), Some(b)) = (channels("in_channels"), channels("out_channels"))
        && a != b
    {
        let what = format!("in_channels is {a}, but out_channels is {b}; only plain text-to-image models are edited");
        return Err(Error::file(files.describe("unet/config.json"), what));
    }
    Ok(())
}

/// Every token must have a row in the text encoder's table.
fn check_vocabulary(files: &ModelFiles, tokenizer: &Tokenizer, rows: usize) -> Result<()> {
    match tokenizer.largest_id() as usize {
        id if id < rows => Ok(()),
        id => {
            let what = format!(
                "has a token of id {id}, but vocab_size in text_encoder/config.json is {rows}; tokenizer and text encoder do \
                 not belong together, download both again"
            );
            Err(Error::file(files.describe("tokenizer"), what))
        }
    }
}
