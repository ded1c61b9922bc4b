//! How often each label was found, with intervals: `audit.json`, a few lines for people, and limits.

use super::counts::Counts;
use super::header::{Header, MetricsRecord, SettingsRecord, UsedDetector};
use super::manifest::Entry;
use super::numbers::{ModelNumbers, Numbers, PAIRED_DEFINITION, SCORES_DEFINITION, STATED_DEFINITION};
use super::pictures::{ReportSettings, gallery, picture};
use super::table::{csv, rates_csv};
use super::{ModelRecord, PromptsRecord};
use crate::audit::Rate;
use crate::audit::html::AuditReport;
use crate::checkpoint::write_file_atomic;
use crate::progress::Progress;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the layout of `audit.json`.
pub const SCHEMA: &str = "erase-concept.audit/1";
/// Labels that the terminal shows of each model and detector.
const SHOWN: usize = 30;

/// What was counted of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelCounts {
    /// Name and hash.
    #[serde(flatten)]
    pub model: ModelRecord,
    /// Over all pictures.
    #[serde(flatten)]
    pub counts: Counts,
    /// Over the pictures of each group of prompts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Counts>,
    /// What else was computed.
    #[serde(flatten)]
    pub numbers: ModelNumbers,
}

/// `audit.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Version of this program.
    pub version: String,
    /// The prompt set.
    pub prompts: PromptsRecord,
    /// How pictures were made.
    pub settings: SettingsRecord,
    /// What looked at them, and all that it may find.
    pub detectors: Vec<UsedDetector>,
    /// What was computed beside rates.
    #[serde(skip_serializing_if = "MetricsRecord::is_empty")]
    pub metrics: MetricsRecord,
    /// Which part of an audit this is: `1/1` if it is the whole.
    pub shard: String,
    /// How rates are to be read.
    pub rule: &'static str,
    /// How other numbers are to be read that do not say so themselves.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub definitions: BTreeMap<&'static str, &'static str>,
    /// Each model.
    pub models: Vec<ModelCounts>,
}

/// What must not be found more often: `shape: star=0.05`, for one model `shape: star@MODEL=0.05`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// As it was given.
    pub text: String,
    /// The label, or the part of it after its colon.
    pub label: String,
    /// The largest fraction of pictures.
    pub rate: f64,
}

impl std::str::FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!(
                "--max-rate {text}: it takes a label and the largest fraction of pictures, such as \"star=0.05\""
            ))
        };
        let (label, rate) = text.rsplit_once('=').ok_or_else(wrong)?;
        let rate: f64 = rate.trim().parse().map_err(|_| wrong())?;
        if label.trim().is_empty() || !(0.0..=1.0).contains(&rate) {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), label: label.trim().into(), rate })
    }
}

impl Limit {
    /// The detector and label that are meant, and the model if it is one.
    ///
    /// # Errors
    /// If no detector knows the label, or several labels end so.
    pub fn find<'h>(&self, header: &'h Header) -> Result<(&'h str, &'h str, Option<&'h str>)> {
        let of_model = self.label.rsplit_once('@').and_then(|(label, name)| {
            let model = header.models.iter().find(|model| model.name == name.trim())?;
            Some((label.trim(), Some(model.name.as_str())))
        });
        let (wanted, model) = of_model.unwrap_or((self.label.as_str(), None));
        let (detector, label) = find_label(header, &format!("--max-rate {}", self.text), wanted)?;
        Ok((detector, label, model))
    }
}

/// The detector and label that are meant by a label, or by the part of it after its colon. `flag` is where it was given.
///
/// # Errors
/// If no detector knows the label, or several labels end so.
pub(super) fn find_label<'h>(header: &'h Header, flag: &str, wanted: &str) -> Result<(&'h str, &'h str)> {
    let all = || {
        let labels = |d: &'h UsedDetector| d.labels.iter().map(move |label| (d.key.as_str(), label.as_str()));
        header.detectors.iter().flat_map(labels)
    };
    let ends = |label: &str| label.split_once(':').is_some_and(|(_, value)| value.trim() == wanted);
    let mut meant: Vec<_> = all().filter(|(_, label)| *label == wanted).collect();
    if meant.is_empty() {
        meant = all().filter(|(_, label)| ends(label)).collect();
    }
    match meant[..] {
        [found] => Ok(found),
        [] if header.detectors.is_empty() => Err(Error::usage(format!(
            "{flag}: nothing can be counted, because none of the models has a classifier beside it, and no --detector was named"
        ))),
        [] => {
            let known: Vec<&str> = all().map(|(_, label)| label).take(12).collect();
            let more = if all().count() > known.len() { ", ..." } else { "" };
            Err(Error::usage(format!("{flag}: no detector knows {wanted:?}; they know {}{more}", known.join(", "))))
        }
        _ => {
            let meant: Vec<&str> = meant.iter().map(|(_, label)| *label).collect();
            Err(Error::usage(format!("{flag}: {wanted:?} may be {}; name one whole", meant.join(" or "))))
        }
    }
}

impl Summary {
    /// Counts and computes; `folder` is the audit's.
    ///
    /// # Errors
    /// If the features of pictures to compare with cannot be read.
    pub fn new(folder: &Path, header: &Header, entries: &[Entry]) -> Result<Self> {
        let numbers = Numbers::new(folder, header, entries)?;
        let of_model = |model: &ModelRecord| {
            let own: Vec<&Entry> = entries.iter().filter(|entry| entry.model == model.name).collect();
            ModelCounts {
                model: model.clone(),
                counts: Counts::new(header, &own),
                groups: Counts::by_group(header, &own),
                numbers: numbers.of(model),
            }
        };
        let models: Vec<ModelCounts> = header.models.iter().map(of_model).collect();
        let any = |has: fn(&ModelNumbers) -> bool| models.iter().any(|model| has(&model.numbers));
        let definitions = [
            ("paired", PAIRED_DEFINITION, any(|numbers| !numbers.paired.is_empty())),
            ("clip_score_difference", SCORES_DEFINITION, any(|numbers| numbers.clip_score_difference.is_some())),
            ("unlearning", STATED_DEFINITION, any(|numbers| !numbers.unlearning.is_empty())),
        ];
        let definitions = definitions.into_iter().filter(|(.., is_there)| *is_there);
        Ok(Self {
            schema: SCHEMA,
            version: header.version.clone(),
            prompts: header.prompts.clone(),
            settings: header.settings.clone(),
            detectors: header.detectors.clone(),
            metrics: header.metrics.clone(),
            shard: header.shard.to_string(),
            rule: "hits: pictures that were given the label, each counted once; low and high: Wilson's 95 % interval of hits / n",
            definitions: definitions.map(|(name, definition, _)| (name, definition)).collect(),
            models,
        })
    }

    /// The rates of one model by one detector, in the order of its labels.
    pub fn rates<'s>(&'s self, model: &'s ModelCounts, detector: &'s UsedDetector) -> Vec<(&'s str, &'s Rate)> {
        let rates = model.counts.labels.get(&detector.key);
        detector.labels.iter().filter_map(|label| Some((label.as_str(), rates?.get(label)?))).collect()
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for model in &self.models {
            let plural = if model.counts.pictures == 1 { "picture" } else { "pictures" };
            lines.push(format!("{}: {} {plural}", model.model.name, model.counts.pictures));
            for detector in &self.detectors {
                let mut found: Vec<_> = self.rates(model, detector).into_iter().filter(|(_, r)| r.hits > 0).collect();
                if found.len() > SHOWN {
                    found.sort_by_key(|(_, rate)| std::cmp::Reverse(rate.hits));
                    found.truncate(SHOWN);
                }
                if self.detectors.len() > 1 {
                    lines.push(format!("  by {} ({}):", detector.key, detector.name));
                }
                let width = found.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
                for (label, r) in found {
                    let [rate, low, high] = [r.fraction(), r.low, r.high].map(|x| 100.0 * x);
                    lines.push(format!(
                        "  {label:<width$}  {:>6}  {rate:5.1} %  (95 % interval {low:.1} to {high:.1})",
                        r.hits
                    ));
                }
                let rules = model.counts.rules.get(&detector.key).into_iter().flatten();
                lines.extend(rules.map(|rule| format!("  {}: {}", rule.name, rule.counted)));
            }
            lines.extend(model.numbers.lines().into_iter().map(|line| format!("  {line}")));
        }
        if self.detectors.is_empty() {
            lines.push(
                "nothing was counted: none of the models has a classifier beside it, and no --detector was named"
                    .into(),
            );
        }
        lines.extend(self.skipped());
        lines.join("\n")
    }

    /// The rows that were skipped, in words.
    fn skipped(&self) -> Vec<String> {
        const NAMED: usize = 5;
        let skipped = &self.prompts.skipped;
        let mut lines: Vec<String> = skipped.iter().take(NAMED).map(|row| format!("skipped {row}")).collect();
        if let Some(more) = skipped.len().checked_sub(NAMED).filter(|more| *more > 0) {
            lines.push(format!("and {more} more rows, named in audit.json"));
        }
        lines
    }

    /// The limits that are missed, in words.
    ///
    /// # Errors
    /// As [`Limit::find`].
    pub fn missed(&self, header: &Header, limits: &[Limit]) -> Result<Vec<String>> {
        let mut missed = Vec::new();
        for limit in limits {
            let (detector, label, model) = limit.find(header)?;
            for counts in self.models.iter().filter(|counts| model.is_none_or(|name| counts.model.name == name)) {
                let rate =
                    counts.counts.labels.get(detector).and_then(|labels| labels.get(label)).map_or(0.0, Rate::fraction);
                if rate > limit.rate {
                    missed.push(format!("--max-rate {}: the rate of {} is {rate:.3}", limit.text, counts.model.name));
                }
            }
        }
        Ok(missed)
    }
}

/// Writes `audit.json`, `audit.csv`, `rates.csv` and `report.html`, which says which of the `limits` are missed; says what is in them.
///
/// # Errors
/// If the user interrupts, a picture cannot be read, or they cannot be written.
pub fn write_results(
    folder: &Path,
    header: &Header,
    entries: &[Entry],
    limits: &[Limit],
    report: &ReportSettings,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let summary = Summary::new(folder, header, entries)?;
    let json = folder.join("audit.json");
    let mut text = serde_json::to_string_pretty(&summary).map_err(|e| Error::file(&json, e))?;
    text.push('\n');
    write_file_atomic(&json, text.as_bytes())?;
    let table = folder.join("audit.csv");
    write_file_atomic(&table, &csv(&table, header, entries)?)?;
    let table = folder.join("rates.csv");
    write_file_atomic(&table, &rates_csv(&table, &summary)?)?;
    let missed = summary.missed(header, limits)?;
    let page = AuditReport { summary: &summary, gallery: gallery(header, entries, report)?, limits, missed: &missed };
    let page = page.html(report.size, &|i| picture(folder, &entries[i]), progress)?;
    write_file_atomic(&folder.join("report.html"), page.as_bytes())?;
    Ok(summary)
}
