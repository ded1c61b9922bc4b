//! CLIP over given labels, without training: the label whose text lies nearest to the picture.

use super::{ClipModel, Labels};
use crate::audit::detector::{Detection, Detector, Findings};
use crate::audit::metrics::unit;
use crate::audit::picture::to_images;
use crate::{Error, Result};
use candle_core::Tensor;
use image::RgbImage;

/// The plainest of the templates that CLIP was published with.
pub const DEFAULT_TEMPLATE: &str = "a photo of a {}";

/// A CLIP that knows labels.
pub struct ZeroShot {
    clip: ClipModel,
    labels: Vec<String>,
    /// Indices of each axis' labels.
    axes: Vec<Vec<usize>>,
    /// Each label's text as a vector of length 1.
    texts: Vec<Vec<f64>>,
    template: String,
}

impl ZeroShot {
    /// Makes each label's text and its vector.
    ///
    /// # Errors
    /// If a label stands alone on its axis (it would always win) or twice, or the template has no place for it.
    pub fn new(clip: ClipModel, labels: &Labels) -> Result<Self> {
        let Labels { labels, template } = labels;
        if template.matches("{}").count() != 1 {
            return Err(Error::usage(format!("the template {template:?} must have {{}} once, where the label stands")));
        }
        let mut axes: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, label) in labels.iter().enumerate() {
            let (axis, value) = label.split_once(':').unwrap_or(("", label));
            if value.trim().is_empty() || labels[..i].contains(label) {
                return Err(Error::usage(format!("the label {label:?} is empty or stands twice; name each once")));
            }
            match axes.iter_mut().find(|(name, _)| *name == axis) {
                Some((_, labels)) => labels.push(i),
                None => axes.push((axis, vec![i])),
            }
        }
        if let Some((_, alone)) = axes.iter().find(|(_, labels)| labels.len() == 1) {
            return Err(Error::usage(format!(
                "the label {:?} has no other beside it, so that it would always be named; add what a picture may show \
                 instead",
                labels[alone[0]]
            )));
        }
        if axes.is_empty() {
            return Err(Error::usage("there are no labels for CLIP; give at least two"));
        }
        let text =
            |label: &String| template.replace("{}", label.split_once(':').map_or(&**label, |(_, value)| value).trim());
        let texts: Vec<String> = labels.iter().map(text).collect();
        let texts = clip.text_features(&texts)?.iter().map(|row| unit(row)).collect();
        let axes = axes.into_iter().map(|(_, labels)| labels).collect();
        Ok(Self { clip, labels: labels.clone(), axes, texts, template: template.clone() })
    }

    /// For each picture and label, transformers' `logits_per_image`: the cosine times the model's own scale.
    pub fn logits(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>> {
        let scale = f64::from(self.clip.clip().logit_scale());
        let logits = |row: &Vec<f32>| {
            let picture = unit(row);
            let cosine = |text: &Vec<f64>| picture.iter().zip(text).map(|(a, b)| a * b).sum::<f64>();
            self.texts.iter().map(|text| scale * cosine(text)).collect()
        };
        Ok(self.clip.image_features(images)?.iter().map(logits).collect())
    }

    /// Of every label, axis by axis, the softmax over its axis' logits.
    fn scored(&self, logits: &[f64]) -> Vec<Detection> {
        let mut found = Vec::with_capacity(self.labels.len());
        for axis in &self.axes {
            let top = Self::best(axis, logits).map_or(0.0, |i| logits[i]);
            let sum: f64 = axis.iter().map(|i| (logits[*i] - top).exp()).sum();
            found.extend(axis.iter().map(|i| Detection {
                label: self.labels[*i].clone(),
                score: ((logits[*i] - top).exp() / sum) as f32,
                bounds: None,
            }));
        }
        found
    }

    fn best(axis: &[usize], logits: &[f64]) -> Option<usize> {
        axis.iter().copied().reduce(|best, i| if logits[i] > logits[best] { i } else { best })
    }
}

impl Detector for ZeroShot {
    fn name(&self) -> &str {
        self.clip.name()
    }

    fn sha256(&self) -> &str {
        self.clip.sha256()
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        Ok(self.findings(pixels)?.into_iter().map(|found| found.labels).collect())
    }

    fn rule(&self) -> String {
        format!(
            "CLIP zero-shot: on each axis the label whose text {:?} has the largest cosine with the picture; scores are the \
             softmax over the axis' labels of the cosines times {:.2}",
            self.template,
            self.clip.clip().logit_scale()
        )
    }

    fn findings(&self, pixels: &Tensor) -> Result<Vec<Findings>> {
        let found = |logits: Vec<f64>| {
            let best = self.axes.iter().filter_map(|axis| Self::best(axis, &logits));
            let labels: Vec<String> = best.map(|i| self.labels[i].clone()).collect();
            let scores = self.scored(&logits).into_iter().filter(|score| labels.contains(&score.label)).collect();
            Findings { labels, scores }
        };
        Ok(self.logits(&to_images(pixels)?)?.into_iter().map(found).collect())
    }

    fn detections(&self, pixels: &Tensor) -> Result<Vec<Vec<Detection>>> {
        Ok(self.logits(&to_images(pixels)?)?.iter().map(|logits| self.scored(logits)).collect())
    }
}
