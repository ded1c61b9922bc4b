//! `erase-concept export`: a model, erased or not, in another format.

use super::ExitCode;
use super::checks::{at_place, model_name};
use super::output::Display;
use crate::checkpoint::{
    About, Copying, Format, License, ModelFiles, OutputFolder, base_sha256, erase_metadata, lora, modelspec, patch,
    save_edited_as, write_edited_single_file,
};
use crate::hub::Lookup;
use crate::progress::{Event, Progress};
use crate::{Error, Result, hub};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to write.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The model's name, folder or file.
    pub model: String,
    /// How it is looked for.
    pub lookup: Lookup,
    /// What it becomes.
    pub format: Format,
    /// Where that goes: a folder, or a file.
    pub output: PathBuf,
    /// Whether what is there is replaced.
    pub overwrite: bool,
    /// How files of a folder get there.
    pub copying: Copying,
    /// What it was made from, for a patch or a LoRA.
    pub base: Option<String>,
    /// How a LoRA is made.
    pub lora: lora::Options,
}

/// Writes the model.
pub fn run(options: &ExportOptions, display: &mut Display) -> Result<ExitCode> {
    let hub::Found { files, origin } = hub::find(&options.model, &options.lookup, display)?;
    files.notes().iter().for_each(|note| display.event(Event::Note(note)));
    let (nothing, metadata) = (BTreeMap::new(), erase_metadata(&files)?);
    let mut said = None;
    let left_out = match options.format {
        Format::Patch | Format::Lora => {
            at_place(&options.output, options.overwrite, "this format is one file, name it")?;
            let base = base(options, &metadata, display)?;
            display.event(Event::Stage { name: "comparing with the base", steps: 1 });
            said = Some(match options.format {
                Format::Patch => {
                    let summary = patch::create(&base, &files, &options.output, &metadata)?;
                    (json!(summary), summary.line())
                }
                _ => {
                    let path = &options.output;
                    let summary = lora::create(&base, &files, path, &options.lora, &metadata, display)?;
                    (json!(summary), format!("{}\n{}", summary.table(), summary.line()))
                }
            });
            Vec::new()
        }
        Format::Diffusers => {
            let folder = OutputFolder::create(&options.output, options.overwrite)?;
            display.event(Event::Stage { name: "writing the model", steps: 1 });
            let left_out = save_edited_as(&files, &nothing, folder.path(), &metadata, options.copying)?;
            folder.commit()?;
            left_out
        }
        Format::SingleFile => {
            at_place(&options.output, options.overwrite, "this format is one file, name it")?;
            display.event(Event::Stage { name: "writing the model", steps: 1 });
            let about = About::new(&model_name(&options.model), &metadata, License::of(&files)?.as_ref());
            let mut all = modelspec(&files, &about)?;
            all.extend(metadata);
            write_edited_single_file(&files, &nothing, &options.output, &all)?
        }
    };
    display.event(Event::Step { loss: None });
    if !left_out.is_empty() {
        display.event(Event::Note(&format!("left out, as no part of the model: {}", left_out.join(", "))));
    }
    let (output, format) = (options.output.display().to_string(), options.format.name());
    let mut value =
        json!({ "output": output, "format": format, "model": options.model, "hub": origin, "left_out": left_out });
    let mut text = String::new();
    if let Some((summary, line)) = said {
        value["summary"] = summary;
        text = format!("{line}\n");
    }
    display.result(&value, &format!("{text}result: {output} ({format})"));
    Ok(ExitCode::Done)
}

/// What the model was made from. Where the model says which that was, no other will do.
fn base(options: &ExportOptions, metadata: &BTreeMap<String, String>, display: &mut Display) -> Result<ModelFiles> {
    let Some(name) = &options.base else {
        let what = format!(
            "--format {} holds what changed: say what {} was made from with --base MODEL",
            options.format, options.model
        );
        return Err(Error::usage(what));
    };
    let lookup = Lookup { revision: None, ..options.lookup.clone() };
    let files = hub::find(name, &lookup, display)?.files;
    if let Some(expected) = metadata.get("erase.base_sha256") {
        let found = base_sha256(&files)?;
        if found != *expected {
            let what = format!(
                "--base {name} is not what {} was made from: its hash is {found}, that of the base {expected}",
                options.model
            );
            return Err(Error::usage(what));
        }
    }
    Ok(files)
}
