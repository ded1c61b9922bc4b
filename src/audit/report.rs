//! `report.json` (the same for equal runs) and `run.json` (dates, times, memory).

use super::interval::{paired_drop, wilson};
use super::verify::Verification;
use crate::concept::Concept;
use crate::erase::{Settings, StepRecord, TrimSummary};
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of the report's layout; rises when a field changes its meaning or goes away.
pub const SCHEMA: &str = "erase-concept.report/1";

/// How often something was found, with Wilson's 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Pictures in which it was found.
    pub hits: usize,
    /// Pictures.
    pub n: usize,
    /// Lower end of the interval, as a fraction.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Rate {
    /// Counts.
    pub fn of(answers: &[bool]) -> Self {
        let (hits, n) = (answers.iter().filter(|hit| **hit).count(), answers.len());
        let (low, high) = wilson(hits, n);
        Self { hits, n, low, high }
    }

    /// Hits as a fraction.
    pub fn fraction(&self) -> f64 {
        self.hits as f64 / self.n.max(1) as f64
    }
}

/// The same pictures' prompts and seeds, with the model as it was and as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BeforeAfter {
    /// The base.
    pub before: Rate,
    /// The erased model, as written.
    pub after: Rate,
}

/// Accuracy on one axis of what must stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetainAxis {
    /// The base's, as a fraction.
    pub before: f64,
    /// The erased model's.
    pub after: f64,
    /// Pictures whose prompt states a label on this axis.
    pub n: usize,
    /// Drop, paired by prompt and seed.
    pub drop: f64,
    /// Lower end of its 95 % interval.
    pub drop_low: f64,
    /// Upper end.
    pub drop_high: f64,
}

/// What did the counting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectorRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
    /// The rule by which a picture counts.
    pub rule: String,
}

/// How the verification pictures were made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyRecord {
    /// Sampler.
    pub scheduler: String,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Seed of the first picture.
    pub seed: u64,
}

/// `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Name of the concept.
    pub concept: String,
    /// `scissorhands`.
    pub method: &'static str,
    /// Name of the preset.
    pub preset: String,
    /// Seed of the run.
    pub seed: u64,
    /// Version of this program.
    pub version: &'static str,
    /// Hash of the base's files.
    pub base_sha256: String,
    /// How often concept prompts show the concept; absent without a detector that knows it.
    pub rate: Option<BeforeAfter>,
    /// The same for synonyms.
    pub synonyms: Option<BeforeAfter>,
    /// Accuracy of everything else, by axis.
    pub retain: BTreeMap<String, RetainAxis>,
    /// Mean drop over the axes.
    pub mean_drop: Option<f64>,
    /// What did the counting.
    pub detector: Option<DetectorRecord>,
    /// How the pictures were made.
    pub verification: VerifyRecord,
    /// Every setting of the method.
    pub settings: Settings,
    /// What was trimmed.
    pub trim: TrimSummary,
    /// Every repair step.
    pub losses: Vec<StepRecord>,
}

/// Pairs two verifications of one plan.
pub fn compare(
    before: &Verification,
    after: &Verification,
) -> (Option<BeforeAfter>, Option<BeforeAfter>, BTreeMap<String, RetainAxis>) {
    let pair = |a: &Option<Vec<bool>>, b: &Option<Vec<bool>>| {
        a.as_ref().zip(b.as_ref()).map(|(a, b)| BeforeAfter { before: Rate::of(a), after: Rate::of(b) })
    };
    let axis = |name: &String, before: &Vec<bool>| {
        let after = after.retain.get(name)?;
        let (drop, drop_low, drop_high) = paired_drop(before, after);
        let (b, a) = (Rate::of(before).fraction(), Rate::of(after).fraction());
        Some((name.clone(), RetainAxis { before: b, after: a, n: before.len(), drop, drop_low, drop_high }))
    };
    let retain = before.retain.iter().filter_map(|(name, answers)| axis(name, answers)).collect();
    (pair(&before.forget, &after.forget), pair(&before.synonyms, &after.synonyms), retain)
}

impl Report {
    /// A few lines for people.
    pub fn summary(&self, concept: &Concept) -> String {
        let mut lines = Vec::new();
        let percent = |x: f64| format!("{:.0} %", 100.0 * x);
        let mut rate = |what: &str, r: &BeforeAfter| {
            lines.push(format!(
                "{what}: found in {} of {} pictures before ({}), in {} of {} after ({}; 95 % interval {} to {})",
                r.before.hits,
                r.before.n,
                percent(r.before.fraction()),
                r.after.hits,
                r.after.n,
                percent(r.after.fraction()),
                percent(r.after.low),
                percent(r.after.high),
            ));
        };
        match &self.rate {
            Some(r) => rate(&format!("«{}»", concept.name), r),
            None => {
                lines.push(format!("no detector knows «{}»: look at grid.png to see whether it is gone", concept.name))
            }
        }
        if let Some(r) = &self.synonyms {
            let mut lines_rate = |what: &str, r: &BeforeAfter| {
                lines.push(format!(
                    "{what}: {} of {} before, {} of {} after ({})",
                    r.before.hits,
                    r.before.n,
                    r.after.hits,
                    r.after.n,
                    percent(r.after.fraction())
                ));
            };
            lines_rate("its synonyms", r);
        }
        for (name, axis) in &self.retain {
            lines.push(format!(
                "{name} right in what must stay: {:.1} % before, {:.1} % after ({} pictures; drop {:.1} points, 95 % interval \
                 {:.1} to {:.1})",
                100.0 * axis.before,
                100.0 * axis.after,
                axis.n,
                100.0 * axis.drop,
                100.0 * axis.drop_low,
                100.0 * axis.drop_high,
            ));
        }
        if let Some(drop) = self.mean_drop {
            lines.push(format!("mean drop over these: {:.1} points", 100.0 * drop));
        }
        lines.push(format!(
            "trimmed {} of {} scored weights ({:.2} %) in {} tensors",
            self.trim.total,
            self.trim.scored,
            100.0 * self.trim.total as f64 / self.trim.scored.max(1) as f64,
            self.trim.trimmed.len()
        ));
        lines.join("\n")
    }
}

/// `run.json`: the only file that may differ between two equal runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunRecord {
    /// Layout.
    pub schema: &'static str,
    /// When it began, in seconds since 1970 (`SOURCE_DATE_EPOCH` if that is set).
    pub started_unix: u64,
    /// Seconds of each stage, in order.
    pub seconds: Vec<(String, f64)>,
    /// Seconds in all.
    pub total_seconds: f64,
    /// Largest resident memory in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Threads.
    pub threads: usize,
    /// The command line.
    pub command: Vec<String>,
}

/// The process's largest resident memory in bytes (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
