//! Detectors from a folder in transformers' layout: CLIP over given labels, image classifiers, Stable Diffusion's
//! safety checker; and from ONNX files: NudeNet v3.

mod classifier;
mod clip;
mod files;
#[cfg(feature = "onnx")]
mod onnx;
mod safety_checker;
mod zero_shot;

pub use classifier::ImageClassifier;
pub use clip::ClipModel;
pub use files::DetectorFiles;
#[cfg(feature = "onnx")]
pub use onnx::{NUDENET_LABELS, OnnxDetector, resized_as_opencv};
pub use safety_checker::{SAFETY_CHECKER_LABEL, SafetyCheckerDetector};
pub use zero_shot::{DEFAULT_TEMPLATE, ZeroShot};

use super::detector::Detector;
use crate::hub::Lookup;
use crate::progress::Progress;
use crate::{Error, Result};
use candle_core::Device;
use serde_json::Value;
use std::path::Path;

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

/// The detectors of these names, in order: `FILE.onnx`, or what [`DetectorFiles::find`] knows. `labels` are for each CLIP among
/// them. They compute on `device`, those in ONNX files on the CPU.
///
/// # Errors
/// As [`DetectorFiles::find`] and [`open_detector`], if labels are given and none of them is a CLIP, and for `FILE.onnx` in a
/// program that was built without the feature `onnx`.
pub fn open_all(
    names: &[String],
    labels: Option<&Labels>,
    lookup: &Lookup,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Vec<Box<dyn Detector + Send + Sync>>> {
    let (mut opened, mut wanted) = (Vec::with_capacity(names.len()), labels.is_none());
    for name in names {
        let path = Path::new(name);
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) && !path.is_dir() {
            opened.push(open_onnx(path)?);
            continue;
        }
        let files = DetectorFiles::find(name, lookup, progress)?.on(device);
        let labels = if files.is_clip()? { labels } else { None };
        wanted |= labels.is_some();
        opened.push(open_detector(&files, labels)?);
    }
    match wanted {
        true => Ok(opened),
        false => {
            Err(Error::usage("--label is for a CLIP, and none of the detectors is one; leave it out, or name a CLIP"))
        }
    }
}

#[cfg(feature = "onnx")]
fn open_onnx(path: &Path) -> Result<Box<dyn Detector + Send + Sync>> {
    Ok(Box::new(OnnxDetector::open(path)?))
}

#[cfg(not(feature = "onnx"))]
fn open_onnx(path: &Path) -> Result<Box<dyn Detector + Send + Sync>> {
    let what = "is an ONNX file, and this program was built without what runs these: build it with --features onnx";
    Err(Error::file(path, what))
}

/// Opens the detector that these files hold; which kind it is, its config says. `labels` are for a CLIP.
///
/// # Errors
/// If the files are of another kind, malformed, or do not belong together, and if labels are missing or not wanted: the
/// message names the file and what to do.
pub fn open_detector(files: &DetectorFiles, labels: Option<&Labels>) -> Result<Box<dyn Detector + Send + Sync>> {
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
            let what = "is a CLIP, which tells only the labels apart that it is given; give at least two (--label)";
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
