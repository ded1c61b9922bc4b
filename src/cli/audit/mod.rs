//! `erase-concept audit`: the pictures of a prompt set, made once, counted, resumable, in parts that can be merged.

pub mod args;
pub(in crate::cli) mod judges;
mod models;
mod options;

pub use options::Options;

use super::ExitCode;
use super::checks::open;
use super::output::Display;
use super::stopwatch::Stopwatch;
use crate::audit::run::{
    Entry, Header, Judges, Limit, Manifest, MetricsRecord, PromptSet, PromptsRecord, ReportSettings, SettingsRecord,
    Shot, Summary, Work, judge, pair_up, read_shards, render, shots, write_results,
};
use crate::checkpoint::{OutputFolder, Precision, write_file_atomic};
use crate::nn::{ComputeDevice, Instructions};
use crate::progress::{Event, Progress};
use crate::sd::{SampleOptions, StableDiffusion};
use crate::{Error, Result};
use judges::{judges, metrics, used};
use models::{Subject, load, subjects};
use options::{MergeOptions, RunOptions};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Makes what is missing, counts, and says so; exit code 1 if a limit is missed.
pub fn run(options: &Options, display: &mut Display) -> Result<ExitCode> {
    match options {
        Options::Run(options) => audit(options, display),
        Options::Merge(options) => merge(options, display),
    }
}

fn audit(options: &RunOptions, display: &mut Display) -> Result<ExitCode> {
    let mut watch = Stopwatch::new(display);
    let compute = open(&options.device, options.tf32, &mut watch)?;
    let subjects = subjects(options, &mut watch)?;
    let frames: Vec<_> = subjects.iter().map(|subject| subject.frame.clone()).collect();
    let set = PromptSet::read(&options.prompts, &options.selection, &frames, options.strict)?;
    let judges = judges(options, &subjects, compute.device(), &mut watch)?;
    let (metrics, reference) = metrics(options, &subjects, &set, &judges, &mut watch)?;
    let header = header(options, &compute, &subjects, &set, &judges, metrics);
    check(&options.limits, &options.report, &header)?;
    notes(&set, &mut watch);
    let (mut manifest, left) = Manifest::open(&options.output, &header)?;
    let again = [
        (left.damaged, "that were made earlier are gone or damaged"),
        (left.unseen, "were not kept, and a detector has to see them"),
    ];
    for (n, why) in again.into_iter().filter(|(n, _)| *n > 0) {
        watch.event(Event::Note(&format!("{n} pictures {why}; they are made again")));
    }
    if let Some((reference, eye)) = reference.as_ref().zip(judges.clip.as_ref()) {
        reference.write(&options.output, eye, &mut watch)?;
    }
    let there: HashSet<_> = manifest.entries().iter().map(Entry::key).collect();
    if !there.is_empty() {
        let what = format!("{} of {} pictures are there already", there.len(), header.pictures());
        watch.event(Event::Note(&what));
    }
    let mut order = HashMap::with_capacity(header.pictures());
    let was_judged = manifest.entries().iter().all(|entry| entry.is_judged(&header));
    let judged = judge(&options.output, &mut manifest, &judges, &mut watch);
    say_if_stopped(judged, &mut watch)?;
    let mut made = !was_judged;
    for (number, subject) in subjects.iter().enumerate() {
        let all = shots(&set, &subject.frame, options.selection.samples, options.shard);
        let key = |shot: &Shot| (subject.record.name.clone(), set.rows[shot.row].case.clone(), shot.sample);
        for shot in &all {
            order.insert(key(shot), order.len());
        }
        let pending: Vec<Shot> = all.iter().filter(|shot| !there.contains(&key(shot))).cloned().collect();
        if pending.is_empty() {
            continue;
        }
        let loaded = load(subject, options, &compute, &mut watch)?;
        say_what_is_cut(&set, &loaded.model, &mut watch)?;
        folders(options, &header, number)?;
        let name = format!("rendering: {}", subject.record.name);
        watch.event(Event::Stage { name: &name, steps: pending.len() });
        let work = Work {
            folder: &options.output,
            header: &header,
            set: &set,
            model: &loaded.model,
            number,
            sampling: SampleOptions {
                sampler: subject.sampler,
                steps: options.steps,
                guidance_scale: options.selection.guidance_scale,
                eta: 0.0,
                size: None,
            },
            batch: options.batch_size.unwrap_or(loaded.model.together()),
            judges: &judges,
        };
        let rendered = render(&work, &pending, &mut manifest, &mut watch);
        say_if_stopped(rendered, &mut watch)?;
        made = true;
    }
    let paired = pair_up(&options.output, &mut manifest, &mut watch);
    say_if_stopped(paired, &mut watch)?;
    let (header, entries) = manifest.complete(&order)?;
    let summary = write_results(&options.output, &header, &entries, &options.limits, &options.report, &mut watch)?;
    if made || !options.output.join("run.json").exists() {
        write_run(&options.output, &watch, options.precision, &compute)?;
    }
    finish(&summary, &header, &options.output, &options.limits, display)
}

/// Says that nothing is lost, if the user interrupts.
fn say_if_stopped(result: Result<()>, progress: &mut dyn Progress) -> Result<()> {
    result.inspect_err(|e| {
        if matches!(e, Error::Interrupted) {
            progress.event(Event::Note("what is finished is kept; the same command goes on from there"));
        }
    })
}

fn merge(options: &MergeOptions, display: &mut Display) -> Result<ExitCode> {
    let mut watch = Stopwatch::new(display);
    let shards = read_shards(&options.shards)?;
    check(&options.limits, &options.report, &shards.header)?;
    shards.notes.iter().for_each(|note| watch.event(Event::Note(note)));
    let folder = OutputFolder::create(&options.output, options.overwrite)?;
    let entries = shards.write(folder.path(), &mut watch)?;
    let summary = write_results(folder.path(), &shards.header, &entries, &options.limits, &options.report, &mut watch)?;
    write_run(folder.path(), &watch, Precision::default(), &ComputeDevice::cpu())?;
    watch.event(Event::Stage { name: "moving the result into place", steps: 1 });
    folder.commit()?;
    watch.event(Event::Step { loss: None });
    finish(&summary, &shards.header, &options.output, &options.limits, display)
}

/// Everything that the pictures depend on.
fn header(
    options: &RunOptions,
    compute: &ComputeDevice,
    subjects: &[Subject],
    set: &PromptSet,
    judges: &Judges,
    metrics: MetricsRecord,
) -> Header {
    Header {
        schema: crate::audit::run::MANIFEST_SCHEMA.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        models: subjects.iter().map(|subject| subject.record.clone()).collect(),
        prompts: PromptsRecord { sha256: set.sha256.clone(), rows: set.rows.len(), skipped: set.skipped.clone() },
        settings: SettingsRecord {
            scheduler: subjects.iter().map(|subject| subject.sampler.to_string()).collect(),
            steps: options.steps,
            dtype: options.precision.name().into(),
            device: compute.name().into(),
            tf32: compute.tf32(),
            instructions: Instructions::used().name().into(),
            selection: options.selection.clone(),
            images: options.images,
        },
        detectors: used(judges),
        metrics,
        shard: options.shard,
    }
}

/// Limits and flags must be about something that is looked for.
fn check(limits: &[Limit], report: &ReportSettings, header: &Header) -> Result<()> {
    limits.iter().try_for_each(|limit| limit.find(header).map(drop))?;
    report.flags(header).map(drop)
}

fn notes(set: &PromptSet, progress: &mut dyn Progress) {
    if let Some(first) = set.skipped.first() {
        let rest = match set.skipped.len() {
            1 => String::new(),
            n => format!(", and {} more", n - 1),
        };
        progress.event(Event::Note(&format!("{}: skipped {first}{rest}", set.name)));
    }
    if set.renamed > 0 {
        let what = format!(
            "{}: {} rows have the number of an earlier one; their pictures are called NUMBER-2, NUMBER-3, ...",
            set.name, set.renamed
        );
        progress.event(Event::Note(&what));
    }
}

/// Says how many prompts are longer than the model takes.
fn say_what_is_cut(set: &PromptSet, model: &StableDiffusion, progress: &mut dyn Progress) -> Result<()> {
    let prompts: Vec<&str> = set.rows.iter().map(|row| row.prompt.as_str()).collect();
    let cut = model.tokenizer.encode(&prompts)?.truncated;
    if let Some((first, lost)) = cut.first() {
        let what = format!(
            "{} of {} prompts are longer than the model takes and are cut at their end; the first, of line {}, loses {lost:?}",
            cut.len(),
            prompts.len(),
            set.rows[*first].line
        );
        progress.event(Event::Note(&what));
    }
    Ok(())
}

/// Makes the folder of a model's pictures.
fn folders(options: &RunOptions, header: &Header, number: usize) -> Result<()> {
    if !options.images {
        return Ok(());
    }
    let folder = header.folder_of(number);
    let folder = options.output.join(folder);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))
}

/// `run.json`: dates, times, memory; the only file that differs between equal audits.
fn write_run(folder: &Path, watch: &Stopwatch<'_>, precision: Precision, compute: &ComputeDevice) -> Result<()> {
    let path = folder.join("run.json");
    let mut text =
        serde_json::to_string_pretty(&watch.record(precision, compute)).map_err(|e| Error::file(&path, e))?;
    text.push('\n');
    write_file_atomic(&path, text.as_bytes())
}

fn finish(
    summary: &Summary,
    header: &Header,
    output: &Path,
    limits: &[Limit],
    display: &mut Display,
) -> Result<ExitCode> {
    let missed = summary.missed(header, limits)?;
    let output = output.display().to_string();
    let mut text = summary.text();
    text.push_str(&format!("\nresult: {output} (audit.json, audit.csv, rates.csv, report.html, manifest.jsonl"));
    text.push_str(if header.settings.images { ", images)" } else { "; no picture was written)" });
    for line in &missed {
        text.push_str(&format!("\nmissed: {line}"));
    }
    let value = json!({ "output": output, "missed": missed, "audit": summary });
    display.result(&value, &text);
    Ok(if missed.is_empty() { ExitCode::Done } else { ExitCode::LimitMissed })
}
