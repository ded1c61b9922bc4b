//! Verification: the prompts that nothing was trained on, drawn with fixed seeds, counted by a detector.

use super::detector::Detector;
use super::drift::averaged_down;
use super::picture::from_images;
use crate::concept::Concept;
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Pictures that are drawn together.
pub struct VerifyBatch<'a> {
    /// A prompt each.
    pub prompts: Vec<&'a str>,
    /// A seed each.
    pub seeds: Vec<u64>,
    /// Which group of the plan they belong to.
    group: usize,
    /// Numbers of the pictures in it.
    rows: Range<usize>,
}

/// Called with the pictures of each batch, in order.
pub type Take<'a> = dyn FnMut(usize, Vec<RgbImage>) -> Result<()> + 'a;

/// Draws all batches.
pub type Render<'a> = dyn FnMut(&[VerifyBatch<'_>], &mut Take<'_>) -> Result<()> + 'a;

/// What is added to the plan's seed for concept, synonyms and everything else: so their numbers do not depend on how many
/// pictures the other groups have.
pub const GROUP_SEEDS: [u64; 3] = [0, 1_000_000, 2_000_000];

/// Where the pictures of what was asked to be preserved begin.
const PRESERVE_SEED: u64 = 3_000_000;
/// What is added for each further concept, where there are several.
const CONCEPT_SEEDS: u64 = 4_000_000;
/// Pictures of each name or prompt that is preserved, if [`VerifyPlan::retain_images`] has room for so many.
const PRESERVE_IMAGES: usize = 16;

/// How many pictures of what, from which seed.
#[derive(Debug, Clone)]
pub struct VerifyPlan {
    /// Pictures of each concept.
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
    /// `concept`, `synonym`, `retain` or `preserve`.
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

/// What was counted of one of several concepts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartCount {
    /// Whether each of its pictures shows it; `None` without a detector that knows its labels.
    pub forget: Option<Vec<bool>>,
    /// The same for its synonyms.
    pub synonyms: Option<Vec<bool>>,
}

/// What was drawn and counted of a name or prompt that is preserved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preserved {
    /// Its pictures, as indices into [`Verification::drawn`].
    pub drawn: Vec<usize>,
    /// The labels that it states by their words; none if the detector knows none of them.
    pub labels: Vec<String>,
    /// Whether all of these were found in each picture.
    pub found: Vec<bool>,
}

/// What was counted. A list of answers is in the order of the pictures, so that two runs can be compared pair by pair.
#[derive(Default)]
pub struct Verification {
    /// Whether each concept picture shows the concept; `None` without a detector that knows its labels. Of several concepts,
    /// those that are counted, one after the other.
    pub forget: Option<Vec<bool>>,
    /// The same for synonyms.
    pub synonyms: Option<Vec<bool>>,
    /// The same for each of several concepts; empty if there is one.
    pub parts: Vec<PartCount>,
    /// For each name or prompt that the user asked to preserve.
    pub preserve: Vec<Preserved>,
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

/// Pictures of one kind: prompts in turn, from a seed on.
struct Group<'a> {
    name: &'static str,
    /// Index of the concept, where that matters.
    part: usize,
    prompts: Vec<&'a str>,
    /// Number of the first picture among those of this name.
    first: usize,
    count: usize,
    seed: u64,
}

impl<'a> Group<'a> {
    /// Its pictures, `size` at a time.
    fn batches(&self, group: usize, size: usize) -> impl Iterator<Item = VerifyBatch<'a>> {
        let size = size.max(1);
        (0..self.count).step_by(size).map(move |start| {
            let rows = start..(start + size).min(self.count);
            VerifyBatch {
                prompts: rows.clone().map(|i| self.prompts[i % self.prompts.len()]).collect(),
                seeds: rows.clone().map(|i| self.seed.wrapping_add(i as u64)).collect(),
                group,
                rows,
            }
        })
    }
}

impl VerifyPlan {
    /// Pictures of what is preserved.
    fn preserve_images(&self, concept: &Concept) -> usize {
        match concept.verify.preserve.len() {
            0 => 0,
            _ => (PRESERVE_IMAGES * concept.preserve.len()).min(self.retain_images),
        }
    }

    /// Pictures of the concepts, their synonyms and everything else.
    pub fn pictures(&self, concept: &Concept) -> [usize; 3] {
        let with_synonyms = concept.each().iter().filter(|part| !part.verify.synonyms.is_empty()).count();
        let rest = self.retain_images + self.preserve_images(concept);
        [self.images * concept.each().len(), self.synonym_images * with_synonyms, rest]
    }

    fn groups<'a>(&self, concept: &'a Concept) -> Vec<Group<'a>> {
        let strings = |list: &'a [String]| list.iter().map(String::as_str).collect::<Vec<_>>();
        let [of_concept, of_synonyms, of_rest] = GROUP_SEEDS.map(|seed| self.seed.wrapping_add(seed));
        let mut groups = Vec::new();
        for (part, one) in concept.each().iter().enumerate() {
            let (v, further) = (&one.verify, CONCEPT_SEEDS.wrapping_mul(part as u64));
            let synonyms = if v.synonyms.is_empty() { 0 } else { self.synonym_images };
            let lists = [
                ("concept", strings(&v.forget), self.images, self.images, of_concept),
                ("synonym", strings(&v.synonyms), synonyms, self.synonym_images, of_synonyms),
            ];
            groups.extend(lists.map(|(name, prompts, count, each, seed)| {
                let (first, seed) = (part * each, seed.wrapping_add(further));
                Group { name, part, prompts, first, count, seed }
            }));
        }
        let kept = concept.verify.retain.iter().map(|retain| retain.prompt.as_str()).collect();
        groups.push(Group {
            name: "retain",
            part: 0,
            prompts: kept,
            first: 0,
            count: self.retain_images,
            seed: of_rest,
        });
        let preserve = concept.verify.preserve.iter().map(|preserve| preserve.prompt.as_str()).collect();
        let (count, seed) = (self.preserve_images(concept), self.seed.wrapping_add(PRESERVE_SEED));
        groups.push(Group { name: "preserve", part: 0, prompts: preserve, first: 0, count, seed });
        groups
    }
}

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
    let parts = concept.each();
    if let Some(detector) = detector
        && concept.parts.is_empty()
        && let Some(unknown) = labels.iter().find(|label| !detector.labels().contains(label))
    {
        return Err(Error::usage(format!(
            "detect.labels names {unknown:?}, which the detector {} does not know",
            detector.name()
        )));
    }
    progress.event(Event::Stage { name, steps: plan.pictures(concept).iter().sum() });
    let counted = |part: &Concept| {
        let own = &part.detect.labels;
        detector.is_some_and(|d| !own.is_empty() && own.iter().all(|label| d.labels().contains(label)))
    };
    let mut out = Verification {
        parts: vec![PartCount::default(); parts.len()],
        preserve: concept.preserve.iter().map(|entry| Preserved::new(entry, labels, detector)).collect(),
        ..Verification::default()
    };
    let mut shown: Vec<Vec<Shown>> = parts.iter().map(|_| Vec::new()).collect();
    let groups = plan.groups(concept);
    let batches: Vec<VerifyBatch<'_>> =
        groups.iter().enumerate().flat_map(|(i, group)| group.batches(i, plan.batch)).collect();
    let mut hits: Vec<Vec<bool>> = groups.iter().map(|group| Vec::with_capacity(group.count)).collect();
    render(&batches, &mut |n, images| {
        let VerifyBatch { prompts, seeds, group: of, rows } = &batches[n];
        let (group, own) = (&groups[*of], &parts[groups[*of].part].detect.labels);
        let found = match detector {
            Some(detector) => detector.detect(&from_images(&images)?)?,
            None => vec![Vec::new(); images.len()],
        };
        for (((i, prompt), seed), (image, found)) in
            rows.clone().zip(prompts).zip(seeds).zip(images.into_iter().zip(found))
        {
            keep(group.name, group.first + i, prompt, *seed, &image)?;
            let image_for_drift = averaged_down(&image);
            out.drawn.push(Drawn {
                group: group.name,
                prompt: prompt.to_string(),
                seed: *seed,
                image: image_for_drift,
            });
            let hit = found.iter().any(|label| own.contains(label));
            hits[*of].push(hit);
            if group.name == "retain" && detector.is_some() {
                let stated = &concept.verify.retain[i % concept.verify.retain.len()].labels;
                answer(i, stated, labels, &found, &mut out.retain);
            }
            if group.name == "preserve" {
                let entry = concept.verify.preserve[i % concept.verify.preserve.len()].entry;
                out.preserve[entry].add(out.drawn.len() - 1, &found);
            }
            let shown = match group.name {
                "concept" => Some(&mut shown[group.part]),
                "retain" => Some(&mut out.shown_retain),
                _ => None,
            };
            if let Some(shown) = shown.filter(|shown| shown.len() < plan.shown) {
                shown.push(Shown { prompt: prompt.to_string(), seed: *seed, image, hit });
            }
            progress.event(Event::Step { loss: None });
        }
        Ok(())
    })?;
    for (group, hits) in groups.iter().zip(hits) {
        if group.count > 0 && counted(&parts[group.part]) {
            match group.name {
                "concept" => out.parts[group.part].forget = Some(hits),
                "synonym" => out.parts[group.part].synonyms = Some(hits),
                _ => {}
            }
        }
    }
    let all = |of: fn(&PartCount) -> &Option<Vec<bool>>| {
        let counted: Vec<&Vec<bool>> = out.parts.iter().filter_map(|part| of(part).as_ref()).collect();
        (!counted.is_empty()).then(|| counted.into_iter().flatten().copied().collect())
    };
    (out.forget, out.synonyms) = (all(|part| &part.forget), all(|part| &part.synonyms));
    if concept.parts.is_empty() {
        out.parts.clear();
    }
    // the concepts in turn
    let mut shown: Vec<_> = shown.into_iter().map(Vec::into_iter).collect();
    while out.shown_forget.len() < plan.shown {
        let before = out.shown_forget.len();
        out.shown_forget.extend(shown.iter_mut().filter_map(Iterator::next));
        if out.shown_forget.len() == before {
            break;
        }
    }
    out.shown_forget.truncate(plan.shown);
    Ok(out)
}

impl Preserved {
    /// `entry` states the labels whose value («pink» of `color: pink`) stands in it as words of their own.
    fn new(entry: &str, concept: &[String], detector: Option<&dyn Detector>) -> Self {
        let plain = |text: &str| {
            let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
        };
        let entry = format!(" {} ", plain(entry));
        let value = |label: &str| plain(label.split_once(':').map_or(label, |(_, value)| value));
        let stated = |label: &&String| !concept.contains(label) && entry.contains(&format!(" {} ", value(label)));
        let labels = detector.map_or(&[][..], Detector::labels).iter().filter(stated).cloned().collect();
        Self { labels, ..Self::default() }
    }

    fn add(&mut self, drawn: usize, found: &[String]) {
        self.drawn.push(drawn);
        if !self.labels.is_empty() {
            self.found.push(self.labels.iter().all(|label| found.contains(label)));
        }
    }
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
