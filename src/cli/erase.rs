//! The erase job: model and concept in, erased model and report out.

use super::ExitCode;
use super::cache::Cache;
use super::checks::{model_name, open};
use super::evidence::{Evidence, write_json};
use super::options::EraseOptions;
use super::output::Display;
use super::outputs::{Outputs, formats, in_words};
use super::settings::settings;
use super::stopwatch::Stopwatch;
use super::training_pictures;
use crate::audit::Card;
use crate::checkpoint::{Format, License, LoadedModel, Loading, ModelFiles, OutputFolder, load_model_on, write_file};
use crate::erase::{self, Plan, Settings};
use crate::nn::ComputeDevice;
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Result, audit, hub};
use serde_json::json;

/// Runs the job; everything that can be refused is refused before the work begins.
pub fn run(options: &EraseOptions, display: &mut Display) -> Result<ExitCode> {
    let settings = settings(options)?;
    let compute = &open(&options.device, options.tf32, display)?;
    let hub::Found { files, origin } = hub::find(&options.model, &options.lookup, display)?;
    files.notes().iter().for_each(|note| display.event(Event::Note(note)));
    let options = &pinned(options, origin.as_ref(), compute);
    display.event(Event::Stage { name: "loading the model", steps: 1 });
    let exact = |name: &str| settings.changes(name);
    let loading = Loading { precision: options.precision, exact: &exact, beside: None, device: compute.device() };
    let loaded = load_model_on(&files, &loading, &compute.further())?;
    display.event(Event::Step { loss: None });
    let how = erase::plan(&loaded.model, &settings, options.budget)?;
    let evidence = Evidence::new(options, compute, &files, &loaded, origin.clone())?;
    say_what_is_cut(options, &loaded, display)?;
    if options.dry_run {
        let formats = formats(options, &files);
        return plan(options, &settings, &loaded, &evidence, how, &formats, display);
    }
    check_interrupted()?;
    // only now, so that what is refused leaves nothing behind
    let folder = OutputFolder::create(&options.output, options.overwrite)?;
    let cache = Cache::open(options, compute, &loaded, &settings, how)?;
    work(options, &settings, &files, &loaded, &evidence, &cache, folder, display)
}

/// The same job with the commit that the revision stood for and the device that was taken, so that the command in the report gives
/// it again.
fn pinned(options: &EraseOptions, origin: Option<&hub::Origin>, compute: &ComputeDevice) -> EraseOptions {
    let mut options = options.clone();
    options.device = compute.choice().into();
    options.budget.gpu = compute.planned_memory();
    if let Some(origin) = origin {
        options.lookup.revision = Some(origin.commit.clone());
    }
    options
}

#[expect(clippy::too_many_arguments, reason = "everything that a job has")]
fn work(
    options: &EraseOptions,
    settings: &Settings,
    files: &ModelFiles,
    loaded: &LoadedModel,
    evidence: &Evidence<'_>,
    cache: &Cache<'_>,
    folder: OutputFolder,
    display: &mut Display,
) -> Result<ExitCode> {
    let mut watch = Stopwatch::new(display);
    let data = cache.data(&mut watch)?;
    if options.verify.keep_images {
        training_pictures::write(folder.path(), loaded, &options.model, &data, settings, &mut watch)?;
    }
    let mut outcome = cache.outcome(&data, &mut watch)?;
    drop(data);
    let (license, formats) = (License::of(files)?, formats(options, files));
    let changed = std::mem::take(&mut outcome.changed);
    let (license, changed) = (license.as_ref(), &changed);
    let outputs = Outputs { options, files, loaded, license, changed, formats: &formats };
    let saved = outputs.write(folder.path(), &mut watch)?;
    let listed = outputs.list(saved.lora.as_ref());
    let before = evidence.look(&loaded.model, "before", folder.path(), &mut watch)?;
    // what is counted is what was written
    let exact = |name: &str| settings.changes(name);
    let loading = Loading {
        precision: options.precision,
        exact: &exact,
        beside: Some((files, loaded)),
        device: loaded.model.device(),
    };
    let written = load_model_on(&saved.shown, &loading, &evidence.compute().further())?;
    let after = evidence.look(&written.model, "after", folder.path(), &mut watch)?;
    let moves = audit::moves(&before, &after);
    let report = evidence.report(settings, loaded, outcome, &before, &after, &moves);
    evidence.write(folder.path(), &report, loaded, &before, &after, &moves)?;
    let card = Card {
        report: &report,
        concept: &options.concept,
        model: &model_name(&options.model),
        license,
        files: &listed,
    };
    write_file(&folder.path().join("README.md"), card.markdown().as_bytes())?;
    let lora = saved.lora.clone();
    let patch = outputs.finish(saved, folder.path(), &mut watch)?;
    write_json(&folder.path().join("run.json"), &watch.record(options.precision, evidence.compute()))?;
    watch.event(Event::Stage { name: "moving the result into place", steps: 1 });
    folder.commit()?;
    watch.event(Event::Step { loss: None });
    let output = options.output.display().to_string();
    let missed = evidence.missed(&report);
    let mut text = format!(
        "{}\nresult: {output} ({}, report.html, grid.png, report.json)",
        report.summary(&options.concept),
        in_words(&formats)
    );
    if let Some(patch) = &patch {
        text.push_str(&format!("\n{}", patch.line()));
    }
    if let Some(lora) = &lora {
        text.push_str(&format!("\n{}", lora.line()));
    }
    for line in &missed {
        text.push_str(&format!("\nmissed: {line}"));
    }
    let formats: Vec<&str> = formats.iter().map(|format| format.name()).collect();
    display.result(&json!({ "output": output, "formats": formats, "patch": patch, "lora": lora, "missed": missed, "report": report }), &text);
    Ok(if missed.is_empty() { ExitCode::Done } else { ExitCode::LimitMissed })
}

fn plan(
    options: &EraseOptions,
    settings: &Settings,
    loaded: &LoadedModel,
    evidence: &Evidence<'_>,
    how: Plan,
    formats: &[Format],
    display: &mut Display,
) -> Result<ExitCode> {
    let (concept, output) = (&options.concept, options.output.display().to_string());
    let [pictures, synonyms, rest] = evidence.pictures();
    let mut value = json!({
        "dry_run": true,
        "concept": concept.name,
        "model": options.model,
        "hub": evidence.origin(),
        "base_sha256": loaded.base_sha256,
        "preset": options.preset,
        "seed": options.seed,
        "dtype": options.precision.name(),
        "device": evidence.compute().name(),
        "tf32": evidence.compute().tf32(),
        "settings": settings,
        "output": output,
        "formats": formats.iter().map(|format| format.name()).collect::<Vec<_>>(),
        "memory_bytes": how.memory,
        "checkpointing": how.thrift.checkpointing,
        "single_rows": how.thrift.single_rows,
    });
    if !concept.parts.is_empty() {
        value["concepts"] = concept.parts.iter().map(|part| part.name.as_str()).collect();
    }
    if !concept.preserve.is_empty() {
        value["preserve"] = concept.preserve.clone().into();
    }
    let preserve = match concept.preserve.len() {
        0 => String::new(),
        n => format!("\n  preserved by name: {n} ({} training prompts for everything else)", concept.retain.len()),
    };
    let text = format!(
        "would erase '{}' ({}) from {} with preset {}, seed {}:\n  {} forget and {} retain latents in {} steps each, {} \
         score batches, {} repair steps{preserve}\n  {pictures} + {synonyms} + {rest} verification pictures before and after\n  about {:.1} \
         GiB of {}memory{}{}\n  result in {output}: {}",
        concept.name,
        concept.kind,
        options.model,
        options.preset,
        options.seed,
        settings.data.forget,
        settings.data.retain,
        settings.data.steps,
        settings.score_batches,
        settings.repair_steps,
        how.memory as f64 / f64::from(1 << 30),
        if loaded.model.device().is_cpu() { "" } else { "the GPU's " },
        if how.thrift.single_rows { ", rows of a batch one by one" } else { "" },
        if how.thrift.checkpointing { ", blocks computed again in the backward pass" } else { "" },
        in_words(formats),
    );
    display.result(&value, &text);
    Ok(ExitCode::Done)
}

/// Prompts that the text encoder cannot take whole are cut, and said.
pub fn say_what_is_cut(options: &EraseOptions, loaded: &LoadedModel, display: &mut Display) -> Result<()> {
    let c = &options.concept;
    let kept = c.verify.retain.iter().map(|retain| &retain.prompt);
    let kept = kept.chain(c.verify.preserve.iter().map(|preserve| &preserve.prompt));
    let training = c.forget.iter().chain(&c.anchors).chain(&c.retain);
    let texts: Vec<&String> = training.chain(&c.verify.forget).chain(&c.verify.synonyms).chain(kept).collect();
    let cut = loaded.model.tokenizer.encode(&texts)?.truncated;
    if let Some((first, lost)) = cut.first() {
        let note = format!(
            "{} of the concept's prompts are longer than the model takes and are cut, the first {:?} before {lost:?}",
            cut.len(),
            texts[*first]
        );
        display.event(Event::Note(&note));
    }
    Ok(())
}
