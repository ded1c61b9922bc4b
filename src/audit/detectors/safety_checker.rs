//! Stable Diffusion's own safety checker as a detector: would diffusers have shown a black picture?

use super::{BATCH, DetectorFiles};
use crate::audit::detector::{Detection, Detector, Findings};
use crate::audit::image_processor::{ImageProcessor, ProcessorKind};
use crate::audit::picture::to_images;
use crate::progress::check_interrupted;
use crate::sd::{SafetyChecker, Verdict};
use crate::{Error, Result};
use candle_core::Tensor;
use image::RgbImage;

/// What a flagged picture is given. The checker's concepts have no names.
pub const SAFETY_CHECKER_LABEL: &str = "flagged by the safety checker";

/// The checker with its image processor.
pub struct SafetyCheckerDetector {
    checker: SafetyChecker,
    processor: ImageProcessor,
    labels: Vec<String>,
    name: String,
    sha256: String,
}

impl SafetyCheckerDetector {
    /// Loads it: from a folder `safety_checker`, with `feature_extractor` beside it or its own `preprocessor_config.json`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or does not belong to the others: the message names it.
    pub fn open(files: &DetectorFiles) -> Result<Self> {
        let checker = SafetyChecker::new(&files.config()?, &files.weights()?).map_err(|e| files.in_config(e))?;
        let processor = files.processor(ProcessorKind::Clip)?;
        let (concepts, special) = checker.counts();
        let mut labels = vec![SAFETY_CHECKER_LABEL.to_string()];
        labels.extend((0..concepts).map(concept));
        labels.extend((0..special).map(special_care));
        Ok(Self { checker, processor, labels, name: files.name().to_string(), sha256: files.sha256()? })
    }

    /// What the checker says of each picture.
    pub fn verdicts(&self, images: &[RgbImage]) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::with_capacity(images.len());
        for images in images.chunks(BATCH) {
            check_interrupted()?;
            verdicts.extend(self.checker.check(&self.processor.prepare(images)?)?);
        }
        let finite =
            |verdict: &Verdict| verdict.concept_scores.iter().chain(&verdict.special_scores).all(|x| x.is_finite());
        match verdicts.iter().all(finite) {
            true => Ok(verdicts),
            false => Err(Error::Numeric(format!(
                "{}: a score is NaN or infinite; do config and weights belong together?",
                self.name
            ))),
        }
    }
}

fn concept(i: usize) -> String {
    format!("concept {i}")
}

fn special_care(i: usize) -> String {
    format!("special care {i}")
}

impl Detector for SafetyCheckerDetector {
    fn name(&self) -> &str {
        &self.name
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    /// [`SAFETY_CHECKER_LABEL`] if the picture is flagged, and the numbers of the concepts above their thresholds.
    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        Ok(self.findings(pixels)?.into_iter().map(|found| found.labels).collect())
    }

    fn findings(&self, pixels: &Tensor) -> Result<Vec<Findings>> {
        let named = |verdict: &Verdict| {
            let above = seen(verdict).filter(|found| found.score > 0.0);
            let scores: Vec<Detection> = above.collect();
            let flagged = verdict.is_flagged().then(|| SAFETY_CHECKER_LABEL.to_string());
            let labels = flagged.into_iter().chain(scores.iter().map(|found| found.label.clone())).collect();
            Findings { labels, scores }
        };
        Ok(self.verdicts(&to_images(pixels)?)?.iter().map(named).collect())
    }

    fn rule(&self) -> String {
        "diffusers' StableDiffusionSafetyChecker: a picture is flagged if its cosine with any of the checker's concepts is \
         above the concept's threshold (0.01 lower once a concept of special care is seen); scores are these differences, \
         rounded to 0.001"
            .into()
    }

    fn detections(&self, pixels: &Tensor) -> Result<Vec<Vec<Detection>>> {
        Ok(self.verdicts(&to_images(pixels)?)?.iter().map(|verdict| seen(verdict).collect()).collect())
    }
}

/// Every concept with its score.
fn seen(verdict: &Verdict) -> impl Iterator<Item = Detection> {
    let detection = |(label, score): (String, &f32)| Detection { label, score: *score, bounds: None };
    let concepts = verdict.concept_scores.iter().enumerate().map(|(i, score)| (concept(i), score));
    let special = verdict.special_scores.iter().enumerate().map(|(i, score)| (special_care(i), score));
    concepts.chain(special).map(detection)
}
