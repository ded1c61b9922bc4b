//! What looks at an audit's pictures and what is computed of them: found and opened before anything is drawn.

use super::models::Subject;
use super::options::RunOptions;
use crate::audit::run::{
    Against, ClipEye, Counter, Judges, MetricsRecord, PromptSet, Reference, UsedClip, UsedDetector, group_column,
};
use crate::audit::{ClassifierDetector, ClipModel, Detector, DetectorFiles, Labels, open_all};
use crate::checkpoint::{ModelFiles, load_classifier_on};
use crate::hub::Lookup;
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use candle_core::Device;
use std::path::Path;

/// The detector that is taken where none is named: the classifier that lies beside the first model that has one.
const BESIDE: &str = "beside";
/// What that one is called in entries and tables.
const CLASSIFIER: &str = "classifier";

/// Opens every detector, and the CLIP of the metrics.
pub fn judges(
    options: &RunOptions,
    subjects: &[Subject],
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Judges> {
    let models: Vec<&ModelFiles> = subjects.iter().map(|subject| &subject.files).collect();
    let found = counters(&options.detectors, options.labels.as_ref(), &models, &options.lookup, device, progress)?;
    let found = match (found.is_empty(), options.detectors.is_empty()) {
        (true, true) => beside(&models, device)?.map(Opened::counter).into_iter().collect(),
        _ => found,
    };
    let clip = options.clip.as_ref().map(|name| eye(name, options, device, progress)).transpose()?;
    Ok(Judges { counters: found, clip })
}

/// The detectors of these names; `beside` is the classifier that lies beside the first of the models that has one.
///
/// # Errors
/// As [`open_all`], and if no model has a classifier.
pub fn counters(
    names: &[String],
    labels: Option<&Labels>,
    models: &[&ModelFiles],
    lookup: &Lookup,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Vec<Counter>> {
    let others: Vec<String> = names.iter().filter(|name| *name != BESIDE).cloned().collect();
    if !others.is_empty() {
        progress.event(Event::Stage { name: "opening detectors", steps: 1 });
    }
    let mut opened = open_all(&others, labels, &for_detectors(lookup), device, progress)?.into_iter();
    let mut counters: Vec<Counter> = Vec::with_capacity(names.len());
    for name in names {
        let found = match name.as_str() {
            BESIDE => beside(models, device)?,
            name => opened.next().map(|detector| {
                let what = local_name(name, detector.name());
                Opened { key: key(name), name: what, detector }
            }),
        };
        let Some(found) = found else {
            let what = "--detector beside: none of the models has a classifier beside it; name another detector";
            return Err(Error::usage(what));
        };
        let key = free_key(found.key.clone(), &counters);
        counters.push(Opened { key, ..found }.counter());
    }
    Ok(counters)
}

/// `--revision` is about the models.
fn for_detectors(lookup: &Lookup) -> Lookup {
    Lookup { revision: None, ..lookup.clone() }
}

/// A detector that was opened.
struct Opened {
    key: String,
    name: String,
    detector: Box<dyn Detector + Send + Sync>,
}

impl Opened {
    fn counter(self) -> Counter {
        Counter { key: self.key, name: self.name, detector: self.detector }
    }
}

fn beside(models: &[&ModelFiles], device: &Device) -> Result<Option<Opened>> {
    for files in models {
        if let Some((classifier, sha256)) = load_classifier_on(files, device)? {
            let detector = ClassifierDetector::beside(classifier, sha256);
            let name = detector.name.clone();
            return Ok(Some(Opened { key: CLASSIFIER.into(), name, detector: Box::new(detector) }));
        }
    }
    Ok(None)
}

fn eye(name: &str, options: &RunOptions, device: &Device, progress: &mut dyn Progress) -> Result<ClipEye> {
    let files = DetectorFiles::find(name, &for_detectors(&options.lookup), progress)?.on(device);
    if !files.is_clip()? {
        let what = format!("--clip {name}: is no CLIP; name one, such as openai/clip-vit-base-patch32");
        return Err(Error::usage(what));
    }
    let model = ClipModel::open(&files)?;
    let used = UsedClip { name: local_name(name, model.name()), sha256: model.sha256().to_string() };
    Ok(ClipEye { model, used })
}

/// The last part of a name, without `.onnx`: what a detector is called in entries and tables.
fn key(name: &str) -> String {
    let path = Path::new(name);
    let is_onnx = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"));
    let last = if is_onnx { path.file_stem() } else { path.file_name() };
    last.map_or_else(|| "detector".into(), |last| last.to_string_lossy().into_owned())
}

/// The key, or the next free one.
fn free_key(key: String, taken: &[Counter]) -> String {
    let free = |key: &String| taken.iter().all(|other| other.key != *key);
    let mut keys = std::iter::once(key.clone()).chain((2u64..).map(|n| format!("{key}-{n}")));
    keys.find(free).unwrap_or_default() // there is always one
}

/// What something is called in results: where it lies on this machine does not matter.
fn local_name(asked: &str, name: &str) -> String {
    let path = Path::new(asked);
    if path.is_file() {
        return name.to_string(); // what is in a file does not say where it lies
    }
    if asked.starts_with("demo/") && !path.exists() {
        return asked.to_string();
    }
    let last = path.exists().then(|| path.canonicalize().ok()).flatten();
    let last = last.as_deref().and_then(Path::file_name).map(|last| last.to_string_lossy().into_owned());
    last.unwrap_or_else(|| name.to_string())
}

/// What the manifest says of the judges.
pub fn used(judges: &Judges) -> Vec<UsedDetector> {
    judges.counters.iter().map(Counter::used).collect()
}

/// What is to be computed, and the folder of pictures to compare with.
///
/// # Errors
/// If what is asked for makes no sense together; the message names the flag.
pub fn metrics(
    options: &RunOptions,
    subjects: &[Subject],
    set: &PromptSet,
    judges: &Judges,
    progress: &mut dyn Progress,
) -> Result<(MetricsRecord, Option<Reference>)> {
    let mut reference = None;
    let against = match &options.against {
        None => None,
        Some(name) if subjects.iter().any(|subject| subject.record.name == *name) => {
            if subjects.len() == 1 {
                let what = format!("--against {name}: it is the only model; name the other one with --model too");
                return Err(Error::usage(what));
            }
            Some(Against::Model(name.clone()))
        }
        Some(name) if Path::new(name).is_dir() => {
            if judges.clip.is_none() {
                let what =
                    format!("--against {name}: pictures of a folder are compared by a CLIP; name it with --clip");
                return Err(Error::usage(what));
            }
            let found = Reference::find(Path::new(name), progress)?;
            let against = found.against();
            reference = Some(found);
            Some(against)
        }
        Some(name) => {
            let names: Vec<&str> = subjects.iter().map(|subject| subject.record.name.as_str()).collect();
            let what = format!("--against {name}: is neither a folder nor one of the models ({})", names.join(", "));
            return Err(Error::usage(what));
        }
    };
    let clip = judges.clip.as_ref().map(|eye| eye.used.clone());
    let record = MetricsRecord { clip, against, targets: targets(options, judges)?, group: group(options, set)? };
    Ok((record, reference))
}

/// Targets must be labels of one axis that one detector knows.
fn targets(options: &RunOptions, judges: &Judges) -> Result<Vec<String>> {
    let axis = |label: &String| label.split_once(':').map_or(String::new(), |(axis, _)| axis.trim().to_string());
    let known = |label: &String| judges.counters.iter().any(|counter| counter.detector.labels().contains(label));
    for target in &options.targets {
        if !known(target) {
            let all = judges.counters.iter().flat_map(|counter| counter.detector.labels());
            let all: Vec<&str> = all.map(String::as_str).take(12).collect();
            let what = format!("--target {target}: no detector knows it; they know {}, ...", all.join(", "));
            return Err(Error::usage(what));
        }
    }
    match &options.targets[..] {
        [first, others @ ..] => match others.iter().find(|other| axis(other) != axis(first)) {
            Some(other) => {
                Err(Error::usage(format!("--target {other}: is of another axis than {first:?}; name labels of one")))
            }
            None => Ok(options.targets.clone()),
        },
        [] => Ok(Vec::new()),
    }
}

fn group(options: &RunOptions, set: &PromptSet) -> Result<Option<String>> {
    let columns = set.rows.iter().flat_map(|row| row.columns.keys());
    let Some(wanted) = &options.group else { return Ok(group_column(columns)) };
    match columns.clone().any(|column| column == wanted) {
        true => Ok(Some(wanted.clone())),
        false => {
            let mut all: Vec<&String> = columns.collect();
            all.sort();
            all.dedup();
            let all: Vec<&str> = all.into_iter().map(String::as_str).collect();
            Err(Error::usage(format!("--group {wanted}: the prompt set has no such column; it has {}", all.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_last_part_of_a_name() {
        for (name, expected) in [
            ("demo/clip", "clip"),
            ("openai/clip-vit-base-patch32", "clip-vit-base-patch32"),
            ("/tmp/nudenet/320n.onnx", "320n"),
            ("a/b.ONNX", "b"),
            ("model/safety_checker/", "safety_checker"),
        ] {
            assert_eq!(key(name), expected);
        }
    }
}
