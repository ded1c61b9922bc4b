//! What a file of weights says about itself: modelspec 1.0.1 (github.com/Stability-AI/ModelSpec), as other programs show it.

use super::files::ModelFiles;
use super::front_matter::License;
use super::single_file::{Architecture, Networks, networks};
use super::write::HASH_OF_TENSORS;
use crate::diffusion::{PredictionType, SchedulerConfig};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The version of the specification.
pub(super) const VERSION: &str = "1.0.1";
/// The program whose names a single file has, as the specification wants it named.
pub(super) const ORIGINAL: &str = "https://github.com/Stability-AI/generative-models";

/// What the caller knows about a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// A title for lists.
    pub title: String,
    /// In a sentence or two.
    pub description: String,
    /// Its licence, by the name that the Hub gives it.
    pub license: Option<String>,
}

impl About {
    /// A model with the metadata `erase.*` that its weights have; `name` is what it is called without them.
    pub fn new(name: &str, metadata: &BTreeMap<String, String>, license: Option<&License>) -> Self {
        let license = license.map(|license| license.id.clone());
        let said = |key: &str| metadata.get(&format!("erase.{key}")).map(String::as_str);
        let (Some(base), Some(concept)) = (said("base"), said("concept")) else {
            return Self { title: name.into(), description: name.into(), license };
        };
        let several = said("concepts").and_then(|list| serde_json::from_str::<Vec<String>>(list).ok());
        let title = title(base, &several.unwrap_or_else(|| vec![concept.into()]));
        let how = ["method", "preset", "seed", "version"].map(|key| said(key).unwrap_or("unknown"));
        let [method, preset, seed, version] = how;
        let description = format!(
            "{title}: erased from the weights by erase-concept {version} ({method}, preset {preset}, seed {seed})"
        );
        Self { title, description, license }
    }
}

/// What a model is called from which concepts were erased.
pub fn title(base: &str, concepts: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = concepts.iter().map(AsRef::as_ref).collect();
    format!("{base} without {}", names.join(" and without "))
}

/// The metadata of a single file made of `files`. Their hash is put in when the file is written.
///
/// # Errors
/// If the configs cannot be read, or `SOURCE_DATE_EPOCH` is set to what is no time.
pub fn modelspec(files: &ModelFiles, about: &About) -> Result<BTreeMap<String, String>> {
    let kind = Kind::of(files)?;
    let entries = [
        ("sai_model_spec", Some(VERSION.to_string())),
        ("architecture", Some(kind.architecture().to_string())),
        ("implementation", Some(ORIGINAL.to_string())),
        ("title", Some(about.title.clone())),
        ("description", Some(about.description.clone())),
        ("resolution", Some(kind.resolution())),
        ("prediction_type", Some(kind.prediction().to_string())),
        ("license", about.license.clone()),
        ("date", date()?),
        ("hash_sha256", Some(HASH_OF_TENSORS.to_string())),
    ];
    let entries = entries.into_iter().filter_map(|(key, value)| Some((format!("modelspec.{key}"), value?)));
    Ok(entries.collect())
}

/// What of a model the specification asks for.
pub(super) struct Kind {
    /// Its networks.
    pub networks: Networks,
    /// Whether it predicts velocities.
    pub v: bool,
}

impl Kind {
    /// Reads it from the model's configs.
    ///
    /// # Errors
    /// If one is missing or makes no sense.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let rel = "scheduler/scheduler_config.json";
        let scheduler = SchedulerConfig::from_json(&String::from_utf8_lossy(&files.read(rel)?));
        let scheduler = scheduler.map_err(|e| Error::file(files.describe(rel), e))?;
        Ok(Self { networks: networks(files)?, v: scheduler.prediction_type == PredictionType::VPrediction })
    }

    /// The specification's name of the architecture.
    pub fn architecture(&self) -> &'static str {
        match (self.networks.architecture, self.v) {
            (Architecture::Sd1, _) => "stable-diffusion-v1",
            (Architecture::Sd2, false) => "stable-diffusion-v2-512",
            (Architecture::Sd2, true) => "stable-diffusion-v2-768-v",
            (Architecture::Sdxl, _) => "stable-diffusion-xl-v1-base",
        }
    }

    /// Width and height of the pictures that the model was made for, in pixels.
    pub fn resolution(&self) -> String {
        // a level of the VAE halves the picture, but the last
        let latents = self.networks.unet.sample_size.unwrap_or(64);
        let side = latents << self.networks.vae.block_out_channels.len().saturating_sub(1);
        format!("{side}x{side}")
    }

    /// What the model predicts.
    pub fn prediction(&self) -> &'static str {
        if self.v { "v" } else { "epsilon" }
    }
}

/// The time that `SOURCE_DATE_EPOCH` names, if it is set: without it no date is written, so that equal runs give equal bytes.
///
/// # Errors
/// If it is no number of seconds.
pub fn date() -> Result<Option<String>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => date_of(&text).map(Some),
        Err(_) => Ok(None),
    }
}

fn date_of(epoch: &str) -> Result<String> {
    let seconds = epoch.trim().parse::<i64>().ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let wrong =
        || Error::usage(format!("SOURCE_DATE_EPOCH={epoch:?} is no number of seconds since 1970; unset or correct it"));
    Ok(time.ok_or_else(wrong)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub;

    #[test]
    fn the_demo_is_described() {
        let about = About { title: "demo without star".into(), license: Some("mit".into()), ..About::default() };
        let found = modelspec(&hub::demo(), &about).unwrap();
        let expected = [
            ("architecture", "stable-diffusion-v1"),
            ("resolution", "64x64"),
            ("prediction_type", "epsilon"),
            ("title", "demo without star"),
            ("license", "mit"),
            ("sai_model_spec", "1.0.1"),
        ];
        for (key, value) in expected {
            assert_eq!(found[&format!("modelspec.{key}")], value, "{key}");
        }
        assert!(!found.contains_key("modelspec.date"));
    }

    #[test]
    fn a_date_is_written_only_as_it_is_asked_for() {
        assert_eq!(date_of("1700000000").unwrap(), "2023-11-14T22:13:20Z");
        for wrong in ["", "yesterday", "99999999999999999"] {
            assert!(date_of(wrong).unwrap_err().to_string().contains("SOURCE_DATE_EPOCH"), "{wrong}");
        }
    }
}
