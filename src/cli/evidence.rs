//! The erase job's evidence: the same prompts and seeds before and after, counted, drawn and written down.

use super::checks::model_name;
use super::command::command;
use super::options::EraseOptions;
use crate::audit::html::EraseReport;
use crate::audit::{
    ClassifierDetector, Comparison, ConceptCounts, Detector, DetectorRecord, Drift, Grid, GridRow, Infotext, Move,
    PreservedCounts, Report, SCHEMA, Shown, Take, Verification, VerifyBatch, VerifyPlan, VerifyRecord, by_block,
    encode_png, to_images, verify,
};
use crate::checkpoint::{LoadedModel, ModelFiles, load_classifier_on, write_file};
use crate::concept::{Concept, Kind};
use crate::diffusion::{Schedule, timesteps};
use crate::erase::{Outcome, Settings};
use crate::hub::Origin;
use crate::nn::ComputeDevice;
use crate::progress::Progress;
use crate::sd::{Replica, SampleOptions, StableDiffusion};
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// Pairs of the concept that are shown, and of everything else.
const SHOWN: usize = 12;
/// Those of them that are in the grid.
const IN_GRID: usize = 8;
/// Guidance of a verification picture where the user says nothing.
const GUIDANCE_SCALE: f64 = 5.0;

/// What pictures are made for verification, and what counts them.
pub struct Evidence<'a> {
    options: &'a EraseOptions,
    compute: &'a ComputeDevice,
    origin: Option<Origin>,
    detector: Option<ClassifierDetector>,
    sampling: SampleOptions,
    plan: VerifyPlan,
}

impl<'a> Evidence<'a> {
    /// Uses the classifier that lies beside the model (the demo has one); without it, pictures are drawn but not counted.
    /// `origin` is where the model came from, if that is the Hub.
    pub fn new(
        options: &'a EraseOptions,
        compute: &'a ComputeDevice,
        files: &ModelFiles,
        loaded: &LoadedModel,
        origin: Option<Origin>,
    ) -> Result<Self> {
        let detector = match load_classifier_on(files, compute.device())? {
            Some((classifier, sha256)) => {
                let knows = |label| classifier.labels().contains(label);
                // of several concepts, what it knows of is counted
                let mut each = options.concept.each().iter();
                let fits = each.any(|concept| concept.detect.labels.iter().all(knows));
                fits.then(|| ClassifierDetector::beside(classifier, sha256))
            }
            None => None,
        };
        let v = &options.verify;
        let sampling = SampleOptions {
            sampler: options.sampling.sampler.unwrap_or(crate::diffusion::Sampler::DpmSolverPlusPlus2M),
            steps: v.steps,
            guidance_scale: options.sampling.guidance_scale.unwrap_or(GUIDANCE_SCALE),
            eta: 0.0,
            size: None,
        };
        timesteps(sampling.sampler, &Schedule::new(&loaded.model.scheduler)?, sampling.steps)?;
        let plan = VerifyPlan {
            images: v.images,
            synonym_images: v.synonym_images,
            retain_images: v.retain_images,
            seed: v.seed,
            batch: loaded.model.together(),
            shown: SHOWN,
        };
        Ok(Self { options, compute, origin, detector, sampling, plan })
    }

    /// What computes.
    pub fn compute(&self) -> &ComputeDevice {
        self.compute
    }

    /// How many pictures there are of the concepts, of their synonyms and of everything else.
    pub fn pictures(&self) -> [usize; 3] {
        self.plan.pictures(&self.options.concept)
    }

    /// What decides which pictures are made and how they are counted.
    pub fn describe(&self) -> serde_json::Value {
        let (p, s) = (&self.plan, &self.sampling);
        serde_json::json!({
            "pictures": [p.images, p.synonym_images, p.retain_images],
            "seed": p.seed,
            "scheduler": s.sampler.to_string(),
            "steps": s.steps,
            "guidance_scale": s.guidance_scale,
            "detector": self.detector.as_ref().map(|d| d.sha256().to_string()),
        })
    }

    /// Where the model came from, if that is the Hub.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Draws and counts with one model. `when` is `before` or `after`.
    pub fn look(
        &self,
        model: &StableDiffusion,
        when: &str,
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Verification> {
        let replicas = model.replicas()?;
        let mut render = |batches: &[VerifyBatch<'_>], take: &mut Take<'_>| {
            let draw = |replica: &Replica<'_>, i: usize| {
                let VerifyBatch { prompts, seeds, .. } = &batches[i];
                to_images(&replica.pixels(&self.sampling, prompts, &vec![""; prompts.len()], seeds)?)
            };
            replicas.deal(batches.len(), draw, take)
        };
        let images = folder.join("images").join(when);
        if self.options.verify.keep_images {
            std::fs::create_dir_all(&images).map_err(Error::io(&images))?;
        }
        let mut keep = |group: &str, i: usize, prompt: &str, seed: u64, image: &image::RgbImage| -> Result<()> {
            if !self.options.verify.keep_images {
                return Ok(());
            }
            let text = Infotext {
                prompt,
                negative_prompt: "",
                steps: self.sampling.steps,
                sampler: &self.sampling.sampler.to_string(),
                guidance_scale: self.sampling.guidance_scale,
                seed,
                size: image.dimensions(),
                model_hash: "",
                model: &format!("{} ({when})", model_name(&self.options.model)),
            };
            let path = images.join(format!("{group}-{i:05}_{seed}.png"));
            write_file(&path, &encode_png(image, &[("parameters", &text.to_string())])?)
        };
        let detector = self.detector.as_ref().map(|d| d as &dyn Detector);
        let name = format!("verifying: pictures {when}");
        verify(&self.options.concept, &self.plan, detector, &mut render, &mut keep, &name, progress)
    }

    /// Everything that was found. `moves` are of `before` and `after`.
    pub fn report(
        &self,
        settings: &Settings,
        loaded: &LoadedModel,
        outcome: Outcome,
        before: &Verification,
        after: &Verification,
        moves: &[Move<'_>],
    ) -> Report {
        let detector = self.detector.as_ref().map(|d| DetectorRecord {
            name: d.name().to_string(),
            sha256: d.sha256().to_string(),
            rule: format!("a picture counts if it is given one of {}", self.options.concept.detect.labels.join(", ")),
        });
        let tensors = loaded.model.unet_params.tensors().iter();
        let tensors = tensors.map(|(name, t)| (name.as_str(), t.elem_count(), settings.score_scope.contains(name)));
        Report {
            schema: SCHEMA,
            concept: self.options.concept.name.clone(),
            method: "scissorhands",
            preset: self.options.preset.clone(),
            seed: self.options.seed,
            dtype: self.options.precision.name(),
            device: self.compute.name().to_string(),
            tf32: self.compute.tf32(),
            version: env!("CARGO_PKG_VERSION"),
            command: command(self.options),
            hub: self.origin.clone(),
            base_sha256: loaded.base_sha256.clone(),
            counts: Comparison::new(before, after),
            concepts: ConceptCounts::each(&self.options.concept, before, after),
            preserve: PreservedCounts::each(&self.options.concept, before, after, moves),
            drift: Drift::new(moves),
            detector,
            verification: VerifyRecord {
                scheduler: self.sampling.sampler.to_string(),
                steps: self.sampling.steps,
                guidance_scale: self.sampling.guidance_scale,
                seed: self.plan.seed,
            },
            blocks: by_block(tensors, &outcome.trim.trimmed),
            settings: settings.clone(),
            other_words: outcome.other_words,
            trim: outcome.trim,
            losses: outcome.losses,
        }
    }

    /// Writes `report.json`, `report.html` and `grid.png`.
    pub fn write(
        &self,
        folder: &Path,
        report: &Report,
        loaded: &LoadedModel,
        before: &Verification,
        after: &Verification,
        moves: &[Move<'_>],
    ) -> Result<()> {
        write_json(&folder.join("report.json"), report)?;
        let tensors = loaded.model.unet_params.tensors().iter();
        let scored = tensors.filter(|(name, _)| report.settings.score_scope.contains(name));
        let page = EraseReport {
            report,
            concept: &self.options.concept,
            model: &model_name(&self.options.model),
            before,
            after,
            moves,
            scored: &scored.map(|(name, tensor)| (name.clone(), tensor.elem_count())).collect(),
            missed: &self.missed(report),
            show: self.options.verify.show,
        };
        let path = folder.join("report.html");
        write_file(&path, page.html()?.as_bytes())?;
        self.write_grid(folder, before, after)
    }

    fn write_grid(&self, folder: &Path, before: &Verification, after: &Verification) -> Result<()> {
        let blur = self.options.concept.kind == Kind::Content && !self.options.verify.show;
        fn row<'b>(label: &str, shown: &'b [Shown], blur: impl Fn(&Shown) -> bool) -> GridRow<'b> {
            let shown = || shown.iter().take(IN_GRID);
            GridRow {
                label: label.into(),
                images: shown().map(|s| &s.image).collect(),
                blur: shown().map(blur).collect(),
            }
        }
        let counted = before.forget.is_some();
        let name = &self.options.concept.name;
        let grids = [
            (format!("{name}: prompts that name it"), &before.shown_forget, &after.shown_forget, blur),
            ("everything else: prompts that do not".to_string(), &before.shown_retain, &after.shown_retain, false),
        ];
        let parts = grids.map(|(title, before, after, blur)| {
            let rows = vec![row("before", before, |_| blur), row("after", after, |s| blur && counted && s.hit)];
            let captions = before.iter().take(IN_GRID).map(|s| format!("{} #{}", s.prompt, s.seed)).collect();
            Grid { title, rows, captions }.draw()
        });
        let (width, height) =
            (parts.iter().map(|p| p.width()).max().unwrap_or(1), parts.iter().map(|p| p.height()).sum());
        let mut grid = image::RgbImage::from_pixel(width, height, image::Rgb([255, 255, 255]));
        let mut top = 0;
        for part in &parts {
            image::imageops::overlay(&mut grid, part, 0, top);
            top += i64::from(part.height());
        }
        let path = folder.join("grid.png");
        write_file(&path, &encode_png(&grid, &[])?)
    }

    /// The limits that were asked for and are missed, in words.
    pub fn missed(&self, report: &Report) -> Vec<String> {
        let v = &self.options.verify;
        let alone = [("", &report.counts.rate, &report.counts.synonyms)];
        let each: Vec<_> = report.concepts.iter().map(|c| (c.name.as_str(), &c.rate, &c.synonyms)).collect();
        let mut missed = Vec::new();
        for (name, rate, synonyms) in if each.is_empty() { &alone[..] } else { &each } {
            let of = if name.is_empty() { String::new() } else { format!(" of «{name}»") };
            for (flag, limit, found) in
                [("--max-rate", v.max_rate, rate), ("--max-synonym-rate", v.max_synonym_rate, synonyms)]
            {
                let Some(limit) = limit else { continue };
                let has_none = |part: &Concept| part.name == *name && part.verify.synonyms.is_empty();
                match found.as_ref().map(|found| found.after.fraction()) {
                    Some(rate) if rate <= limit => {}
                    Some(rate) => missed.push(format!("{flag} {limit}: the rate{of} is {rate:.3}")),
                    // of several concepts, some may have no synonyms
                    None if flag == "--max-synonym-rate" && self.options.concept.parts.iter().any(has_none) => {}
                    None => missed
                        .push(format!("{flag} {limit}: nothing could be counted{of}, no detector knows the concept")),
                }
            }
        }
        missed
    }
}

/// Pretty JSON with a newline at its end.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    text.push('\n');
    write_file(path, text.as_bytes())
}
