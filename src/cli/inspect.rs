//! `erase-concept inspect`: what a model or a file of weights is, and what differs from its base.

use super::ExitCode;
use super::checks::model_name;
use super::document::{bytes, print, print_json, table, thousands};
use super::output::Display;
use crate::audit::by_block;
use crate::audit::html::changes;
use crate::checkpoint::inspect::{Count, Difference, FileFacts, Weights};
use crate::checkpoint::{ERASED, ModelFiles, SingleFile, base_sha256, write_file_atomic};
use crate::progress::{Event, Progress, Silent};
use crate::{Error, Result, hub};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the layout of `--json`; rises when a field changes its meaning or goes away.
const SCHEMA: &str = "erase-concept.inspect/1";
/// Bytes that one step of the progress bar stands for.
const STEP: u64 = 64 << 20;
/// Smaller files are read before anybody wonders.
const WORTH_A_BAR: u64 = 256 << 20;
/// Changed tensors that are listed in text; all are in the JSON document.
const LISTED: usize = 10;

/// What to look at.
#[derive(Debug, Clone)]
pub struct InspectOptions {
    /// A folder, a file or `demo`.
    pub what: PathBuf,
    /// What it is compared with.
    pub base: Option<PathBuf>,
    /// Where a picture of what differs goes.
    pub picture: Option<PathBuf>,
    /// One JSON document instead of text.
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    path: String,
    /// In words.
    what: String,
    /// All files of weights together.
    bytes: u64,
    count: Count,
    /// This program's hash of a model's folder: what reports name as the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_sha256: Option<String>,
    /// Classes of a folder's components.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<String, String>,
    files: Vec<FileFacts>,
    /// Files in the folder that are not part of the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
    /// How it was made, if this program made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    erased: Option<Erased>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
}

/// What the files beside a result say.
#[derive(Debug, Default, Serialize)]
struct Erased {
    /// The weights' own metadata: `erase.*`.
    metadata: BTreeMap<String, String>,
    /// Of `report.json`.
    report: BTreeMap<&'static str, Value>,
    /// Of `run.json`.
    run: BTreeMap<&'static str, Value>,
}

/// Looks at the model, and at its base if there is one.
pub fn run(options: &InspectOptions, display: &mut Display) -> Result<ExitCode> {
    let report = match options.json {
        true => examine(options, &mut Silent)?,
        false => examine(options, display)?,
    };
    display.finish();
    if let (Some(path), Some(difference)) = (&options.picture, &report.difference) {
        draw(path, &options.what, difference)?;
    }
    match options.json {
        true => print_json(&report)?,
        false => print(&text(&report)),
    }
    Ok(ExitCode::Done)
}

/// Draws how much of each of the UNet's blocks differs.
fn draw(path: &Path, what: &Path, difference: &Difference) -> Result<()> {
    let of_unet = |name: &String| match name.split_once('/') {
        Some(("unet", name)) => Some(name.to_string()),
        Some(_) => None,
        None => Some(name.clone()),
    };
    let sizes: Vec<(String, usize)> =
        difference.elements.iter().filter_map(|(name, n)| Some((of_unet(name)?, *n))).collect();
    let changed = difference.changed.iter().filter_map(|change| Some((of_unet(&change.name)?, change.changed)));
    let blocks = by_block(sizes.iter().map(|(name, n)| (name.as_str(), *n, true)), &changed.collect());
    if !blocks.iter().any(|block| block.block.starts_with("down_blocks")) {
        return Err(Error::usage("--picture: there is no UNet in what is compared; name whole models, or two UNets"));
    }
    let title = format!("What changed in the UNet of {}", model_name(&what.display().to_string()));
    write_file_atomic(path, changes(&title, &blocks).as_bytes())
}

/// A model's files if it is a folder (or built in), and its weights.
fn open(path: &Path) -> Result<(Option<ModelFiles>, Weights)> {
    if path.is_file() {
        // what is no whole model is looked at all the same
        let single = SingleFile::open(path).ok().map(|file| ModelFiles::Single(Arc::new(file)));
        return Ok((None, single.map_or_else(|| Weights::of_file(path), |files| Weights::of_model(&files))?));
    }
    if !path.join("model_index.json").is_file() && path.join(ERASED).is_file() {
        return open(&path.join(ERASED));
    }
    if path.is_dir() && !path.join("model_index.json").is_file() {
        let what = "a folder without a model_index.json; name a folder in diffusers' layout, or one file of weights";
        return Err(Error::file(path, what));
    }
    if !path.exists() && path != Path::new("demo") {
        return Err(Error::file(path, "no such file or folder; name a model's folder, a file of weights, or demo"));
    }
    let files = match path.exists() {
        true => ModelFiles::Folder(path.to_path_buf()),
        false => hub::demo(),
    };
    let weights = Weights::of_model(&files)?;
    Ok((Some(files), weights))
}

fn examine(options: &InspectOptions, progress: &mut dyn Progress) -> Result<Report> {
    let (model, weights) = open(&options.what)?;
    let base = options.base.as_deref().map(open).transpose()?;
    let weighty = weights.bytes() >= WORTH_A_BAR;
    if weighty {
        progress.event(Event::Stage { name: "reading", steps: weights.bytes().div_ceil(STEP) as usize });
    }
    let (mut read, mut said) = (0u64, 0);
    let files = weights.facts(&mut |n| {
        read += n;
        while weighty && said < read.div_ceil(STEP) {
            said += 1;
            progress.event(Event::Step { loss: None });
        }
    })?;
    let difference = base.as_ref().map(|(_, base)| {
        let weighty = weighty || base.bytes() >= WORTH_A_BAR;
        if weighty {
            progress.event(Event::Stage { name: "comparing", steps: 1 });
        }
        let found = weights.compare(base);
        if weighty {
            progress.event(Event::Step { loss: None });
        }
        found
    });
    let count = files.iter().fold(Count::default(), |all, file| all.and(&file.count));
    let (what, components) = match &model {
        Some(files) => describe_folder(files)?,
        None => (files.first().map_or_else(String::new, |file| file.what.clone()), BTreeMap::new()),
    };
    Ok(Report {
        schema: SCHEMA,
        path: options.what.display().to_string(),
        what: match model.is_some() {
            true => format!("{what}{}", files.iter().find_map(|file| family(&file.what)).unwrap_or_default()),
            false => what,
        },
        bytes: weights.bytes(),
        count,
        model_sha256: model.as_ref().map(base_sha256).transpose()?,
        components,
        left_out: model.as_ref().map(ModelFiles::inventory).transpose()?.map_or_else(Vec::new, |found| found.left_out),
        erased: erased(&options.what, &files),
        base: options.base.as_ref().map(|base| base.display().to_string()),
        difference: difference.transpose()?,
        files,
    })
}

/// ` of Stable Diffusion 1.x`, from what a UNet's file is.
fn family(what: &str) -> Option<String> {
    let (_, family) = what.strip_prefix("UNet")?.split_once(" of ")?;
    Some(format!(": {family}"))
}

/// What `model_index.json` says: the pipeline in words, and each component's class.
fn describe_folder(files: &ModelFiles) -> Result<(String, BTreeMap<String, String>)> {
    let rel = "model_index.json";
    let index: serde_json::Map<String, Value> = serde_json::from_slice(&files.read(rel)?)
        .map_err(|e| Error::file(files.describe(rel), format!("not a JSON object: {e}")))?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("a pipeline without a name");
    let component = |(name, value): (&String, &Value)| {
        let class = value.as_array()?.get(1)?.as_str()?;
        (!name.starts_with('_')).then(|| (name.clone(), class.to_string()))
    };
    Ok((format!("folder in diffusers' layout, {class}"), index.iter().filter_map(component).collect()))
}

/// The weights' `erase.*` metadata and the records beside them; `None` if there is nothing of the kind.
fn erased(what: &Path, files: &[FileFacts]) -> Option<Erased> {
    let mut erased = Erased::default();
    for (key, value) in files.iter().flat_map(|file| &file.metadata).filter(|(key, _)| key.starts_with("erase.")) {
        erased.metadata.insert(key.clone(), value.clone());
    }
    let folders = || what.ancestors().take(if what.is_dir() { 1 } else { 3 });
    let json = |name: &str| -> Option<Value> {
        let path = folders().map(|folder| folder.join(name)).find(|path| path.is_file())?;
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    };
    let of = |value: Option<Value>, schema: &str, keys: &[&'static str]| -> BTreeMap<&'static str, Value> {
        let value = value.filter(|value| value["schema"].as_str().is_some_and(|found| found.starts_with(schema)));
        let known =
            keys.iter().filter_map(|key| Some((*key, value.as_ref()?.get(*key).filter(|v| !v.is_null())?.clone())));
        known.collect()
    };
    let keys =
        ["concept", "concepts", "preset", "seed", "version", "command", "base_sha256", "rate", "synonyms", "mean_drop"];
    erased.report = of(json("report.json"), "erase-concept.report/", &keys);
    erased.run = of(json("run.json"), "erase-concept.run/", &["started_unix", "total_seconds", "peak_memory_bytes"]);
    let nothing = erased.metadata.is_empty() && erased.report.is_empty() && erased.run.is_empty();
    (!nothing).then_some(erased)
}

fn text(r: &Report) -> String {
    let mut rows = vec![
        ("what", r.what.clone()),
        ("size", format!("{} in {}", bytes(r.bytes), plural(r.files.len(), "file"))),
        ("parameters", counted(&r.count)),
    ];
    if let Some(hash) = &r.model_sha256 {
        rows.push(("model hash", format!("{hash} (as reports of this program name a base)")));
    }
    let mut out = format!("{}\n{}", r.path, table(&rows));
    for file in &r.files {
        out.push_str(&file_text(file, r.components.get(file.path.split('/').next().unwrap_or_default())));
    }
    if !r.left_out.is_empty() {
        out.push_str(&format!("\nnot part of the model: {}\n", r.left_out.join(", ")));
    }
    if let Some(erased) = &r.erased {
        out.push_str(&format!("\nmade by erase-concept\n{}", indent(&table(&erased_rows(erased)))));
    }
    if let (Some(base), Some(difference)) = (&r.base, &r.difference) {
        out.push_str(&format!("\ncompared with {base}\n{}", indent(&difference_text(difference))));
    }
    out
}

fn file_text(file: &FileFacts, class: Option<&String>) -> String {
    let h = &file.hashes;
    let class = class.map_or_else(String::new, |class| format!(" ({class})"));
    let mut rows = vec![
        ("what", format!("{}{class}", file.what)),
        ("size", format!("{} ({} bytes)", bytes(file.bytes), thousands(file.bytes))),
        ("parameters", counted(&file.count)),
    ];
    rows.extend(file.parts.iter().map(|(part, count)| (*part, counted(count))));
    rows.extend([("AutoV1", h.auto_v1.clone()), ("AutoV2", h.auto_v2.clone())]);
    rows.extend(h.auto_v3.clone().map(|hash| ("AutoV3", hash)));
    rows.extend([("SHA256", h.sha256.clone()), ("CRC32", h.crc32.clone()), ("BLAKE3", h.blake3.clone())]);
    rows.extend(file.metadata.iter().map(|(key, value)| (key.as_str(), shortened(value))));
    format!("\n{}\n{}", file.path, indent(&table(&rows)))
}

fn counted(count: &Count) -> String {
    let dtypes: Vec<String> = count.dtypes.iter().map(|(dtype, n)| format!("{dtype} {}", thousands(*n))).collect();
    let types = match dtypes.len() {
        0 => String::new(),
        1 => format!(", all {}", count.dtypes.keys().next().map_or("", String::as_str)),
        _ => format!(": {}", dtypes.join(", ")),
    };
    format!("{} in {}{types}", thousands(count.parameters), plural(count.tensors, "tensor"))
}

fn erased_rows(erased: &Erased) -> Vec<(&str, String)> {
    let mut rows: Vec<(&str, String)> =
        erased.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let rate = |value: &Value| {
        let of = |side: &str| format!("{} of {}", value[side]["hits"], value[side]["n"]);
        format!("found in {} pictures before, in {} after", of("before"), of("after"))
    };
    for (key, value) in &erased.report {
        match *key {
            "concepts" => {
                for concept in value.as_array().into_iter().flatten().filter(|concept| concept["rate"].is_object()) {
                    let name = concept["name"].as_str().unwrap_or_default();
                    rows.push(("concept", format!("{name}: {}", rate(&concept["rate"]))));
                }
            }
            "rate" | "synonyms" => rows.push((key, rate(value))),
            "mean_drop" => {
                rows.push(("mean drop", format!("{:.1} points", 100.0 * value["drop"].as_f64().unwrap_or(0.0))))
            }
            "command" | "base_sha256" => rows.push((key, value.as_str().unwrap_or_default().to_string())),
            _ => {} // said by the metadata
        }
    }
    if let Some(seconds) = erased.run.get("total_seconds").and_then(Value::as_f64) {
        rows.push(("time", format!("{seconds:.0} s")));
    }
    rows
}

fn difference_text(d: &Difference) -> String {
    let percent = |x: Option<f64>| x.map_or_else(|| "?".into(), |x| format!("{:.3} %", 100.0 * x));
    let mut out = table(&[("the same", plural(d.same, "tensor")), ("different", plural(d.changed.len(), "tensor"))]);
    for (count, what) in [
        (d.same_values, "the same values in another type"),
        (d.reshaped.len(), "of another shape"),
        (d.missing.len(), "in the base only"),
        (d.added.len(), "here only"),
    ] {
        if count > 0 {
            out.push_str(&format!("{}: {what}\n", plural(count, "tensor")));
        }
    }
    for (names, what) in [(&d.reshaped, "of another shape"), (&d.missing, "in the base only"), (&d.added, "here only")]
    {
        if !names.is_empty() {
            let more = if names.len() > LISTED { ", ..." } else { "" };
            let first: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
            out.push_str(&format!("{what}: {}{more}\n", first.join(", ")));
        }
    }
    if !d.blocks.is_empty() {
        out.push_str("\nby block: changed tensors, relative change, largest difference of a value\n");
        let row = |b: &crate::checkpoint::inspect::BlockChange| {
            format!("{} of {}, {}, {:.3e}", b.changed, b.tensors, percent(b.relative), b.largest)
        };
        let rows: Vec<(&str, String)> = d.blocks.iter().map(|b| (b.block.as_str(), row(b))).collect();
        out.push_str(&indent(&table(&rows)));
        let mut most: Vec<_> = d.changed.iter().collect();
        most.sort_by(|a, b| b.relative.unwrap_or(f64::MAX).total_cmp(&a.relative.unwrap_or(f64::MAX)));
        out.push_str(&format!(
            "\nmost changed tensors{}\n",
            if most.len() > LISTED { " (all with --json)" } else { "" }
        ));
        let row = |c: &crate::checkpoint::inspect::Change| {
            format!(
                "{}, {} of {} values",
                percent(c.relative),
                thousands(c.changed as u64),
                thousands(c.elements as u64)
            )
        };
        let rows: Vec<(&str, String)> = most.iter().take(LISTED).map(|c| (c.name.as_str(), row(c))).collect();
        out.push_str(&indent(&table(&rows)));
    }
    out
}

fn plural(n: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(n as u64), if n == 1 { "" } else { "s" })
}

/// One line of at most 100 letters.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(101).collect();
    if line.chars().count() > 100 { format!("{}...", line.chars().take(97).collect::<String>()) } else { line }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".into() } else { format!("  {line}\n") }).collect()
}
