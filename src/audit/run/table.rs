//! `audit.csv`: a row for each picture, and `rates.csv`: a row for each rate; for spreadsheets and scripts.

use super::header::Header;
use super::manifest::Entry;
use super::{Counts, Summary};
use crate::audit::Rate;
use crate::audit::counting_rules::{Counted, RuleCount};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// What separates the labels of a cell.
const BETWEEN: &str = "; ";

/// The table. `path` is what messages call it.
pub(super) fn csv(path: &Path, header: &Header, entries: &[Entry]) -> Result<Vec<u8>> {
    let wrong = |e: csv::Error| Error::file(path, e);
    let columns: BTreeSet<&String> = entries.iter().flat_map(|entry| entry.columns.keys()).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let own =
        ["model", "case_number", "sample", "prompt", "seed", "guidance_scale", "width", "height", "file", "sha256"];
    let detectors = header.detectors.iter().map(|detector| detector.key.as_str());
    let (with_clip, with_ssim) = (entries.iter().any(|e| e.clip.is_some()), entries.iter().any(|e| e.ssim.is_some()));
    let numbers = [("clip_score", with_clip), ("ssim", with_ssim)];
    let numbers = numbers.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name);
    let names = own.into_iter().chain(detectors).chain(numbers).chain(columns.iter().map(|name| name.as_str()));
    writer.write_record(names).map_err(wrong)?;
    for e in entries {
        let numbers = [e.seed.to_string(), e.guidance_scale.to_string(), e.width.to_string(), e.height.to_string()];
        let mut record = vec![e.model.clone(), e.case.clone(), e.sample.to_string(), e.prompt.clone()];
        record.extend(numbers);
        record.extend([e.file.clone().unwrap_or_default(), e.sha256.clone()]);
        let found = |key: &String| e.labels.get(key).map_or_else(String::new, |labels| labels.join(BETWEEN));
        record.extend(header.detectors.iter().map(|detector| found(&detector.key)));
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        record.extend(with_clip.then(|| number(e.clip.as_ref().map(|look| look.score))));
        record.extend(with_ssim.then(|| number(e.ssim)));
        record.extend(columns.iter().map(|name| e.columns.get(*name).cloned().unwrap_or_default()));
        writer.write_record(record).map_err(wrong)?;
    }
    writer.into_inner().map_err(|e| Error::file(path, e))
}

/// How often each label was found, of each model and group of prompts, and what the counting rules count. An empty group is all
/// pictures. `path` is what messages call it.
pub(super) fn rates_csv(path: &Path, summary: &Summary) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let wrong = |e: csv::Error| Error::file(path, e);
    writer
        .write_record(["model", "group", "detector", "rule", "label", "hits", "n", "rate", "low", "high"])
        .map_err(wrong)?;
    for model in &summary.models {
        let groups = model.groups.iter().map(|(name, counts)| (name.as_str(), counts));
        for (group, counts) in std::iter::once(("", &model.counts)).chain(groups) {
            for (detector, rule, label, numbers) in rows(summary, counts) {
                let names = [model.model.name.as_str(), group, detector, rule, label];
                writer.write_record(names.into_iter().map(String::from).chain(numbers)).map_err(wrong)?;
            }
        }
    }
    writer.into_inner().map_err(|e| Error::file(path, e))
}

/// Detector, rule, label, and numbers: those of a rule that counts no pictures have no rate.
fn rows<'s>(summary: &'s Summary, counts: &'s Counts) -> Vec<(&'s str, &'s str, &'s str, [String; 5])> {
    let of_rate = |rate: &Rate| {
        [
            rate.hits.to_string(),
            rate.n.to_string(),
            rate.fraction().to_string(),
            rate.low.to_string(),
            rate.high.to_string(),
        ]
    };
    let alone =
        |count: usize| [count.to_string(), counts.pictures.to_string(), String::new(), String::new(), String::new()];
    let mut rows = Vec::new();
    for detector in &summary.detectors {
        let (key, rates) = (detector.key.as_str(), counts.labels.get(&detector.key));
        let known = detector.labels.iter().filter_map(|label| Some((label.as_str(), rates?.get(label)?)));
        rows.extend(known.map(|(label, rate)| (key, "label", label, of_rate(rate))));
        let rules = counts.rules.get(key).into_iter().flatten();
        rows.extend(rules.flat_map(|RuleCount { name, counted, .. }| match counted {
            Counted::PerClass { counts, total } => {
                let classes = counts.iter().map(|(class, count)| (key, *name, *class, alone(*count)));
                classes.chain([(key, *name, "total", alone(*total))]).collect::<Vec<_>>()
            }
            Counted::Pictures(rate) => vec![(key, *name, "any", of_rate(rate))],
        }));
    }
    rows
}
