//! A whole model: configs and weights to the networks, checked against each other.

use super::files::ModelFiles;
use super::hash::{base_sha256, sha256_hex};
use super::precision::{Loading, Precision};
use super::read::{Component, load_tensors_as, load_tensors_on, same_weights};
use super::{UNET_WEIGHTS, save_edited};
use crate::diffusion::SchedulerConfig;
use crate::nn::{ParamStore, attention_in_bf16};
use crate::progress::check_interrupted;
use crate::sd::{Classifier, SecondEncoder, StableDiffusion, TextEncoder, Tokenizer, Unet, UnetConfig, Vae};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Pipelines that consist of one text encoder, a UNet and a VAE, as this program has them.
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];
/// The pipeline with two text encoders.
const XL: &str = "StableDiffusionXLPipeline";

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
    load_model_on(files, loading, &[])
}

/// As [`load_model_with`], with a copy of the networks on each of the `further` devices.
///
/// # Errors
/// As [`load_model`].
pub fn load_model_on(files: &ModelFiles, loading: &Loading<'_>, further: &[Device]) -> Result<LoadedModel> {
    attention_in_bf16(loading.precision == Precision::Bf16);
    let beside = loading.beside.map(|(files, loaded)| (files, &loaded.model));
    let (mut model, unet) = networks(files, loading, beside)?;
    for (i, device) in further.iter().enumerate() {
        let there = beside.and_then(|(files, model)| Some((files, model.copies.get(i)?)));
        model.copies.push(networks(files, &Loading { device, ..*loading }, there)?.0);
    }
    Ok(LoadedModel {
        model,
        unet_file: unet.files.name().to_string(),
        unet_dtypes: unet.dtypes,
        base_sha256: base_sha256(files)?,
    })
}

/// A model that was loaded onto the same device, and its files.
type Beside<'a> = Option<(&'a ModelFiles, &'a StableDiffusion)>;

/// The networks on one device, and what the UNet's files hold besides its tensors.
fn networks(files: &ModelFiles, loading: &Loading<'_>, beside: Beside<'_>) -> Result<(StableDiffusion, Component)> {
    let index = check_pipeline(&json(files, "model_index.json")?, &files.describe("model_index.json"))?;
    let in_file = |rel: &'static str| move |e: Error| name_file(files, rel, e);
    let content = |rel: &'static str| -> Result<String> {
        String::from_utf8(files.read(rel)?.into_owned()).map_err(|e| Error::file(files.describe(rel), e))
    };

    let scheduler = "scheduler/scheduler_config.json";
    let scheduler = SchedulerConfig::from_json(&content(scheduler)?).map_err(in_file(scheduler))?;
    check_widths(files, index.two_encoders)?;
    check_interrupted()?;

    let unet_config = UnetConfig::from_json(&content("unet/config.json")?).map_err(in_file("unet/config.json"))?;
    let tensors = beside.map(|(files, model)| (files, model.unet_params.tensors()));
    let mut unet = load_tensors_as(files, UNET_WEIGHTS, loading, loading.exact, tensors)?;
    let unet_params = ParamStore::new(std::mem::take(&mut unet.tensors));
    Unet::new(&unet_config, &unet_params).map_err(in_file("unet/config.json"))?; // every tensor has its place

    let (tokenizer, text_encoder) = text(files, loading, beside, false)?;
    let second = index.two_encoders.then(|| -> Result<_> {
        let (tokenizer, text_encoder) = text(files, loading, beside, true)?;
        Ok(SecondEncoder { tokenizer, text_encoder })
    });
    let weights = ("vae", "diffusion_pytorch_model.safetensors");
    let vae = frozen(files, weights, loading, beside, |m| Some(&m.vae), Vae::new)?;
    let model = StableDiffusion {
        tokenizer,
        text_encoder,
        second: second.transpose()?,
        zeros_for_empty: index.zeros_for_empty,
        unet_config,
        unet_params,
        vae,
        scheduler,
        copies: Vec::new(),
    };
    Ok((model, unet))
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
    loaded.check_unchanged(files)?;
    save_edited(files, changed, into, metadata)
}

impl LoadedModel {
    /// Refuses to go on if the files are no longer what was loaded from them.
    ///
    /// # Errors
    /// If they are not.
    pub fn check_unchanged(&self, files: &ModelFiles) -> Result<()> {
        if base_sha256(files)? == self.base_sha256 {
            return Ok(());
        }
        let what = "the model's files changed since they were loaded; nothing was saved, run again";
        Err(Error::file(files.describe(""), what))
    }
}

/// The first (or the second) tokenizer, and the text encoder that goes with it.
fn text(
    files: &ModelFiles,
    loading: &Loading<'_>,
    beside: Beside<'_>,
    second: bool,
) -> Result<(Tokenizer, Arc<TextEncoder>)> {
    let (tokenizer, encoder) = if second { ("tokenizer_2", "text_encoder_2") } else { ("tokenizer", "text_encoder") };
    let read = |name: &str| {
        let bytes = files.try_read(&format!("{tokenizer}/{name}"))?;
        Ok(bytes.map(std::borrow::Cow::into_owned))
    };
    let mut bpe = Tokenizer::from_files(&read).map_err(|e| name_file(files, tokenizer, e))?;
    let weights = (encoder, "model.safetensors");
    let text_encoder = match second {
        false => frozen(files, weights, loading, beside, |m| Some(&m.text_encoder), TextEncoder::new)?,
        true => frozen(files, weights, loading, beside, |m| Some(&m.second.as_ref()?.text_encoder), TextEncoder::new)?,
    };
    bpe.limit_to(text_encoder.config().max_position_embeddings);
    check_vocabulary(files, &bpe, (tokenizer, encoder), text_encoder.config().vocab_size)?;
    Ok((bpe, text_encoder))
}

/// A component that is never trained: that of the model beside this one, if its files are the same.
fn frozen<C: DeserializeOwned, N>(
    files: &ModelFiles,
    (folder, weights): (&str, &str),
    loading: &Loading<'_>,
    beside: Beside<'_>,
    of: impl Fn(&StableDiffusion) -> Option<&Arc<N>>,
    new: impl Fn(&C, &ParamStore) -> Result<N>,
) -> Result<Arc<N>> {
    let (config_file, weights) = (format!("{folder}/config.json"), format!("{folder}/{weights}"));
    if let Some((other, model)) = beside
        && files.read(&config_file)? == other.read(&config_file)?
        && let Some(loaded) = of(model)
        && same_weights(files, other, &weights)?
    {
        return Ok(loaded.clone());
    }
    let config = json(files, &config_file)?;
    let Component { tensors, .. } = load_tensors_as(files, &weights, loading, &|_| false, None)?;
    Ok(Arc::new(new(&config, &ParamStore::new(tensors)).map_err(|e| name_file(files, &config_file, e))?))
}

/// A component's config (`config.json` in `folder`) and its frozen weights (`weights` in the same folder).
pub fn load_component<T: DeserializeOwned>(files: &ModelFiles, folder: &str, weights: &str) -> Result<(T, ParamStore)> {
    load_component_on(files, folder, weights, &Device::Cpu)
}

fn load_component_on<T: DeserializeOwned>(
    files: &ModelFiles,
    folder: &str,
    weights: &str,
    device: &Device,
) -> Result<(T, ParamStore)> {
    let Component { tensors, .. } = load_tensors_on(files, &format!("{folder}/{weights}"), device)?;
    Ok((json(files, &format!("{folder}/config.json"))?, ParamStore::new(tensors)))
}

/// The image classifier that lies beside a model, and the SHA-256 of its weights; `None` if there is none.
///
/// # Errors
/// As [`load_model`], for the classifier's files.
pub fn load_classifier(files: &ModelFiles) -> Result<Option<(Classifier, String)>> {
    load_classifier_on(files, &Device::Cpu)
}

/// As [`load_classifier`], with its weights on this device.
///
/// # Errors
/// As [`load_classifier`].
pub fn load_classifier_on(files: &ModelFiles, device: &Device) -> Result<Option<(Classifier, String)>> {
    let weights = "classifier/model.safetensors";
    let Some(bytes) = files.try_read(weights)? else { return Ok(None) };
    let (config, params) = load_component_on(files, "classifier", "model.safetensors", device)?;
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

/// What `model_index.json` says.
pub(crate) struct Index {
    two_encoders: bool,
    zeros_for_empty: bool,
}

/// Whether `model_index.json` names a pipeline that this program knows; `place` is what a message calls the file.
///
/// # Errors
/// If not.
pub(crate) fn check_pipeline(index: &Value, place: &str) -> Result<Index> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
    let two_encoders = class == XL;
    if !two_encoders && !PIPELINES.contains(&class) {
        let known = PIPELINES.join(", ");
        let what = format!("_class_name is {class}; this program edits {known} (SD 1.x and 2.x) and {XL} (SDXL)");
        return Err(Error::file(place, what));
    }
    // diffusers' own default
    let zeros = index.get("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(true);
    Ok(Index { two_encoders, zeros_for_empty: two_encoders && zeros })
}

/// What the configs say about each other's tensors.
fn check_widths(files: &ModelFiles, two_encoders: bool) -> Result<()> {
    let unet_file = "unet/config.json";
    let unet: Value = json(files, unet_file)?;
    let number = |config: &Value, key: &str| config.get(key).and_then(Value::as_u64);
    let config = |folder: &str| json::<Value>(files, &format!("{folder}/config.json"));
    let wrong = |what: String| Err(Error::file(files.describe(unet_file), what));
    let one_model = "are they from one text-to-image model?";

    let encoders: &[&str] = if two_encoders { &["text_encoder", "text_encoder_2"] } else { &["text_encoder"] };
    let configs = encoders.iter().map(|encoder| config(encoder)).collect::<Result<Vec<_>>>()?;
    let widths: Option<Vec<u64>> = configs.iter().map(|config| number(config, "hidden_size")).collect();
    let width = widths.map(|widths| widths.into_iter().fold(0, u64::saturating_add));
    if let (Some(a), Some(b)) = (number(&unet, "cross_attention_dim"), width)
        && a != b
    {
        let where_ = encoders.iter().map(|encoder| format!("{encoder}/config.json")).collect::<Vec<_>>().join(" and ");
        return wrong(format!("cross_attention_dim is {a}, but hidden_size in {where_} is {b}; {one_model}"));
    }
    let pooled = number(&unet, "projection_class_embeddings_input_dim").zip(number(&unet, "addition_time_embed_dim"));
    if let (Some((all, each)), Some(b)) = (pooled, configs.get(1).and_then(|config| number(config, "projection_dim")))
        && let a = all.saturating_sub(each.saturating_mul(6))
        && a != b
    {
        let what = "projection_class_embeddings_input_dim and addition_time_embed_dim leave";
        let theirs = "projection_dim in text_encoder_2/config.json";
        return wrong(format!("{what} {a} for the pooled text, but {theirs} is {b}; {one_model}"));
    }
    if let (Some(a), Some(b)) = (number(&unet, "in_channels"), number(&config("vae")?, "latent_channels"))
        && a != b
    {
        return wrong(format!("in_channels is {a}, but latent_channels in vae/config.json is {b}; {one_model}"));
    }
    if let (Some(a), Some(b)) = (number(&unet, "in_channels"), number(&unet, "out_channels"))
        && a != b
    {
        let what = format!("in_channels is {a}, but out_channels is {b}; only plain text-to-image models are edited");
        return wrong(what);
    }
    Ok(())
}

/// Every token must have a row in the text encoder's table.
fn check_vocabulary(
    files: &ModelFiles,
    bpe: &Tokenizer,
    (tokenizer, encoder): (&str, &str),
    rows: usize,
) -> Result<()> {
    match bpe.largest_id() as usize {
        id if id < rows => Ok(()),
        id => {
            let what = format!(
                "has a token of id {id}, but vocab_size in {encoder}/config.json is {rows}; tokenizer and text encoder do \
                 not belong together, download both again"
            );
            Err(Error::file(files.describe(tokenizer), what))
        }
    }
}
