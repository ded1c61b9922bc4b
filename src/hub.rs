//! A model's name to its files: the demo's, a folder's, or those of a model on the Hugging Face Hub.

mod cache;
#[cfg(feature = "hub")]
mod client;
mod demo;
mod environment;
mod fake;
mod fetch;
mod listing;
mod snapshot;
#[cfg(feature = "hub")]
mod transfer;
mod verify;

pub(crate) use cache::free_space;
pub use environment::{Hub, progress_bars_are_disabled};
pub use fetch::Origin;

use crate::checkpoint::{ERASED, ModelFiles, Precision, SingleFile, load_component};
use crate::nn::ParamStore;
use crate::progress::{Progress, Silent};
use crate::sd::{Classifier, TextEncoder, TextEncoderConfig, UnetConfig, Vae, VaeConfig};
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// What [`resolve`] accepts, for the end of a message.
const ACCEPTED: &str = "a model is either \"demo\" (the small model in this program), OWNER/NAME on the Hugging Face Hub, \
                        a folder in diffusers' layout (with a model_index.json), or a single file (.safetensors)";

/// The model that is taken where none is named: Stable Diffusion 1.4.
pub const DEFAULT_MODEL: &str = "CompVis/stable-diffusion-v1-4";

/// How a model is looked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lookup {
    /// A branch, a tag or a commit; `main` if `None`.
    pub revision: Option<String>,
    /// Whether the cache is all there is: no socket is opened.
    pub offline: bool,
    /// Whether a single file may be a PyTorch checkpoint (see [`SingleFile::open_with`]).
    pub allow_pickle: bool,
}

/// A model that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its files.
    pub files: ModelFiles,
    /// Where it came from, if that is the Hub.
    pub origin: Option<Origin>,
}

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
    fake::unet_parameters(Precision::F32, &|_| true)
}

/// The same, with matrices and convolutions that are not `exact` kept as `precision` says.
pub fn made_up_unet_as(
    precision: Precision,
    exact: &(dyn Fn(&str) -> bool + Sync),
) -> Result<(UnetConfig, ParamStore)> {
    fake::unet_parameters(precision, exact)
}

/// A VAE of Stable Diffusion 1.x's size with made-up weights.
pub fn made_up_vae() -> Result<Vae> {
    let (config, params) = made_up_vae_parameters()?;
    Vae::new(&config, &params)
}

/// Its config and weights.
pub(crate) fn made_up_vae_parameters() -> Result<(VaeConfig, ParamStore)> {
    fake::vae_parameters()
}

/// A text encoder of Stable Diffusion 1.x's size (CLIP ViT-L/14) with made-up weights.
pub fn made_up_text_encoder() -> Result<TextEncoder> {
    let (config, params) = made_up_text_encoder_parameters()?;
    TextEncoder::new(&config, &params)
}

/// Its config and weights.
pub(crate) fn made_up_text_encoder_parameters() -> Result<(TextEncoderConfig, ParamStore)> {
    fake::text_encoder_parameters()
}

/// The files of a model by its name; see [`find`].
///
/// # Errors
/// As [`find`].
pub fn resolve(name: &str) -> Result<ModelFiles> {
    Ok(find(name, &Lookup::default(), &mut Silent)?.files)
}

/// The files of a model: `demo`, a folder in diffusers' layout, a single file, or `OWNER/NAME` on the Hub, which is taken from
/// the cache or fetched. (A folder that is itself called `demo` is `./demo`; a folder `OWNER/NAME` comes before the Hub.)
///
/// # Errors
/// For anything else, [`Error::Usage`] says what is accepted; for a file that is no model, [`Error::File`] what it is; [`Error::Hub`] says why a model of the Hub is not to be had.
pub fn find(name: &str, lookup: &Lookup, progress: &mut dyn Progress) -> Result<Found> {
    let local = |files| {
        if let Some(revision) = &lookup.revision {
            let what =
                format!("--revision {revision} is for models on the Hub, but --model {name:?} is here; leave it out");
            return Err(Error::usage(what));
        }
        Ok(Found { files, origin: None })
    };
    if name == "demo" {
        return local(demo());
    }
    if let Some(name) = name.strip_prefix(fake::PREFIX) {
        return local(fake::files(name)?);
    }
    let path = Path::new(name);
    let problem = if !name.is_empty() && path.join("model_index.json").is_file() {
        return local(ModelFiles::Folder(path.to_path_buf()));
    } else if !name.is_empty() && path.join(ERASED).is_file() {
        // a result that was written as a single file
        return local(ModelFiles::Single(Arc::new(SingleFile::open(&path.join(ERASED))?)));
    } else if path.is_dir() {
        "is a folder without a model_index.json"
    } else if path.file_name().is_some_and(|name| name == "model_index.json") && path.is_file() {
        "is one file of a model's folder; name the folder"
    } else if path.is_file() {
        return local(ModelFiles::Single(Arc::new(SingleFile::open_with(path, lookup.allow_pickle)?)));
    } else if is_like_demo(name) {
        "is not there; did you mean \"demo\"?"
    } else if is_hub_id(name) {
        let mut hub = Hub::from_environment()?;
        hub.offline |= lookup.offline;
        return find_on(&hub, name, lookup.revision.as_deref(), progress);
    } else {
        "is not there"
    };
    Err(Error::usage(format!("--model {name:?} {problem}; {ACCEPTED}")))
}

/// A model of this Hub, or of its cache; `revision` is a branch, a tag or a commit.
///
/// # Errors
/// As [`find`].
pub fn find_on(hub: &Hub, name: &str, revision: Option<&str>, progress: &mut dyn Progress) -> Result<Found> {
    fetch_as(fetch::What::Pipeline, hub, name, revision, progress)
}

/// A network in transformers' layout on this Hub, or in its cache, such as a CLIP or an image classifier: `OWNER/NAME`, at the branch, tag
/// or commit `revision`.
///
/// # Errors
/// If it is no such name, or is not to be had: [`Error::Hub`] says why.
pub fn find_single_on(hub: &Hub, name: &str, revision: Option<&str>, progress: &mut dyn Progress) -> Result<Found> {
    if !is_hub_id(name) {
        return Err(Error::usage(format!("{name:?} is neither a folder nor OWNER/NAME on the Hugging Face Hub")));
    }
    fetch_as(fetch::What::Single, hub, name, revision, progress)
}

fn fetch_as(
    what: fetch::What,
    hub: &Hub,
    name: &str,
    revision: Option<&str>,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let revision = revision.unwrap_or(fetch::DEFAULT_REVISION);
    if !is_revision(revision) {
        return Err(Error::usage(format!("--revision {revision:?} is no branch, tag or commit")));
    }
    let (folder, origin) = fetch::fetch(hub, name, what, revision, progress)?;
    Ok(Found { files: ModelFiles::Folder(folder), origin: Some(origin) })
}

/// `owner/name`, as the Hub spells it.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(allowed)
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
        && !name.contains("--")
        && !name.contains("..")
}

/// Whether git may call something so; it becomes a path in the cache.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    text.split('/').all(part) && text.chars().all(|c| c.is_ascii_graphic() && !"\\:?*[~^\"<>|".contains(c))
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
