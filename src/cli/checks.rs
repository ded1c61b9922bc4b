//! What single flags may say, and what is said where they say something else.

use super::args::{LoraArgs, RunArgs};
use crate::audit::Labels;
use crate::checkpoint::{Format, Precision, lora, sweep_files};
use crate::erase::settings::MAX_COUNT;
use crate::nn::{ComputeDevice, Devices};
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use std::path::Path;

/// What `--dtype` says.
pub(super) fn precision(args: &RunArgs) -> Result<Precision> {
    args.dtype.parse().map_err(|error| Error::usage(format!("--dtype {error} (the result has the model's own type)")))
}

/// What `--device` says, if this build can do it.
pub(super) fn device(args: &RunArgs) -> Result<Devices> {
    let choice: Devices = args.device.parse().map_err(|error| Error::usage(format!("--device {error}")))?;
    choice.check()?;
    Ok(choice)
}

/// Opens the device (or devices) of a job, and says which it is unless that is plain.
pub(super) fn open(choice: &Devices, tf32: bool, progress: &mut dyn Progress) -> Result<ComputeDevice> {
    let device = choice.open(tf32)?;
    if let Some(note) = device.note() {
        progress.event(Event::Note(note));
    }
    if !device.device().is_cpu() {
        let times = if device.count() > 1 { format!("{} x ", device.count()) } else { String::new() };
        progress.event(Event::Note(&format!("computing on {times}{}", device.name())));
    }
    Ok(device)
}

/// The last part of a model's path or id (of a single file without its ending), for file names and pictures' metadata.
pub fn model_name(model: &str) -> String {
    let path = Path::new(model);
    let single = path.extension().is_some_and(|ending| ending == "safetensors" || ending == "ckpt") && !path.is_dir();
    let name = if single { path.file_stem() } else { path.file_name() };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.or_else(|| {
        let folder = std::fs::canonicalize(model).ok()?;
        Some(folder.file_name()?.to_string_lossy().into_owned())
    })
    .unwrap_or_else(|| "model".into())
    .replace(':', "-") // a drive's letter to some systems
}

/// Refuses a place where no file can be written (`is_file` says why it is one), and cleans up there what killed processes left.
pub(super) fn at_place(output: &Path, overwrite: bool, is_file: &str) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::file(
            folder,
            "is no folder; make it first (there is no such folder yet), or choose another --output",
        ));
    }
    match std::fs::symlink_metadata(output) {
        Ok(_) if output.is_dir() => return Err(Error::file(output, format!("is a folder; {is_file}"))),
        Ok(_) if !overwrite => {
            return Err(Error::file(output, "is there already; choose another name, or pass --overwrite"));
        }
        _ => {}
    }
    sweep_files(folder)
}

/// What `--rank`, `--strength` and `--half` say.
pub(super) fn lora(args: &LoraArgs) -> Result<lora::Options> {
    let rank = args.rank.parse().map_err(|error| Error::usage(format!("--rank: {error}")))?;
    let options = lora::Options { rank, strength: args.strength, half: args.half };
    options.check()?;
    Ok(options)
}

/// What `--format` says.
pub(super) fn format(name: &str) -> Result<Format> {
    name.parse().map_err(|error| Error::usage(format!("--format: {error}")))
}

/// What `--label` and `--label-template` say.
pub(super) fn labels(detectors: &[String], labels: &[String], template: Option<&str>) -> Result<Option<Labels>> {
    match (labels.is_empty(), detectors.is_empty()) {
        (true, _) => Ok(None),
        (false, true) => {
            Err(Error::usage("--label is for a CLIP: name one with --detector, such as --detector demo/clip"))
        }
        (false, false) => {
            let labels = Labels::new(labels.to_vec());
            Ok(Some(Labels { template: template.map_or(labels.template, String::from), labels: labels.labels }))
        }
    }
}

pub(super) fn at_least_one(flag: &str, value: usize) -> Result<usize> {
    match value {
        0 => Err(Error::usage(format!("{flag} must be at least 1"))),
        1..=MAX_COUNT => Ok(value),
        _ => Err(Error::usage(format!("{flag} {value} is more than {MAX_COUNT}"))),
    }
}

/// Refuses an output that would replace what the job reads or keeps.
pub(super) fn check_output(output: &Path, overwrite: bool, others: [(&str, Option<&Path>); 2]) -> Result<()> {
    let Ok(real) = std::fs::canonicalize(output) else { return Ok(()) };
    for (flag, other) in others {
        let inside =
            other.and_then(|path| std::fs::canonicalize(path).ok()).is_some_and(|path| path.starts_with(&real));
        if overwrite && inside {
            return Err(Error::usage(format!(
                "--output {} holds what {flag} names, which would be replaced; choose another --output",
                output.display()
            )));
        }
    }
    Ok(())
}

pub(super) fn fraction(flag: &str, value: Option<f64>) -> Result<Option<f64>> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            Err(Error::usage(format!("{flag} {value} must lie between 0 and 1 (0.05 means 5 %)")))
        }
        _ => Ok(value),
    }
}
