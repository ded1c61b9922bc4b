//! `report.json` (the same for equal runs) and `run.json` (dates, times, memory).

use super::drift::{Drift, DriftMean, Move, mean};
use super::interval::{mean_drop, paired_drop, wilson};
use super::trimmed::BlockTrim;
use super::verify::{Answer, PartCount, Preserved, Verification};
use crate::concept::{Concept, Kind};
use crate::erase::{OtherWord, Settings, StepRecord, TrimSummary};
use crate::hub::Origin;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the report's layout; rises when a field changes its meaning or goes away.
pub const SCHEMA: &str = "erase-concept.report/1";

/// How often something was found, with Wilson's 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        Self::counted(answers.iter().filter(|hit| **hit).count(), answers.len())
    }

    /// `hits` of `n`.
    pub fn counted(hits: usize, n: usize) -> Self {
        let (low, high) = wilson(hits, n);
        Self { hits, n, low, high }
    }

    /// Hits as a fraction.
    pub fn fraction(&self) -> f64 {
        self.hits as f64 / self.n.max(1) as f64
    }
}

/// The same pictures' prompts and seeds, with the model as it was and as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// The base.
    pub before: Rate,
    /// The erased model, as written.
    pub after: Rate,
}

impl BeforeAfter {
    fn of(before: &Option<Vec<bool>>, after: &Option<Vec<bool>>) -> Option<Self> {
        let both = before.as_ref().zip(after.as_ref());
        both.map(|(before, after)| Self { before: Rate::of(before), after: Rate::of(after) })
    }
}

/// Accuracy on one axis of what must stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// The same for each label of the axis.
    pub labels: BTreeMap<String, LabelCount>,
}

/// How often a label was found where it is stated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelCount {
    /// Pictures whose prompt states it.
    pub n: usize,
    /// Found by the base.
    pub before: usize,
    /// Found by the erased model.
    pub after: usize,
}

/// The mean over the axes of their drops, paired by prompt and seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeanDrop {
    /// The mean, as a fraction.
    pub drop: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Two verifications of one plan, compared picture by picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// How often concept prompts show the concept.
    pub rate: Option<BeforeAfter>,
    /// The same for synonyms.
    pub synonyms: Option<BeforeAfter>,
    /// Accuracy of everything else, by axis.
    pub retain: BTreeMap<String, RetainAxis>,
    /// Mean drop over the axes.
    pub mean_drop: Option<MeanDrop>,
}

/// One of several concepts, counted by its own prompts and labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConceptCounts {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// How often its prompts show it.
    pub rate: Option<BeforeAfter>,
    /// The same for its synonyms.
    pub synonyms: Option<BeforeAfter>,
}

impl ConceptCounts {
    /// Of each of several concepts; empty for one that stands alone.
    pub fn each(concept: &Concept, before: &Verification, after: &Verification) -> Vec<Self> {
        let parts = concept.parts.iter().zip(before.parts.iter().zip(&after.parts));
        let count = |(part, (before, after)): (&Concept, (&PartCount, &PartCount))| Self {
            name: part.name.clone(),
            kind: part.kind,
            rate: BeforeAfter::of(&before.forget, &after.forget),
            synonyms: BeforeAfter::of(&before.synonyms, &after.synonyms),
        };
        parts.map(count).collect()
    }
}

/// A name or prompt that the user asked to preserve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreservedCounts {
    /// What was asked for.
    pub name: String,
    /// The labels that it states and that the detector knows.
    pub labels: Vec<String>,
    /// How often all of these were found, if there are any.
    pub rate: Option<BeforeAfter>,
    /// How far its pictures moved; absent if none was drawn.
    pub drift: Option<DriftMean>,
}

impl PreservedCounts {
    /// Of each; `moves` are those of the two verifications.
    pub fn each(concept: &Concept, before: &Verification, after: &Verification, moves: &[Move<'_>]) -> Vec<Self> {
        let entries = concept.preserve.iter().zip(before.preserve.iter().zip(&after.preserve));
        let count = |(name, (before, after)): (&String, (&Preserved, &Preserved))| Self {
            name: name.clone(),
            labels: before.labels.clone(),
            rate: (!before.found.is_empty())
                .then(|| BeforeAfter { before: Rate::of(&before.found), after: Rate::of(&after.found) }),
            drift: mean(before.drawn.iter().filter_map(|i| moves.get(*i))),
        };
        entries.map(count).collect()
    }
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
    /// The type in which frozen weights were kept.
    pub dtype: &'static str,
    /// What computed: `cpu`, or the kind and the model of the GPU.
    pub device: String,
    /// Whether `f32` matrices were multiplied in TF32.
    pub tf32: bool,
    /// Version of this program.
    pub version: &'static str,
    /// The command that makes the same result again.
    pub command: String,
    /// Where the base came from, if that is the Hugging Face Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<Origin>,
    /// Hash of the base's files.
    pub base_sha256: String,
    /// What was counted before and after; rates are absent without a detector that knows the concept.
    #[serde(flatten)]
    pub counts: Comparison,
    /// Each concept, if they are several: `counts` has their sum.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub concepts: Vec<ConceptCounts>,
    /// What the user asked to preserve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preserve: Vec<PreservedCounts>,
    /// How far the pictures moved.
    pub drift: Drift,
    /// What did the counting.
    pub detector: Option<DetectorRecord>,
    /// How the pictures were made.
    pub verification: VerifyRecord,
    /// Every setting of the method.
    pub settings: Settings,
    /// Words of the vocabulary that were tried for meaning the concept too, nearest first; those up to
    /// [`crate::erase::other_words::THRESHOLD`] were erased with it.
    pub other_words: Vec<OtherWord>,
    /// What was trimmed.
    pub trim: TrimSummary,
    /// Where that lies: the UNet's blocks in order.
    pub blocks: Vec<BlockTrim>,
    /// Every repair step.
    pub losses: Vec<StepRecord>,
}

impl Comparison {
    /// Pairs two verifications of one plan.
    pub fn new(before: &Verification, after: &Verification) -> Self {
        let axes = before.retain.iter().filter_map(|(name, b)| Some((name, b, after.retain.get(name)?)));
        let triples =
            axes.clone().map(|(_, b, a)| b.iter().zip(a).map(|(b, a)| (b.picture, b.right, a.right)).collect());
        let mean_drop = mean_drop(&triples.collect::<Vec<_>>());
        Self {
            rate: BeforeAfter::of(&before.forget, &after.forget),
            synonyms: BeforeAfter::of(&before.synonyms, &after.synonyms),
            retain: axes.map(|(name, b, a)| (name.clone(), RetainAxis::new(b, a))).collect(),
            mean_drop: mean_drop.map(|(drop, low, high)| MeanDrop { drop, low, high }),
        }
    }
}

impl RetainAxis {
    fn new(before: &[Answer], after: &[Answer]) -> Self {
        let right = |answers: &[Answer]| answers.iter().map(|answer| answer.right).collect::<Vec<_>>();
        let (b, a) = (right(before), right(after));
        let (drop, drop_low, drop_high) = paired_drop(&b, &a);
        let mut labels: BTreeMap<String, LabelCount> = BTreeMap::new();
        for (before, after) in before.iter().zip(after) {
            let count = labels.entry(before.label.clone()).or_default();
            count.n += 1;
            count.before += usize::from(before.right);
            count.after += usize::from(after.right);
        }
        let (before, after) = (Rate::of(&b).fraction(), Rate::of(&a).fraction());
        Self { before, after, n: b.len(), drop, drop_low, drop_high, labels }
    }
}

impl Report {
    /// The words that were found to mean the concept too, nearest first.
    pub fn found_words(&self) -> impl Iterator<Item = &str> {
        self.other_words.iter().filter(|word| word.means_the_concept()).map(|word| word.word.as_str())
    }

    /// A few lines for people.
    pub fn summary(&self, concept: &Concept) -> String {
        let mut lines = Vec::new();
        let percent = |x: f64| format!("{:.0} %", 100.0 * x);
        let rate = |lines: &mut Vec<String>, what: &str, r: &BeforeAfter| {
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
        let alone = ConceptCounts {
            name: concept.name.clone(),
            kind: concept.kind,
            rate: self.counts.rate.clone(),
            synonyms: self.counts.synonyms.clone(),
        };
        let each = if self.concepts.is_empty() { std::slice::from_ref(&alone) } else { &self.concepts };
        for counts in each {
            match &counts.rate {
                Some(r) => rate(&mut lines, &format!("«{}»", counts.name), r),
                None => lines
                    .push(format!("no detector knows «{}»: look at grid.png to see whether it is gone", counts.name)),
            }
            if let Some(r) = &counts.synonyms {
                lines.push(format!(
                    "its synonyms: {} of {} before, {} of {} after ({})",
                    r.before.hits,
                    r.before.n,
                    r.after.hits,
                    r.after.n,
                    percent(r.after.fraction())
                ));
            }
        }
        let found: Vec<String> = self.found_words().map(|word| format!("«{word}»")).collect();
        if !found.is_empty() {
            lines.push(format!("erased with it, because the model draws it for these words too: {}", found.join(", ")));
        }
        for (name, axis) in &self.counts.retain {
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
        if let Some(MeanDrop { drop, low, high }) = &self.counts.mean_drop {
            let [drop, low, high] = [drop, low, high].map(|x| 100.0 * x);
            lines.push(format!("mean drop over these: {drop:.1} points, 95 % interval {low:.1} to {high:.1}"));
        }
        for kept in &self.preserve {
            let moved = kept.drift.as_ref().map_or_else(String::new, |drift| {
                format!("; its {} pictures moved by {:.1} of 255", drift.n, drift.difference)
            });
            match &kept.rate {
                Some(r) => lines.push(format!(
                    "to be preserved, «{}»: found in {} of {} pictures before, in {} after{moved}",
                    kept.name, r.before.hits, r.before.n, r.after.hits
                )),
                None => lines.push(format!("to be preserved, «{}»: not counted{moved}", kept.name)),
            }
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
    /// Vector instructions of the CPU that were used.
    pub instructions: &'static str,
    /// The type in which frozen weights were kept; all sums are in f32.
    pub dtype: &'static str,
    /// What matrices are multiplied in beside weights kept in that type, with sums in `f32`: `bf16` where `dtype` is and the processor
    /// (AMX) or the GPU has instructions for it, else `f32`.
    pub products: &'static str,
    /// What computed: `cpu`, or the kind and the model of the GPU.
    pub device: String,
    /// How many of them.
    pub devices: usize,
    /// Whether `f32` matrices were multiplied in TF32.
    pub tf32: bool,
    /// The most bytes of a GPU's memory that tensors had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_peak_bytes: Option<u64>,
    /// The most bytes that were taken from the GPU's memory for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_reserved_bytes: Option<u64>,
    /// The command line.
    pub command: Vec<String>,
}

/// The process's largest resident memory in bytes (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
