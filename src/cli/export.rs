//! `erase-concept export`: a model, erased or not, in another format.

use super::ExitCode;
use super::checks::{at_place, model_name};
use super::output::Display;
use crate::checkpoint::{
    About, Copying, Format, License, OutputFolder, erase_metadata, modelspec, save_edited_as, write_edited_single_file,
};
use crate::hub::Lookup;
use crate::progress::{Event, Progress};
use crate::{Result, hub};
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
}

/// Writes the model.
pub fn run(options: &ExportOptions, display: &mut Display) -> Result<ExitCode> {
    let hub::Found { files, origin } = hub::find(&options.model, &options.lookup, display)?;
    files.notes().iter().for_each(|note| display.event(Event::Note(note)));
    let (nothing, metadata) = (BTreeMap::new(), erase_metadata(&files)?);
    let left_out = match options.format {
        Format::Diffusers => {
            let folder = OutputFolder::create(&options.output, options.overwrite)?;
            display.event(Event::Stage { name: "writing the model", steps: 1 });
            let left_out = save_edited_as(&files, &nothing, folder.path(), &metadata, options.copying)?;
            folder.commit()?;
            left_out
        }
        Format::SingleFile => {
            at_place(&options.output, options.overwrite)?;
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
    let value =
        json!({ "output": output, "format": format, "model": options.model, "hub": origin, "left_out": left_out });
    display.result(&value, &format!("result: {output} ({format})"));
    Ok(ExitCode::Done)
}
