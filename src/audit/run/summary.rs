//! How often each label was found, with intervals: `audit.json`, a few lines for people, and limits.

use super::header::{Header, SettingsRecord, UsedDetector};
use super::manifest::Entry;
use super::pictures::{ReportSettings, gallery, picture};
use super::table::csv;
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
    /// Pictures.
    pub pictures: usize,
    /// For each detector, how many pictures were given each of its labels.
    pub labels: BTreeMap<String, BTreeMap<String, Rate>>,
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
    /// Which part of an audit this is: `1/1` if it is the whole.
    pub shard: String,
    /// How rates are to be read.
    pub rule: &'static str,
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
            "{flag}: nothing can be counted, because none of the models has a classifier beside it"
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
    /// Counts.
    pub fn new(header: &Header, entries: &[Entry]) -> Self {
        let of_model = |model: &ModelRecord| {
            let entries: Vec<&Entry> = entries.iter().filter(|entry| entry.model == model.name).collect();
            let of_detector = |d: &UsedDetector| {
                let with = |label: &String| {
                    entries.iter().filter(|e| e.labels.get(&d.key).is_some_and(|found| found.contains(label))).count()
                };
                let rate = |label: &String| (label.clone(), Rate::counted(with(label), entries.len()));
                (d.key.clone(), d.labels.iter().map(rate).collect())
            };
            let labels = header.detectors.iter().map(of_detector).collect();
            ModelCounts { model: model.clone(), pictures: entries.len(), labels }
        };
        Self {
            schema: SCHEMA,
            version: header.version.clone(),
            prompts: header.prompts.clone(),
            settings: header.settings.clone(),
            detectors: header.detectors.clone(),
            shard: header.shard.to_string(),
            rule: "hits: pictures that were given the label, each counted once; low and high: Wilson's 95 % interval of hits / n",
            models: header.models.iter().map(of_model).collect(),
        }
    }

    /// The rates of one model by one detector, in the order of its labels.
    pub fn rates<'s>(&'s self, model: &'s ModelCounts, detector: &'s UsedDetector) -> Vec<(&'s str, &'s Rate)> {
        let rates = model.labels.get(&detector.key);
        detector.labels.iter().filter_map(|label| Some((label.as_str(), rates?.get(label)?))).collect()
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for model in &self.models {
            let plural = if model.pictures == 1 { "picture" } else { "pictures" };
            lines.push(format!("{}: {} {plural}", model.model.name, model.pictures));
            for detector in &self.detectors {
                let mut found: Vec<_> = self.rates(model, detector).into_iter().filter(|(_, r)| r.hits > 0).collect();
                if found.len() > SHOWN {
                    found.sort_by_key(|(_, rate)| std::cmp::Reverse(rate.hits));
                    found.truncate(SHOWN);
                }
                let width = found.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
                for (label, r) in found {
                    let [rate, low, high] = [r.fraction(), r.low, r.high].map(|x| 100.0 * x);
                    lines.push(format!(
                        "  {label:<width$}  {:>6}  {rate:5.1} %  (95 % interval {low:.1} to {high:.1})",
                        r.hits
                    ));
                }
            }
        }
        if self.detectors.is_empty() {
            lines.push("nothing was counted: none of the models has a classifier beside it".into());
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
                let rate = counts.labels.get(detector).and_then(|labels| labels.get(label)).map_or(0.0, Rate::fraction);
                if rate > limit.rate {
                    missed.push(format!("--max-rate {}: the rate of {} is {rate:.3}", limit.text, counts.model.name));
                }
            }
        }
        Ok(missed)
    }
}

/// Writes `audit.json`, `audit.csv` and `report.html`; says what is in them.
///
/// # Errors
/// If the user interrupts, a picture cannot be read, or they cannot be written.
pub fn write_results(
    folder: &Path,
    header: &Header,
    entries: &[Entry],
    report: &ReportSettings,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let summary = Summary::new(header, entries);
    let json = folder.join("audit.json");
    let mut text = serde_json::to_string_pretty(&summary).map_err(|e| Error::file(&json, e))?;
    text.push('\n');
    write_file_atomic(&json, text.as_bytes())?;
    let table = folder.join("audit.csv");
    write_file_atomic(&table, &csv(&table, header, entries)?)?;
    let page = AuditReport { summary: &summary, gallery: gallery(header, entries, report)? };
    let page = page.html(report.size, &|i| picture(folder, &entries[i]), progress)?;
    write_file_atomic(&folder.join("report.html"), page.as_bytes())?;
    Ok(summary)
}
