//! `erase-concept bench`: a grid of settings on concepts and seeds, resumable.

use super::ExitCode;
use super::checks::open;
use super::evidence::Evidence;
use super::options::{BenchOptions, EraseOptions};
use super::output::Display;
use crate::audit::{Comparison, Verification};
use crate::bench::{Outcome, Results, Variant, plot, runs, table};
use crate::checkpoint::{
    LoadedModel, Loading, ModelFiles, OutputFolder, Precision, load_model_on, save_model, sweep_files,
    write_file_atomic,
};
use crate::erase::memory::Budget;
use crate::erase::{self, Data};
use crate::nn::ComputeDevice;
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result, hub};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs what is not known yet, and writes table and plot after every outcome.
pub fn run(options: &BenchOptions, display: &mut Display) -> Result<ExitCode> {
    let compute = open(&options.device, options.tf32, display)?;
    let hub::Found { files, origin } = hub::find(&options.model, &options.lookup, display)?;
    files.notes().iter().for_each(|note| display.event(Event::Note(note)));
    display.event(Event::Stage { name: "loading the model", steps: 1 });
    let exact = |name: &str| options.grid.variants.iter().any(|variant| variant.settings.changes(name));
    let loading = Loading { precision: options.precision, exact: &exact, beside: None, device: compute.device() };
    let loaded = load_model_on(&files, &loading, &compute.further())?;
    display.event(Event::Step { loss: None });
    for variant in &options.grid.variants {
        erase::plan(&loaded.model, &variant.settings, budget(options.budget, &compute))?;
    }
    let mut jobs: Vec<&EraseOptions> = options.jobs.iter().collect();
    jobs.dedup_by(|a, b| a.concept == b.concept); // the seeds of a concept follow each other
    for job in jobs {
        super::erase::say_what_is_cut(job, &loaded, display)?;
    }
    let unusable = |e| Error::file(&options.output, format!("cannot be used: {e}; choose another --output"));
    std::fs::create_dir_all(&options.output).map_err(unusable)?;
    sweep_files(&options.output)?;
    let mut results = Results::open(&options.output.join("results.jsonl"))?;
    let names: Vec<String> = options.grid.variants.iter().map(|variant| variant.name.clone()).collect();
    let total = options.jobs.len() * names.len();
    let mut outcomes = Vec::new();
    let mut before = None;
    for job in &options.jobs {
        let bench = Bench {
            job,
            files: &files,
            loaded: &loaded,
            evidence: Evidence::new(job, &compute, &files, &loaded, origin.clone())?,
            output: &options.output,
            loading: Loading { beside: Some((&files, &loaded)), ..loading },
        };
        let mut data = HashMap::new();
        for variant in &options.grid.variants {
            let key = bench.key(variant)?;
            let outcome = match results.find(&key) {
                Some(known) => Outcome { variant: variant.name.clone(), ..known.clone() },
                None => {
                    let what = format!(
                        "{} of {total}: {}, seed {}, {}",
                        outcomes.len() + 1,
                        job.concept.name,
                        job.seed,
                        variant.name
                    );
                    display.event(Event::Note(&what));
                    let outcome = bench.run(key, variant, &mut before, &mut data, display)?;
                    results.push(outcome.clone())?;
                    outcome
                }
            };
            outcomes.push(outcome);
            let tables = format!("{}\n{}", table(&names, &outcomes), runs(&outcomes));
            for (file, text) in [("table.md", tables), ("plot.svg", plot(&names, &outcomes))] {
                let path = options.output.join(file);
                write_file_atomic(&path, text.as_bytes())?;
            }
        }
    }
    let output = options.output.display();
    let text = format!("{}\nresult: {output} (results.jsonl, table.md, plot.svg)", table(&names, &outcomes));
    display.result(&json!({ "output": output.to_string(), "outcomes": outcomes }), &text);
    Ok(ExitCode::Done)
}

/// The budget with what the device has.
fn budget(budget: Budget, compute: &ComputeDevice) -> Budget {
    Budget { gpu: compute.planned_memory(), ..budget }
}

/// One concept with one seed.
struct Bench<'a> {
    job: &'a EraseOptions,
    files: &'a ModelFiles,
    loaded: &'a LoadedModel,
    evidence: Evidence<'a>,
    output: &'a Path,
    loading: Loading<'a>,
}

impl Bench<'_> {
    /// A hash of everything that an outcome depends on.
    fn key(&self, variant: &Variant) -> Result<String> {
        let precision = self.loading.precision;
        let parts = json!([
            env!("CARGO_PKG_VERSION"),
            self.loaded.base_sha256,
            self.job.concept,
            self.job.seed,
            variant.settings,
            self.evidence.describe()
        ]);
        // results from before there was a choice keep their keys
        let parts = if precision == Precision::F32 { parts } else { json!([parts, precision.name()]) };
        let compute = self.evidence.compute();
        let parts = match compute.device().is_cpu() {
            true => parts,
            false => json!([parts, compute.name(), compute.tf32()]),
        };
        let hash = Sha256::digest(parts.to_string());
        Ok(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Where pictures go, if they are kept.
    fn pictures(&self, parts: &[&str]) -> PathBuf {
        let safe = |part: &&str| part.replace(|c: char| !c.is_alphanumeric() && c != '.', "-");
        self.output.join("pictures").join(parts.iter().map(safe).collect::<PathBuf>())
    }

    fn run(
        &self,
        key: String,
        variant: &Variant,
        before: &mut Option<(String, Verification)>,
        data: &mut HashMap<String, Data>,
        display: &mut Display,
    ) -> Result<Outcome> {
        check_interrupted()?;
        let (job, settings, model) = (self.job, &variant.settings, &self.loaded.model);
        let made_from = serde_json::to_string(&settings.data).unwrap_or_default();
        let data = match data.entry(made_from) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(Data::sample(model, &job.concept, settings, job.seed, display)?)
            }
        };
        // the same pictures for every variant and seed of a concept
        let of = json!([job.concept, self.evidence.describe()]).to_string();
        if before.as_ref().is_none_or(|(known, _)| *known != of) {
            let folder = self.pictures(&["before", &job.concept.slug()]);
            *before = Some((of, self.evidence.look(model, "before", &folder, display)?));
        }
        let began = Instant::now();
        let plan = erase::plan(model, settings, budget(job.budget, self.evidence.compute()))?;
        let outcome = erase::scissorhands(model, &job.concept, data, settings, job.seed, plan, display)?;
        let seconds = began.elapsed().as_secs_f64();
        // counted on the weights as they would be written
        let folder = OutputFolder::create(&self.output.join("model"), true)?; // never committed
        save_model(self.files, self.loaded, &outcome.changed, folder.path(), &Default::default())?;
        let files = ModelFiles::Folder(folder.path().to_path_buf());
        let written = load_model_on(&files, &self.loading, &self.evidence.compute().further())?;
        let run = format!("{}-s{}", job.concept.slug(), job.seed);
        let after = self.evidence.look(&written.model, "after", &self.pictures(&[&variant.name, &run]), display)?;
        let counts = Comparison::new(before.as_ref().map_or(&after, |(_, before)| before), &after);
        let losses = &outcome.losses;
        let last = &losses[losses.len() - losses.len().div_ceil(10)..];
        Ok(Outcome {
            key,
            variant: variant.name.clone(),
            concept: job.concept.name.clone(),
            seed: job.seed,
            counts,
            projected: losses.iter().filter(|step| step.projected).count() as f64 / losses.len().max(1) as f64,
            retain_loss: last.iter().map(|step| f64::from(step.retain)).sum::<f64>() / last.len().max(1) as f64,
            seconds,
        })
    }
}
