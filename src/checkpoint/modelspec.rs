//! What a file of weights says about itself: modelspec 1.0.1 (github.com/Stability-AI/ModelSpec), as other programs show it.

use super::files::ModelFiles;
use super::front_matter::License;
use super::single_file::{Architecture, architecture};
use super::write::HASH_OF_TENSORS;
use crate::diffusion::{PredictionType, SchedulerConfig};
use crate::sd::{UnetConfig, VaeConfig};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The version of the specification.
const VERSION: &str = "1.0.1";
/// The program whose names a single file has, as the specification wants it named.
const ORIGINAL: &str = "https://github.com/Stability-AI/generative-models";

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
        let title = format!("{base} without {}", several.unwrap_or_else(|| vec![concept.into()]).join(" and without "));
        let how = ["method", "preset", "seed", "version"].map(|key| said(key).unwrap_or("unknown"));
        let [method, preset, seed, version] = how;
        let description = format!(
            "{title}: erased from the weights by erase-concept {version} ({method}, preset {preset}, seed {seed})"
        );
        Self { title, description, license }
    }
}

/// The metadata of a single file made of `files`. Their hash is put in when the file is written.
///
/// # Errors
/// If the configs cannot be read, or `SOURCE_DATE_EPOCH` is set to what is no time.
pub fn modelspec(files: &ModelFiles, about: &About) -> Result<BTreeMap<String, String>> {
    let text = |rel: &str| Ok::<_, Error>(String::from_utf8_lossy(&files.read(rel)?).into_owned());
    let unet = UnetConfig::from_json(&text("unet/config.json")?)?;
    let scheduler = SchedulerConfig::from_json(&text("scheduler/scheduler_config.json")?)?;
    let v = scheduler.prediction_type == PredictionType::VPrediction;
    let vae: VaeConfig = serde_json::from_str(&text("vae/config.json")?)
        .map_err(|e| Error::file(files.describe("vae/config.json"), e))?;
    // a level of the VAE halves the picture, but the last
    let side = unet.sample_size.unwrap_or(64) << vae.block_out_channels.len().saturating_sub(1);
    let entries = [
        ("sai_model_spec", Some(VERSION.to_string())),
        ("architecture", Some(name_of(architecture(files)?, v).to_string())),
        ("implementation", Some(ORIGINAL.to_string())),
        ("title", Some(about.title.clone())),
        ("description", Some(about.description.clone())),
        ("resolution", Some(format!("{side}x{side}"))),
        ("prediction_type", Some(if v { "v" } else { "epsilon" }.to_string())),
        ("license", about.license.clone()),
        ("date", date()?),
        ("hash_sha256", Some(HASH_OF_TENSORS.to_string())),
    ];
    let entries = entries.into_iter().filter_map(|(key, value)| Some((format!("modelspec.{key}"), value?)));
    Ok(entries.collect())
}

/// The specification's name of an architecture; `v` says whether it predicts velocities.
pub fn name_of(architecture: Architecture, v: bool) -> &'static str {
    match (architecture, v) {
        (Architecture::Sd1, _) => "stable-diffusion-v1",
        (Architecture::Sd2, false) => "stable-diffusion-v2-512",
        (Architecture::Sd2, true) => "stable-diffusion-v2-768-v",
        (Architecture::Sdxl, _) => "stable-diffusion-xl-v1-base",
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
