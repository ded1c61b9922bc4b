//! Looks at pictures: as they are made, and at those that are there already and were looked at by something else, or by nothing.

use super::clip::{ClipEye, ClipLook};
use super::header::{Against, UsedDetector};
use super::manifest::{Entry, Manifest};
use super::pictures::picture;
use crate::Result;
use crate::audit::metrics::ssim;
use crate::audit::{Detection, Detector, from_images};
use crate::nn::assuming_rows;
use crate::progress::{Event, Progress, check_interrupted};
use image::RgbImage;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Pictures by whose number a detector's layers choose how they compute, however many it is given.
const LOOKED_AT: usize = 8;
/// Pictures that are read and looked at together; so few that memory stays flat.
pub const TOGETHER: usize = 32;

/// What looks for labels.
pub struct Counter {
    /// What it is called in entries and tables.
    pub key: String,
    /// What it is, wherever its file lies.
    pub name: String,
    /// It.
    pub detector: Box<dyn Detector + Send + Sync>,
}

impl Counter {
    /// What the manifest says of it.
    pub fn used(&self) -> UsedDetector {
        UsedDetector {
            key: self.key.clone(),
            name: self.name.clone(),
            sha256: self.detector.sha256().to_string(),
            rule: self.detector.rule(),
            boxes: self.detector.gives_boxes(),
            labels: self.detector.labels().to_vec(),
        }
    }
}

/// Everything that looks at pictures.
#[derive(Default)]
pub struct Judges {
    /// What looks for labels.
    pub counters: Vec<Counter>,
    /// What compares pictures with prompts and with other pictures.
    pub clip: Option<ClipEye>,
}

/// What was found in one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judgement {
    /// For each detector, the labels.
    pub labels: BTreeMap<String, Vec<String>>,
    /// For each detector that has some, scores.
    pub scores: BTreeMap<String, Vec<Detection>>,
    /// What CLIP makes of it.
    pub clip: Option<ClipLook>,
}

impl Judges {
    /// Looks at pictures of one size, with those detectors whose key is `wanted`, and with CLIP if it is there and `with_clip`.
    /// What is found in a picture does not depend on the others.
    ///
    /// # Errors
    /// If interrupted, or something is not finite.
    pub fn look(
        &self,
        images: &[RgbImage],
        prompts: &[&str],
        wanted: &dyn Fn(&str) -> bool,
        with_clip: bool,
    ) -> Result<Vec<Judgement>> {
        let mut found = vec![Judgement::default(); images.len()];
        let counters: Vec<&Counter> = self.counters.iter().filter(|counter| wanted(&counter.key)).collect();
        if images.is_empty() {
            return Ok(found);
        }
        if !counters.is_empty() {
            let pixels = from_images(images)?;
            for Counter { key, detector, .. } in counters {
                let findings = assuming_rows(LOOKED_AT, || detector.findings(&pixels))?;
                for (found, findings) in found.iter_mut().zip(findings) {
                    found.labels.insert(key.clone(), findings.labels);
                    if !findings.scores.is_empty() {
                        found.scores.insert(key.clone(), findings.scores);
                    }
                }
            }
        }
        if let Some(eye) = self.clip.as_ref().filter(|_| with_clip) {
            let looks = assuming_rows(LOOKED_AT, || eye.look(images, prompts))?;
            found.iter_mut().zip(looks).for_each(|(found, look)| found.clip = Some(look));
        }
        Ok(found)
    }
}

/// Looks at the pictures of these entries that are there and that not everything has looked at, and enters what is found. Each
/// file must still be what the manifest says.
///
/// # Errors
/// If interrupted, a picture is not what it was, or something is not finite; what is finished stays.
pub fn judge(folder: &Path, manifest: &mut Manifest, judges: &Judges, progress: &mut dyn Progress) -> Result<()> {
    let header = manifest.header().clone();
    let pending: Vec<Entry> = latest(manifest).filter(|entry| !entry.is_judged(&header)).cloned().collect();
    if pending.is_empty() {
        return Ok(());
    }
    progress.event(Event::Stage { name: "looking at the pictures that are there", steps: pending.len() });
    // together: of one size, with the same still missing
    let missing = |entry: &Entry| -> Vec<bool> {
        header.detectors.iter().map(|detector| !entry.labels.contains_key(&detector.key)).collect()
    };
    let alike = |a: &Entry, b: &Entry| {
        let facts = |e: &Entry| (e.width, e.height, e.clip.is_none(), missing(e));
        facts(a) == facts(b)
    };
    for batch in pending.chunk_by(alike).flat_map(|alike| alike.chunks(TOGETHER)) {
        check_interrupted()?;
        let images = batch.par_iter().map(|entry| picture(folder, entry)).collect::<Result<Vec<_>>>()?;
        let prompts: Vec<&str> = batch.iter().map(|entry| entry.prompt.as_str()).collect();
        let Some(first) = batch.first() else { continue };
        let wanted = |key: &str| !first.labels.contains_key(key);
        for (entry, found) in batch.iter().zip(judges.look(&images, &prompts, &wanted, first.clip.is_none())?) {
            let mut entry = entry.clone();
            entry.labels.extend(found.labels);
            entry.scores.extend(found.scores);
            entry.clip = entry.clip.or(found.clip);
            manifest.push(&entry)?;
            progress.event(Event::Step { loss: None });
        }
    }
    Ok(())
}

/// Enters each picture's structural similarity to that of the model that all are compared with, where both are there and of one size.
/// Nothing is done where no model is named or pictures are not kept.
///
/// # Errors
/// As [`judge`].
pub fn pair_up(folder: &Path, manifest: &mut Manifest, progress: &mut dyn Progress) -> Result<()> {
    let header = manifest.header().clone();
    let Some(Against::Model(base)) = &header.metrics.against else { return Ok(()) };
    if !header.settings.images {
        return Ok(());
    }
    manifest.catch_up()?;
    let of_base: HashMap<(&str, usize), &Entry> =
        latest(manifest).filter(|e| e.model == *base).map(|e| ((e.case.as_str(), e.sample), e)).collect();
    let mut pairs: Vec<(Entry, Entry)> = Vec::new();
    for entry in latest(manifest).filter(|entry| entry.model != *base && entry.ssim.is_none()) {
        let other = of_base.get(&(entry.case.as_str(), entry.sample));
        if let Some(other) = other.filter(|other| comparable(entry, other)) {
            pairs.push((entry.clone(), (*other).clone()));
        }
    }
    if pairs.is_empty() {
        return Ok(());
    }
    progress.event(Event::Stage { name: "comparing pictures of the same prompt and seed", steps: pairs.len() });
    for pairs in pairs.chunks(TOGETHER) {
        check_interrupted()?;
        let similarity = |(entry, other): &(Entry, Entry)| -> Result<f64> {
            ssim(&picture(folder, entry)?, &picture(folder, other)?)
        };
        let found = pairs.par_iter().map(similarity).collect::<Result<Vec<f64>>>()?;
        for ((entry, _), ssim) in pairs.iter().zip(found) {
            manifest.push(&Entry { ssim: Some(ssim), ..entry.clone() })?;
            progress.event(Event::Step { loss: None });
        }
    }
    Ok(())
}

/// The last word on each picture, in the order in which these were entered.
fn latest(manifest: &Manifest) -> impl Iterator<Item = &Entry> {
    let entries = manifest.entries();
    let last: HashMap<_, usize> = entries.iter().enumerate().map(|(i, entry)| (entry.key(), i)).collect();
    entries.iter().enumerate().filter(move |(i, entry)| last.get(&entry.key()) == Some(i)).map(|(_, entry)| entry)
}

/// Whether SSIM knows two pictures of these sizes.
fn comparable(a: &Entry, b: &Entry) -> bool {
    (a.width, a.height) == (b.width, b.height) && a.width.min(a.height) >= crate::audit::metrics::SMALLEST_FOR_SSIM
}
