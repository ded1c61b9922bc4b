//! A model's name to its files.

mod demo;
mod fake;

use crate::checkpoint::{ModelFiles, SingleFile, load_component};
use crate::nn::ParamStore;
use crate::sd::{Classifier, TextEncoder, UnetConfig, Vae};
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// What [`resolve`] accepts, for the end of a message.
const ACCEPTED: &str = "a model is either \"demo\" (the small model in this program), a folder in diffusers' layout (with a \
                        model_index.json), or a single file (.safetensors)";

/// The small model that is part of the program.
pub fn demo() -> ModelFiles {
    ModelFiles::Embedded { name: "demo", files: demo::FILES }
}

/// The classifier that was trained with the demo model: it tells shapes, colours and the rest of a picture.
pub fn demo_classifier() -> Result<Classifier> {
    let (config, params) = load_component(&demo(), "classifier", "model.safetensors")?;
    Classifier::new(&config, &params)
}

/// The config and made-up weights of a UNet of Stable Diffusion 1.x's size (that of `fake:sd14`), 3.4 GB.
pub fn made_up_unet() -> Result<(UnetConfig, ParamStore)> {
    fake::unet_parameters(&|_| true)
}

/// The same, with matrices and convolutions that are not `exact` in `bf16`, as [`crate::checkpoint::Precision::Bf16`] keeps them.
pub fn made_up_unet_halved(exact: &(dyn Fn(&str) -> bool + Sync)) -> Result<(UnetConfig, ParamStore)> {
    fake::unet_parameters(exact)
}

/// A VAE of Stable Diffusion 1.x's size with made-up weights.
pub fn made_up_vae() -> Result<Vae> {
    fake::made_up_vae()
}

/// A text encoder of Stable Diffusion 1.x's size (CLIP ViT-L/14) with made-up weights.
pub fn made_up_text_encoder() -> Result<TextEncoder> {
    fake::made_up_text_encoder()
}

/// The files of a model: `demo`, a folder in diffusers' layout, or a single file. (A folder that is itself called `demo` is
/// `./demo`.)
///
/// # Errors
/// For anything else, [`Error::Usage`] says what is accepted; for a file that is no model, [`Error::File`] what it is.
pub fn resolve(name: &str) -> Result<ModelFiles> {
    resolve_with(name, false)
}

/// As [`resolve`]; a single file may be a PyTorch checkpoint if `allow_pickle` (see [`SingleFile::open_with`]).
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(name: &str, allow_pickle: bool) -> Result<ModelFiles> {
    if name == "demo" {
        return Ok(demo());
    }
    if let Some(name) = name.strip_prefix(fake::PREFIX) {
        return Ok(ModelFiles::Folder(fake::folder(name)?));
    }
    let path = Path::new(name);
    let problem = if !name.is_empty() && path.join("model_index.json").is_file() {
        return Ok(ModelFiles::Folder(path.to_path_buf()));
    } else if path.is_dir() {
        "is a folder without a model_index.json".to_string()
    } else if path.file_name().is_some_and(|name| name == "model_index.json") && path.is_file() {
        "is one file of a model's folder; name the folder".to_string()
    } else if path.is_file() {
        return Ok(ModelFiles::Single(Arc::new(SingleFile::open_with(path, allow_pickle)?)));
    } else if is_like_demo(name) {
        "is not there; did you mean \"demo\"?".to_string()
    } else if is_hub_id(name) {
        let folder = name.rsplit('/').next().unwrap_or(name);
        format!(
            "is not there. If it is a model on the Hugging Face Hub: nothing is downloaded for now, so run \
             `hf download {name} --local-dir {folder}` and pass {folder}"
        )
    } else {
        "is not there".to_string()
    };
    Err(Error::usage(format!("--model {name:?} {problem}; {ACCEPTED}")))
}

/// `owner/name`, as the Hub spells it.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(allowed)
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Whether someone may have meant `demo`: other case, one letter too many, too few or wrong, or two swapped.
fn is_like_demo(name: &str) -> bool {
    let name = name.trim().trim_end_matches('/').to_lowercase();
    let (name, demo): (Vec<char>, Vec<char>) = (name.chars().collect(), "demo".chars().collect());
    let prefix = name.iter().zip(&demo).take_while(|(a, b)| a == b).count();
    let suffix = name.iter().rev().zip(demo.iter().rev()).take_while(|(a, b)| a == b).count();
    let length = name.len().max(demo.len());
    let mut sorted = (name.clone(), demo.clone());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    let swapped = sorted.0 == sorted.1 && prefix + suffix + 2 >= length;
    (name.len().abs_diff(demo.len()) <= 1 && prefix + suffix + 1 >= length) || swapped
}
