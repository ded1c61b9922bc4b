//! Verification: the prompts that nothing was trained on, drawn with fixed seeds, counted by a detector.

use super::detector::Detector;
use super::drift::averaged_down;
use super::picture::{from_images, to_images};
use crate::concept::Concept;
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use candle_core::Tensor;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draws `(B, 3, H, W)` in about -1 to 1 for prompts and seeds.
pub type Render<'a> = dyn FnMut(&[&str], &[u64]) -> Result<Tensor> + 'a;

/// What is added to the plan's seed for concept, synonyms and everything else: so their numbers do not depend on how many
/// pictures the other groups have.
pub const GROUP_SEEDS: [u64; 3] = [0, 1_000_000, 2_000_000];

/// How many pictures of what, from which seed.
#[derive(Debug, Clone)]
pub struct VerifyPlan {
    /// Pictures of the concept.
    pub images: usize,
    /// Pictures of its synonyms (none if it has none).
    pub synonym_images: usize,
    /// Pictures of everything else.
    pub retain_images: usize,
    /// Seed of the first picture of the concept; picture i has seed + i, and each group's begin at [`GROUP_SEEDS`].
    pub seed: u64,
    /// Pictures drawn at a time.
    pub batch: usize,
    /// Pairs that are shown.
    pub shown: usize,
}

/// One picture that is kept for the grid.
pub struct Shown {
    /// Its prompt.
    pub prompt: String,
    /// Its seed.
    pub seed: u64,
    /// The picture.
    pub image: RgbImage,
    /// Whether a label of the concept was found in it.
    pub hit: bool,
}

/// One picture as drift compares it.
pub struct Drawn {
    /// `concept`, `synonym` or `retain`.
    pub group: &'static str,
    /// Its prompt.
    pub prompt: String,
    /// Its seed.
    pub seed: u64,
    /// The picture, averaged down as [`super::DRIFT_DEFINITION`] says.
    pub image: RgbImage,
}

/// Whether a stated label was found in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the picture.
    pub picture: usize,
    /// What its prompt states: `shape: ring`.
    pub label: String,
    /// Whether the detector agrees.
    pub right: bool,
}

/// What was counted. A list of answers is in the order of the pictures, so that two runs can be compared pair by pair.
#[derive(Default)]
pub struct Verification {
    /// Whether each concept picture shows the concept; `None` without a detector that knows its labels.
    pub forget: Option<Vec<bool>>,
    /// The same for synonyms.
    pub synonyms: Option<Vec<bool>>,
    /// For each axis, the pictures whose prompt states a label on it.
    pub retain: BTreeMap<String, Vec<Answer>>,
    /// Every picture, in order.
    pub drawn: Vec<Drawn>,
    /// Pictures of the concept for the grid.
    pub shown_forget: Vec<Shown>,
    /// Pictures of everything else for the grid.
    pub shown_retain: Vec<Shown>,
}

/// Called with each picture: its group, number, prompt and seed.
pub type Keep<'a> = dyn FnMut(&str, usize, &str, u64, &RgbImage) -> Result<()> + 'a;

/// Draws and counts. The same plan gives the same prompts and seeds for any model.
pub fn verify(
    concept: &Concept,
    plan: &VerifyPlan,
    detector: Option<&dyn Detector>,
    render: &mut Render<'_>,
    keep: &mut Keep<'_>,
    name: &str,
    progress: &mut dyn Progress,
) -> Result<Verification> {
    let labels = &concept.detect.labels;
    if let Some(detector) = detector
        && let Some(unknown) = labels.iter().find(|label| !detector.labels().contains(label))
    {
        return Err(Error::usage(format!(
            "detect.labels names {unknown:?}, which the detector {} does not know",
            detector.name()
        )));
    }
    let v = &concept.verify;
    let synonyms = if v.synonyms.is_empty() { 0 } else { plan.synonym_images };
    let total = plan.images + synonyms + plan.retain_images;
    progress.event(Event::Stage { name, steps: total });
    let mut out = Verification::default();
    let counts = detector.filter(|_| !labels.is_empty());
    let retain: Vec<&str> = v.retain.iter().map(|r| r.prompt.as_str()).collect();
    let forget: Vec<&str> = v.forget.iter().map(String::as_str).collect();
    let words: Vec<&str> = v.synonyms.iter().map(String::as_str).collect();
    let groups =
        [("concept", forget, plan.images), ("synonym", words, synonyms), ("retain", retain, plan.retain_images)];
    for ((group, prompts, count), first) in groups.into_iter().zip(GROUP_SEEDS.map(|g| plan.seed.wrapping_add(g))) {
        let mut hits = Vec::with_capacity(count);
        for start in (0..count).step_by(plan.batch.max(1)) {
            check_interrupted()?;
            let rows: Vec<usize> = (start..(start + plan.batch.max(1)).min(count)).collect();
            let texts: Vec<&str> = rows.iter().map(|i| prompts[i % prompts.len()]).collect();
            let seeds: Vec<u64> = rows.iter().map(|i| first.wrapping_add(*i as u64)).collect();
            let images = to_images(&render(&texts, &seeds)?)?;
            let found = match detector {
                Some(detector) => detector.detect(&from_images(&images)?)?,
                None => vec![Vec::new(); images.len()],
            };
            for (((i, prompt), seed), (image, found)) in
                rows.iter().zip(texts).zip(seeds).zip(images.into_iter().zip(found))
            {
                keep(group, *i, prompt, seed, &image)?;
                out.drawn.push(Drawn { group, prompt: prompt.to_string(), seed, image: averaged_down(&image) });
                let hit = found.iter().any(|label| labels.contains(label));
                hits.push(hit);
                if group == "retain" && detector.is_some() {
                    answer(*i, &v.retain[i % v.retain.len()].labels, labels, &found, &mut out.retain);
                }
                let shown = match group {
                    "concept" => Some(&mut out.shown_forget),
                    "retain" => Some(&mut out.shown_retain),
                    _ => None,
                };
                if let Some(shown) = shown.filter(|shown| shown.len() < plan.shown) {
                    shown.push(Shown { prompt: prompt.to_string(), seed, image, hit });
                }
                progress.event(Event::Step { loss: None });
            }
        }
        match group {
            "concept" if counts.is_some() => out.forget = Some(hits),
            "synonym" if counts.is_some() && count > 0 => out.synonyms = Some(hits),
            _ => {}
        }
    }
    Ok(out)
}

/// Checks each stated label that is not the concept's own.
fn answer(
    picture: usize,
    stated: &[String],
    concept: &[String],
    found: &[String],
    axes: &mut BTreeMap<String, Vec<Answer>>,
) {
    for label in stated.iter().filter(|label| !concept.contains(label)) {
        let axis = label.split_once(':').map_or("label", |(axis, _)| axis);
        let right = found.contains(label);
        axes.entry(axis.to_string()).or_default().push(Answer { picture, label: label.clone(), right });
    }
}
