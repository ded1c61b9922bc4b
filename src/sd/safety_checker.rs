//! Stable Diffusion's safety checker (diffusers' `StableDiffusionSafetyChecker`): CLIP's picture tower and the cosines of
//! a picture with 17 concepts, and with 3 that call for special care, over thresholds from the checkpoint.
//!
//! What the concepts are was not published with the weights; they have numbers only.

use super::clip::{ClipVision, ClipVisionConfig, normalised, projection_dim};
use crate::nn::ParamStore;
use crate::{Error, Result};
use candle_core::Tensor;
use serde_json::Value;

/// What is added to every later score once a concept of special care is seen.
const ADJUSTMENT: f32 = 0.01;

/// What the checker says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// For each concept of special care, its cosine minus its threshold, plus the adjustment; rounded to three places.
    pub special_scores: Vec<f32>,
    /// The same for each of the other concepts.
    pub concept_scores: Vec<f32>,
}

impl Verdict {
    /// Whether diffusers would replace the picture with a black one: a concept's score is above 0. (Concepts of special
    /// care only lower the others' thresholds.)
    pub fn is_flagged(&self) -> bool {
        self.concept_scores.iter().any(|score| *score > 0.0)
    }
}

/// Concepts and the cosine from which each is seen.
struct Concepts {
    embeds: Tensor,
    thresholds: Vec<f32>,
}

/// The checker.
pub struct SafetyChecker {
    vision: ClipVision,
    concepts: Concepts,
    special_care: Concepts,
}

impl SafetyChecker {
    /// Builds the network from `safety_checker/config.json`, parsed.
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(config: &Value, params: &ParamStore) -> Result<Self> {
        let width = projection_dim(config)?;
        let mut tensors = params.tensors().clone();
        let mut take = |name: &str| -> Result<Concepts> {
            let mut get = |name: String| {
                let missing = || Error::Weights(format!("safety checker: {name} is missing; download it again"));
                tensors.remove(&name).ok_or_else(missing)
            };
            let (embeds, thresholds) = (get(name.to_string())?, get(format!("{name}_weights"))?);
            let count = thresholds.elem_count();
            if embeds.dims() != [count, width] || count == 0 {
                let (found, implied) = (embeds.dims(), [count, width]);
                let what = format!("safety checker: {name} is {found:?} where the config implies {implied:?}");
                return Err(Error::Weights(what));
            }
            Ok(Concepts { embeds: normalised(&embeds)?, thresholds: thresholds.flatten_all()?.to_vec1()? })
        };
        let (concepts, special_care) = (take("concept_embeds")?, take("special_care_embeds")?);
        let vision = ClipVision::new(&ClipVisionConfig::of(config)?, width, &ParamStore::new(tensors))?;
        Ok(Self { vision, concepts, special_care })
    }

    /// The picture tower.
    pub fn vision(&self) -> &ClipVision {
        &self.vision
    }

    /// How many concepts flag a picture, and how many only call for special care.
    pub fn counts(&self) -> (usize, usize) {
        (self.concepts.thresholds.len(), self.special_care.thresholds.len())
    }

    /// Judges pictures.
    ///
    /// # Shape
    /// `(B, 3, image_size, image_size)`, prepared as the feature extractor's config says -> `B` verdicts.
    pub fn check(&self, pixels: &Tensor) -> Result<Vec<Verdict>> {
        let embeds = normalised(&self.vision.features(pixels)?)?;
        let cosines = |of: &Concepts| -> Result<Vec<Vec<f32>>> { Ok(embeds.matmul(&of.embeds.t()?)?.to_vec2()?) };
        let (special, concepts) = (cosines(&self.special_care)?, cosines(&self.concepts)?);
        Ok(special.iter().zip(&concepts).map(|(special, concepts)| self.judge(special, concepts)).collect())
    }

    /// The checker's arithmetic, in its order: the adjustment counts from the next score on.
    fn judge(&self, special: &[f32], concepts: &[f32]) -> Verdict {
        let mut adjustment = 0.0f32;
        let mut special_scores = Vec::with_capacity(special.len());
        for (cosine, threshold) in special.iter().zip(&self.special_care.thresholds) {
            let score = three_places(cosine - threshold + adjustment);
            if score > 0.0 {
                adjustment = ADJUSTMENT;
            }
            special_scores.push(score);
        }
        let score = |(cosine, threshold): (&f32, &f32)| three_places(cosine - threshold + adjustment);
        let concept_scores = concepts.iter().zip(&self.concepts.thresholds).map(score).collect();
        Verdict { special_scores, concept_scores }
    }
}

/// Rounded to three decimal places, halves to even, as NumPy does it in f32.
fn three_places(x: f32) -> f32 {
    (x * 1000.0).round_ties_even() / 1000.0
}
