//! Detectors from a folder in transformers' layout: CLIP over given labels, image classifiers, Stable Diffusion's
//! safety checker.

mod classifier;
mod clip;
mod files;
mod safety_checker;
mod zero_shot;

pub use classifier::ImageClassifier;
pub use clip::ClipModel;
pub use files::DetectorFiles;
pub use safety_checker::{SAFETY_CHECKER_LABEL, SafetyCheckerDetector};
pub use zero_shot::{DEFAULT_TEMPLATE, ZeroShot};

use super::detector::Detector;
use crate::{Error, Result};
use serde_json::Value;

/// Pictures that go through a network together; more only take more memory.
const BATCH: usize = 32;

/// The labels for a CLIP, which knows none by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    /// What may be named: `cat`, or with an axis `color: red`, which competes with its axis' other labels alone.
    pub labels: Vec<String>,
    /// The text that is made of a label (without its axis), with `{}` in the label's place.
    pub template: String,
}

impl Labels {
    /// Labels with the template that OpenAI's CLIP was published with.
    pub fn new(labels: Vec<String>) -> Self {
        Self { labels, template: DEFAULT_TEMPLATE.into() }
    }
}

/// Opens the detector that these files hold; which kind it is, its config says. `labels` are for a CLIP.
///
/// # Errors
/// If the files are of another kind, malformed, or do not belong together, and if labels are missing or not wanted: the
/// message names the file and what to do.
pub fn open_detector(files: &DetectorFiles, labels: Option<&Labels>) -> Result<Box<dyn Detector>> {
    let config = files.config()?;
    let kind = Kind::of(&config);
    let place = || files.describe("config.json");
    if kind != Some(Kind::Clip) && labels.is_some() {
        let what = "is no CLIP: its labels are its own; leave out the labels";
        return Err(Error::file(place(), what));
    }
    match (kind, labels) {
        (Some(Kind::Clip), Some(labels)) => Ok(Box::new(ZeroShot::new(ClipModel::open(files)?, labels)?)),
        (Some(Kind::Clip), None) => {
            let what = "is a CLIP, which tells only the labels apart that it is given; give at least two";
            Err(Error::file(place(), what))
        }
        (Some(Kind::SafetyChecker), _) => Ok(Box::new(SafetyCheckerDetector::open(files)?)),
        (Some(Kind::Vit | Kind::ResNet), _) => Ok(Box::new(ImageClassifier::open(files)?)),
        (None, _) => {
            let named = config.get("architectures").or(config.get("model_type")).unwrap_or(&Value::Null);
            Err(Error::file(
                place(),
                format!(
                    "is of {named}; a detector is a CLIPModel, a ViTForImageClassification, a \
                     ResNetForImageClassification or a StableDiffusionSafetyChecker"
                ),
            ))
        }
    }
}

/// What a config describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Vit,
    ResNet,
    SafetyChecker,
}

impl Kind {
    /// By `architectures`; a CLIP is also told by its `model_type`.
    fn of(config: &Value) -> Option<Self> {
        match config.pointer("/architectures/0").and_then(Value::as_str) {
            Some("CLIPModel") => Some(Self::Clip),
            Some("ViTForImageClassification") => Some(Self::Vit),
            Some("ResNetForImageClassification") => Some(Self::ResNet),
            Some("StableDiffusionSafetyChecker") => Some(Self::SafetyChecker),
            Some(_) => None,
            None => (config.get("model_type").and_then(Value::as_str) == Some("clip")).then_some(Self::Clip),
        }
    }
}
