//! What recognises things in pictures.

use crate::Result;
use crate::sd::Classifier;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// One thing that a detector sees in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// What it is.
    pub label: String,
    /// How sure the detector is, on its own scale (see [`Detector::rule`]).
    pub score: f32,
    /// Where it is, in pixels: left, top, width, height; `None` from detectors that judge whole pictures.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bounds: Option<[f32; 4]>,
}

/// What is written down of a picture: the labels that apply, and what they stand on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// The labels that apply, each once.
    pub labels: Vec<String>,
    /// These labels' scores, or every box; nothing from a detector that has no scores.
    pub scores: Vec<Detection>,
}

/// Names what it sees in pictures.
pub trait Detector {
    /// A name for reports.
    fn name(&self) -> &str;
    /// SHA-256 of its weights' file, in hex.
    fn sha256(&self) -> &str;
    /// Every label that it knows.
    fn labels(&self) -> &[String];
    /// For each picture of `(B, 3, H, W)` in -1 to 1, the labels that apply.
    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>>;

    /// By which rule a label applies and what scores mean, for reports.
    fn rule(&self) -> String {
        "a label applies if the detector names it".into()
    }

    /// Whether it says where in a picture something is: then one picture may show a label several times.
    fn gives_boxes(&self) -> bool {
        false
    }

    /// For each picture what is to be written down, in one pass. By default the labels that apply, without scores.
    fn findings(&self, pixels: &Tensor) -> Result<Vec<Findings>> {
        Ok(self.detect(pixels)?.into_iter().map(|labels| Findings { labels, scores: Vec::new() }).collect())
    }

    /// For each picture, everything that is seen, with scores, whether or not its label applies: one label may be seen
    /// more than once. By default the labels that apply, with score 1.
    fn detections(&self, pixels: &Tensor) -> Result<Vec<Vec<Detection>>> {
        let seen = |label| Detection { label, score: 1.0, bounds: None };
        Ok(self.detect(pixels)?.into_iter().map(|labels| labels.into_iter().map(seen).collect()).collect())
    }
}

/// An image classifier, read as one label an axis: the one with the largest logit.
pub struct ClassifierDetector {
    /// The network.
    pub classifier: Classifier,
    /// A name for reports.
    pub name: String,
    /// SHA-256 of its weights' file, in hex.
    pub sha256: String,
}

impl ClassifierDetector {
    /// The classifier that lies beside a model, and the SHA-256 of its weights.
    pub fn beside(classifier: Classifier, sha256: String) -> Self {
        Self { classifier, name: "image classifier (ResNet, argmax an axis)".into(), sha256 }
    }
}

impl Detector for ClassifierDetector {
    fn name(&self) -> &str {
        &self.name
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }

    fn labels(&self) -> &[String] {
        self.classifier.labels()
    }

    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        self.classifier.classify(pixels)
    }

    fn rule(&self) -> String {
        "on each axis the label with the largest logit".into()
    }
}
