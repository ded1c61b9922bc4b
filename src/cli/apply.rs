//! `erase-concept apply`: a patch to the model that it was made from, or back.

use super::ExitCode;
use super::checks::{at_place, check_output};
use super::output::Display;
use crate::checkpoint::inspect::{Recognised, recognise_file};
use crate::checkpoint::patch::{self, Applied};
use crate::checkpoint::{ModelFiles, OutputFolder, lora, save_edited, write_edited_single_file};
use crate::hub::{Found, Lookup, Origin};
use crate::progress::{Event, Progress};
use crate::{Error, Result, hub};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why the result of a single file cannot be a folder.
const ONE_FILE: &str = "what is made of a single file is one too, choose a file's name";

/// What to apply to what.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// The model's name, folder or file.
    pub model: String,
    /// How it is looked for.
    pub lookup: Lookup,
    /// The patch.
    pub change: PathBuf,
    /// Where the result goes.
    pub output: PathBuf,
    /// Whether what is there is replaced.
    pub overwrite: bool,
    /// Whether the base is made of the result.
    pub reverse: bool,
    /// What a LoRA's change is multiplied by.
    pub strength: f64,
}

/// What a file is that is applied to a model.
enum Kind {
    Patch,
    Lora,
}

/// Applies the file to the model.
pub fn run(options: &ApplyOptions, display: &mut Display) -> Result<ExitCode> {
    check_order(options)?;
    let kind = kind(&options.change)?;
    let Found { files, origin } = hub::find(&options.model, &options.lookup, display).map_err(without_flag)?;
    let output = options.output.as_path();
    let others = [("MODEL", Some(Path::new(&options.model))), ("PATCH", Some(options.change.as_path()))];
    check_output(output, options.overwrite, others)?;
    match kind {
        Kind::Patch if options.strength != 1.0 => {
            Err(Error::usage("--strength is for a LoRA; a patch is exact, or not applied"))
        }
        Kind::Patch => apply_patch(options, &files, origin.as_ref(), display),
        Kind::Lora if options.reverse => Err(Error::usage(
            "--reverse is for a patch; a LoRA in a model cannot be taken out to the last bit, keep the base",
        )),
        Kind::Lora => apply_lora(options, &files, origin.as_ref(), display),
    }
}

fn apply_patch(
    options: &ApplyOptions,
    files: &ModelFiles,
    origin: Option<&Origin>,
    display: &mut Display,
) -> Result<ExitCode> {
    let run = |into: &Path, display: &mut Display| match options.reverse {
        true => patch::reverse(files, &options.change, into, display),
        false => patch::apply(files, &options.change, into, display),
    };
    let output = options.output.as_path();
    let applied = match files {
        ModelFiles::Single(_) => {
            at_place(output, options.overwrite, ONE_FILE)?;
            run(output, display)?
        }
        ModelFiles::Folder(_) | ModelFiles::Embedded { .. } => {
            let folder = OutputFolder::create(output, options.overwrite)?;
            let applied = run(folder.path(), display)?;
            display.event(Event::Stage { name: "moving the result into place", steps: 1 });
            folder.commit()?;
            display.event(Event::Step { loss: None });
            applied
        }
    };
    report(options, &applied, origin, display);
    Ok(ExitCode::Done)
}

/// Merges a LoRA into the model: as the model lies on disk, its metadata with those of the edit.
fn apply_lora(
    options: &ApplyOptions,
    files: &ModelFiles,
    origin: Option<&Origin>,
    display: &mut Display,
) -> Result<ExitCode> {
    let output = options.output.as_path();
    display.event(Event::Stage { name: "merging the LoRA", steps: 1 });
    let changed = lora::apply(files, &options.change, options.strength)?;
    let metadata = recognise_file(&options.change)?.1;
    let metadata: BTreeMap<String, String> =
        metadata.into_iter().filter(|(key, _)| key.starts_with("erase.")).collect();
    match files {
        ModelFiles::Single(_) => {
            at_place(output, options.overwrite, ONE_FILE)?;
            write_edited_single_file(files, &changed, output, &metadata)?;
        }
        ModelFiles::Folder(_) | ModelFiles::Embedded { .. } => {
            let folder = OutputFolder::create(output, options.overwrite)?;
            save_edited(files, &changed, folder.path(), &metadata)?;
            folder.commit()?;
        }
    }
    display.event(Event::Step { loss: None });
    let output = output.display().to_string();
    let value = json!({
        "output": output, "kind": "lora", "strength": options.strength, "hub": origin, "changed_tensors": changed.len(),
    });
    let (n, s) = (changed.len(), if changed.len() == 1 { "" } else { "s" });
    display.result(&value, &format!("the model with the LoRA merged in: {output} ({n} tensor{s} changed)"));
    Ok(ExitCode::Done)
}

fn report(options: &ApplyOptions, applied: &Applied, origin: Option<&Origin>, display: &mut Display) {
    let output = options.output.display().to_string();
    let value = json!({
        "output": output,
        "kind": "patch",
        "reverse": options.reverse,
        "hub": origin,
        "sha256": applied.sha256,
        "files": applied.files,
        "changed_files": applied.changed_files,
    });
    let what = if options.reverse { "the patch's base, as it was" } else { "the patched model" };
    let (files, changed, hash) = (applied.files, applied.changed_files, &applied.sha256);
    let files = if files == 1 { "1 file".into() } else { format!("{files} files, {changed} of them changed") };
    display.result(&value, &format!("{what}: {output} ({files})\nmodel hash: {hash}"));
}

/// What is to be applied, by its content.
fn kind(path: &Path) -> Result<Kind> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; apply takes a file as its second argument: a patch or a LoRA"));
    }
    let (Recognised { what, .. }, metadata) = recognise_file(path)?;
    if patch::is_patch(&metadata) {
        return Ok(Kind::Patch);
    }
    if what.starts_with("LoRA") {
        return Ok(Kind::Lora);
    }
    let what = format!("is neither a patch nor a LoRA (it is this: {what}); apply takes a model and then one of these");
    Err(Error::file(path, what))
}

/// A patch in the model's place is a slip.
fn check_order(options: &ApplyOptions) -> Result<()> {
    let first = Path::new(&options.model);
    match recognise_file(first) {
        Ok((_, metadata)) if first.is_file() && patch::is_patch(&metadata) => Err(Error::file(
            first,
            "is a patch; name the model first, and then the patch: erase-concept apply MODEL PATCH",
        )),
        _ => Ok(()),
    }
}

/// There the model is a flag.
fn without_flag(error: Error) -> Error {
    match error {
        Error::Usage(what) => Error::Usage(what.strip_prefix("--model ").map(str::to_string).unwrap_or(what)),
        other => other,
    }
}
