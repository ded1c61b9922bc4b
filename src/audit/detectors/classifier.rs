//! Image classifiers in transformers' layout: ViT and ResNet, with their own labels and their own image processor.

use super::{BATCH, DetectorFiles, Kind};
use crate::audit::detector::{Detection, Detector, Findings};
use crate::audit::image_processor::{ImageProcessor, ProcessorKind};
use crate::audit::picture::to_images;
use crate::progress::check_interrupted;
use crate::sd::{Classifier, Vit, axes_of};
use crate::{Error, Result};
use candle_core::Tensor;
use image::RgbImage;
use serde_json::Value;

enum Network {
    ResNet(Classifier),
    Vit(Vit),
}

/// A classifier.
pub struct ImageClassifier {
    network: Network,
    processor: ImageProcessor,
    /// Each label by itself (`problem_type` `multi_label_classification`), where labels have no axes.
    by_itself: bool,
    name: String,
    sha256: String,
}

impl ImageClassifier {
    /// Loads it.
    ///
    /// # Errors
    /// If a file is missing or malformed, or does not belong to the others: the message names it.
    pub fn open(files: &DetectorFiles) -> Result<Self> {
        let config = files.config()?;
        let in_config = |e| files.in_config(e);
        let parsed = |e: serde_json::Error| in_config(Error::usage(e));
        let (network, kind) = match Kind::of(&config) {
            Some(Kind::ResNet) => {
                let act = config.get("hidden_act").and_then(Value::as_str).unwrap_or("relu");
                if act != "relu" {
                    return Err(in_config(Error::usage(format!("hidden_act is {act:?}; only relu is known"))));
                }
                let config = serde_json::from_value(config.clone()).map_err(parsed)?;
                let network = Classifier::new(&config, &files.weights()?).map_err(in_config)?;
                (Network::ResNet(network), ProcessorKind::ConvNext)
            }
            _ => {
                let config = serde_json::from_value(config.clone()).map_err(parsed)?;
                (Network::Vit(Vit::new(&config, &files.weights()?).map_err(in_config)?), ProcessorKind::Vit)
            }
        };
        let processor = files.processor(kind)?;
        let multi = config.get("problem_type").and_then(Value::as_str) == Some("multi_label_classification");
        let mut found =
            Self { network, processor, by_itself: false, name: files.name().to_string(), sha256: files.sha256()? };
        found.by_itself = multi && !found.labels().iter().any(|label| label.contains(':'));
        Ok(found)
    }

    /// For each picture, one number a label, before a softmax or a sigmoid.
    pub fn logits(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(images.len());
        for images in images.chunks(BATCH) {
            check_interrupted()?;
            let pixels = self.processor.prepare(images)?;
            let logits = match &self.network {
                Network::ResNet(network) => network.logits(&pixels)?,
                Network::Vit(network) => network.logits(&pixels)?,
            };
            rows.extend(logits.to_vec2::<f32>()?);
        }
        if rows.iter().flatten().all(|logit| logit.is_finite()) {
            return Ok(rows);
        }
        let what = format!("{}: a logit is NaN or infinite; do config and weights belong together?", self.name);
        Err(Error::Numeric(what))
    }

    fn scored(&self, logits: &[f32]) -> Vec<(usize, f32, bool)> {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        if self.by_itself {
            return logits.iter().enumerate().map(|(i, x)| (i, sigmoid(*x) as f32, *x > 0.0)).collect();
        }
        let mut all = Vec::with_capacity(logits.len());
        for axis in axes_of(self.labels()) {
            let best = axis.labels.iter().copied().reduce(|best, i| if logits[i] > logits[best] { i } else { best });
            let Some(best) = best else { continue };
            let exp = |i: usize| (f64::from(logits[i]) - f64::from(logits[best])).exp();
            let sum: f64 = axis.labels.iter().map(|i| exp(*i)).sum();
            all.extend(axis.labels.iter().map(|i| (*i, (exp(*i) / sum) as f32, *i == best)));
        }
        all
    }
}

impl Detector for ImageClassifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }

    fn labels(&self) -> &[String] {
        match &self.network {
            Network::ResNet(network) => network.labels(),
            Network::Vit(network) => network.labels(),
        }
    }

    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        Ok(self.findings(pixels)?.into_iter().map(|found| found.labels).collect())
    }

    fn findings(&self, pixels: &Tensor) -> Result<Vec<Findings>> {
        let logits = self.logits(&to_images(pixels)?)?;
        let found = |row: &Vec<f32>| {
            let applies = self.scored(row).into_iter().filter(|(_, _, applies)| *applies);
            let detection =
                |(i, score, _): (usize, f32, bool)| Detection { label: self.labels()[i].clone(), score, bounds: None };
            let scores: Vec<Detection> = applies.map(detection).collect();
            Findings { labels: scores.iter().map(|found| found.label.clone()).collect(), scores }
        };
        Ok(logits.iter().map(found).collect())
    }

    fn rule(&self) -> String {
        match self.by_itself {
            true => "each label whose probability (sigmoid of its logit) is above 0.5; scores are these".into(),
            false => {
                "on each axis the label with the largest logit; scores are the softmax over the axis' labels".into()
            }
        }
    }

    fn detections(&self, pixels: &Tensor) -> Result<Vec<Vec<Detection>>> {
        let logits = self.logits(&to_images(pixels)?)?;
        let all = |row: &Vec<f32>| {
            let detection =
                |(i, score, _): (usize, f32, bool)| Detection { label: self.labels()[i].clone(), score, bounds: None };
            self.scored(row).into_iter().map(detection).collect()
        };
        Ok(logits.iter().map(all).collect())
    }
}
