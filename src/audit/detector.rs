//! What recognises things in pictures.

use crate::Result;
use crate::sd::Classifier;
use candle_core::Tensor;

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
}
