//! What is computed of the pictures beside how often labels were found: each number with its definition, or why it is not there.

use super::header::{Against, Header, ModelRecord, UsedDetector};
use super::manifest::Entry;
use super::reference;
use crate::Result;
use crate::audit::metrics::{
    Bootstrap, CLIP_SCORE_DEFINITION, McNemar, Metric, SSIM_DEFINITION, Stated, UnlearnCanvas, clip_fid, cmmd, mcnemar,
    paired_bootstrap, unlearn_canvas,
};
use crate::audit::paired_drop;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// How many times pairs are drawn anew for an interval, and from which seed.
const RESAMPLES: (usize, u64) = (2_000, 0);

/// Labels that changed which the terminal names.
const NAMED: usize = 6;

/// How tests of pairs are to be read.
pub const PAIRED_DEFINITION: &str = "\
    the same prompts and seeds by both models. drop: rate of the model that is compared with minus the rate here, a \
    fraction, with its 95 % interval (normal approximation for paired proportions, Agresti & Min 2005). p: McNemar's \
    exact test (two-sided), only_before and only_after: pictures that show the label by one model alone. Not \
    corrected for the number of labels. Labels that neither model shows are left out";
/// How the difference of CLIP scores is to be read.
pub const SCORES_DEFINITION: &str = "\
    mean of the differences of CLIP scores here and of the model that is compared with, on the same prompts and \
    seeds; 95 % percentile interval of 2,000 bootstraps of pairs";
/// Which labels a prompt names.
pub const STATED_DEFINITION: &str = "\
    a prompt names DOMAIN: NAME if its row has a column DOMAIN that says NAME, or, where there is no such column, if NAME \
    stands in it as words of its own";

/// A label, by both models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedLabel {
    /// The detector's key.
    pub detector: String,
    /// The label.
    pub label: String,
    /// Pairs.
    pub n: usize,
    /// Rate of the model that is compared with, minus the rate here.
    pub drop: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The test.
    #[serde(flatten)]
    pub test: McNemar,
}

/// The numbers of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ModelNumbers {
    /// CLIP score, CLIP-FID, CMMD, SSIM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// For each detector that knows the targets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unlearning: BTreeMap<String, UnlearnCanvas>,
    /// Tests of labels in pairs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paired: Vec<PairedLabel>,
    /// How much better pictures fit their prompts than those of the model that is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_score_difference: Option<Bootstrap>,
    /// What was asked for and is not there, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

impl ModelNumbers {
    /// A few lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.metrics.iter().map(|metric| format!("{}: {:.4}", metric.name, metric.value)).collect();
        if let Some(Bootstrap { mean, low, high }) = &self.clip_score_difference {
            lines.push(format!("CLIP score, difference: {mean:+.4} (95 % interval {low:+.4} to {high:+.4})"));
        }
        for (detector, found) in &self.unlearning {
            let metrics = [&found.ua, &found.ira, &found.cra].into_iter().flatten();
            let metrics: Vec<String> = metrics.map(|metric| format!("{} {:.1}", metric.name, metric.value)).collect();
            lines.push(match metrics.is_empty() {
                true => format!("UA, IRA, CRA by {detector}: no prompt names one of its labels"),
                false => format!("{} by {detector}", metrics.join(", ")),
            });
        }
        let mut most: Vec<&PairedLabel> = self.paired.iter().filter(|label| label.test.p < 0.05).collect();
        most.sort_by(|a, b| a.test.p.total_cmp(&b.test.p));
        for label in most.iter().take(NAMED) {
            let [drop, low, high] = [label.drop, label.low, label.high].map(|x| 100.0 * x);
            lines.push(format!(
                "{} by {}: {:+.1} points (95 % interval {:+.1} to {:+.1}, McNemar's p {:.2e})",
                label.label, label.detector, -drop, -high, -low, label.test.p
            ));
        }
        lines.extend(self.left_out.iter().map(|what| format!("not computed: {what}")));
        lines
    }
}

/// The pictures of each model by what they have in common across models.
type Pictures<'a> = HashMap<(&'a str, usize), &'a Entry>;

/// Computes.
pub struct Numbers<'a> {
    header: &'a Header,
    entries: &'a [Entry],
    /// Features of the pictures that are compared with; `Err` says why there are none.
    others: Option<std::result::Result<Vec<Vec<f32>>, String>>,
}

impl<'a> Numbers<'a> {
    /// Finds what is compared with; `folder` is the audit's.
    ///
    /// # Errors
    /// If the features of a folder's pictures are asked for and cannot be read.
    pub fn new(folder: &Path, header: &'a Header, entries: &'a [Entry]) -> Result<Self> {
        let others = match (&header.metrics.clip, &header.metrics.against) {
            (Some(clip), Some(against @ Against::Folder { .. })) => {
                Some(Ok(reference::features(folder, clip, against)?))
            }
            (Some(_), Some(Against::Model(name))) => Some(features(entries.iter().filter(|e| e.model == *name))),
            _ => None,
        };
        Ok(Self { header, entries, others })
    }

    /// The numbers of one model.
    pub fn of(&self, model: &ModelRecord) -> ModelNumbers {
        let own: Vec<&'a Entry> = self.entries.iter().filter(|entry| entry.model == model.name).collect();
        let mut numbers = ModelNumbers::default();
        let base = match &self.header.metrics.against {
            Some(Against::Model(name)) => Some(name.as_str()),
            _ => None,
        };
        let is_base = base == Some(model.name.as_str());
        self.clip(&own, is_base, &mut numbers);
        if let Some(base) = base.filter(|_| !is_base) {
            self.pairs(&own, base, &mut numbers);
        }
        self.unlearning(&own, &mut numbers);
        numbers
    }

    fn clip(&self, own: &[&Entry], is_base: bool, numbers: &mut ModelNumbers) {
        if self.header.metrics.clip.is_none() {
            return;
        }
        let scores: Vec<f64> = own.iter().filter_map(|entry| entry.clip.as_ref()).map(|look| look.score).collect();
        if !scores.is_empty() {
            numbers.metrics.push(mean("CLIP score", CLIP_SCORE_DEFINITION, &scores));
        }
        let Some(others) = self.others.as_ref().filter(|_| !is_base) else { return };
        let both = features(own.iter().copied()).and_then(|own| Ok((own, others.as_ref().map_err(String::clone)?)));
        type Distance = fn(&[Vec<f32>], &[Vec<f32>]) -> Result<Metric>;
        for (name, distance) in [("CLIP-FID", clip_fid as Distance), ("CMMD", cmmd as Distance)] {
            let found = both.as_ref().map_err(String::clone).and_then(|(own, others)| {
                // distances are from what is compared with to this
                distance(others, own).map_err(|e| e.to_string())
            });
            match found {
                Ok(metric) => numbers.metrics.push(metric),
                Err(why) => numbers.left_out.push(format!("{name}: {why}")),
            }
        }
    }

    fn pairs(&self, own: &[&'a Entry], base: &str, numbers: &mut ModelNumbers) {
        let of_base: Pictures<'a> = self.entries.iter().filter(|e| e.model == base).map(pair_key).collect();
        let pairs: Vec<(&'a Entry, &'a Entry)> =
            own.iter().filter_map(|entry| Some((*of_base.get(&pair_key(entry).0)?, *entry))).collect();
        let similar: Vec<f64> = own.iter().filter_map(|entry| entry.ssim).collect();
        match (self.header.settings.images, similar.len() == own.len() && !own.is_empty()) {
            (_, true) => numbers.metrics.push(mean("SSIM", SSIM_DEFINITION, &similar)),
            (false, _) => numbers.left_out.push("SSIM: pictures were not kept (--no-images)".into()),
            (true, false) => {
                numbers
                    .left_out
                    .push("SSIM: some pictures are of another size by the other model, or below 11x11".into());
            }
        }
        for detector in &self.header.detectors {
            let of = |entry: &'a Entry| entry.labels.get(&detector.key).map_or(&[][..], Vec::as_slice);
            let (before, after): (Vec<_>, Vec<_>) = pairs.iter().map(|(a, b)| (of(a), of(b))).unzip();
            numbers.paired.extend(PairedLabel::all(detector, &before, &after));
        }
        let score = |entry: &Entry| entry.clip.as_ref().map(|look| look.score);
        let scores: Option<(Vec<f64>, Vec<f64>)> = pairs.iter().map(|(a, b)| Some((score(a)?, score(b)?))).collect();
        if let Some((before, after)) = scores {
            numbers.clip_score_difference = paired_bootstrap(&before, &after, RESAMPLES.0, RESAMPLES.1).ok();
        }
    }

    fn unlearning(&self, own: &[&Entry], numbers: &mut ModelNumbers) {
        let targets: Vec<&str> = self.header.metrics.targets.iter().map(String::as_str).collect();
        for detector in &self.header.detectors {
            if targets.is_empty() || !targets.iter().all(|target| detector.labels.iter().any(|label| label == target)) {
                continue;
            }
            let mut answers = Vec::new();
            for entry in own {
                let found = entry.labels.get(&detector.key);
                for label in detector.labels.iter().filter(|label| states(entry, label)) {
                    answers.push(Stated { label, right: found.is_some_and(|found| found.contains(label)) });
                }
            }
            match unlearn_canvas(&targets, &answers) {
                Ok(found) => drop(numbers.unlearning.insert(detector.key.clone(), found)),
                Err(why) => numbers.left_out.push(format!("UA, IRA, CRA: {why}")),
            }
        }
    }
}

fn pair_key(entry: &Entry) -> ((&str, usize), &Entry) {
    ((entry.case.as_str(), entry.sample), entry)
}

fn features<'e>(entries: impl Iterator<Item = &'e Entry>) -> std::result::Result<Vec<Vec<f32>>, String> {
    let all = entries.map(|entry| entry.clip.as_ref().and_then(super::ClipLook::features)).collect::<Option<_>>();
    all.ok_or_else(|| "a picture has no features in manifest.jsonl, or damaged ones; was it changed by hand?".into())
}

fn mean(name: &'static str, definition: &'static str, values: &[f64]) -> Metric {
    let value = values.iter().sum::<f64>() / values.len() as f64;
    Metric { name, definition, value, pictures: vec![values.len()] }
}

impl PairedLabel {
    /// Each label of a detector that is shown at least once, from what was found in pictures of the same prompts and seeds.
    pub fn all(detector: &UsedDetector, before: &[&[String]], after: &[&[String]]) -> Vec<Self> {
        let mut found = Vec::new();
        for label in &detector.labels {
            let shows =
                |pictures: &[&[String]]| pictures.iter().map(|found| found.contains(label)).collect::<Vec<bool>>();
            let (before, after) = (shows(before), shows(after));
            if !before.iter().chain(&after).any(|shown| *shown) {
                continue;
            }
            let Ok(test) = mcnemar(&before, &after) else { continue };
            let (drop, low, high) = paired_drop(&before, &after);
            let (detector, label) = (detector.key.clone(), label.clone());
            found.push(Self { detector, label, n: before.len(), drop, low, high, test });
        }
        found
    }
}

/// Whether a picture's prompt names a label; see [`STATED_DEFINITION`].
fn states(entry: &Entry, label: &str) -> bool {
    let (domain, name) = label.split_once(':').map_or(("", label), |(domain, name)| (domain.trim(), name.trim()));
    let column =
        entry.columns.iter().find(|(column, _)| !domain.is_empty() && column.trim().eq_ignore_ascii_case(domain));
    match column {
        Some((_, value)) => words(value) == words(name),
        None => format!(" {} ", words(&entry.prompt)).contains(&format!(" {} ", words(name))),
    }
}

/// A text's words in lower case, with one space between.
fn words(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::header;
    use super::super::manifest::tests::entry;
    use super::super::{ClipLook, UsedClip};
    use super::*;
    use candle_core::{Device, Tensor};

    /// A file beside the scripts that made it: `tests/fixtures/metrics/make_metrics.py`.
    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics").join(name)
    }

    fn reference() -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(fixture("metrics.json")).unwrap()).unwrap()
    }

    fn features_of(name: &str) -> Vec<Vec<f32>> {
        let all: HashMap<String, Tensor> =
            candle_core::safetensors::load(fixture("features.safetensors"), &Device::Cpu).unwrap();
        all[name].to_vec2().unwrap()
    }

    /// Two models, `base` and `m`, the second compared with the first.
    fn two_models() -> Header {
        let mut header = header();
        header.models =
            ["base", "m"].map(|name| ModelRecord { name: name.into(), ..header.models[0].clone() }).to_vec();
        header.metrics.against = Some(Against::Model("base".into()));
        header.metrics.clip = Some(UsedClip { name: "clip".into(), sha256: "00".repeat(32) });
        header
    }

    /// A picture without a file.
    fn picture(model: &str, number: usize) -> Entry {
        let folder = tempfile::tempdir().unwrap();
        Entry { model: model.into(), ..entry(folder.path(), &number.to_string()) }
    }

    fn close(ours: f64, theirs: &serde_json::Value) {
        let theirs = theirs.as_f64().unwrap();
        assert!((ours - theirs).abs() < 1e-4 * theirs.abs().clamp(1e-3, 1.0), "{ours}, reference {theirs}");
    }

    #[test]
    fn distances_and_scores_of_models_equal_the_reference() {
        let (reference, header) = (reference(), two_models());
        let scores: Vec<f64> = serde_json::from_value(reference["clip_scores"].clone()).unwrap();
        let mut entries = Vec::new();
        for (model, name) in [("base", "many_a"), ("m", "many_b")] {
            let rows = features_of(name).into_iter().enumerate();
            entries.extend(rows.map(|(i, row)| Entry {
                clip: Some(ClipLook::new(&row, scores[i % scores.len()])),
                ssim: (model == "m").then_some(0.25 + 0.5 * (i % 2) as f64),
                ..picture(model, i)
            }));
        }
        let numbers = Numbers::new(Path::new(""), &header, &entries).unwrap().of(&header.models[1]);
        let value = |name: &str| numbers.metrics.iter().find(|metric| metric.name == name).unwrap().value;
        close(value("CLIP-FID"), &reference["clip_fid"]["many"]);
        close(value("CMMD"), &reference["cmmd"]["many"]);
        let base = Numbers::new(Path::new(""), &header, &entries).unwrap().of(&header.models[0]);
        assert_eq!(base.metrics.iter().map(|metric| metric.name).collect::<Vec<_>>(), ["CLIP score"]);
        let text = numbers.lines().join("\n");
        assert!(
            text.contains("CLIP-FID: 7.5577") && text.contains("CMMD: 0.7248") && text.contains("SSIM: 0.5"),
            "{text}"
        );
        // one picture has no spread
        let few: Vec<Entry> = entries.iter().filter(|entry| entry.case == "0").cloned().collect();
        let numbers = Numbers::new(Path::new(""), &header, &few).unwrap().of(&header.models[1]);
        assert!(
            numbers.left_out[0].starts_with("CLIP-FID: CLIP-FID needs at least 2 pictures"),
            "{:?}",
            numbers.left_out
        );
    }

    #[test]
    fn differences_of_scores_and_labels_in_pairs_equal_the_reference() {
        let (reference, header) = (reference(), two_models());
        let of = |key: &str| serde_json::from_value::<Vec<f64>>(reference["bootstrap"][key].clone()).unwrap();
        for case in reference["mcnemar"].as_array().unwrap() {
            let count = |i: usize| case[i].as_u64().unwrap() as usize;
            let (lost, gained) = (count(0), count(1));
            let n = lost + gained + 4;
            let mut entries = Vec::new();
            for (model, scores) in [("base", of("before")), ("m", of("after"))] {
                for (i, score) in scores.iter().cycle().take(n.max(scores.len())).enumerate() {
                    let shown = match i {
                        i if i < lost => model == "base",
                        i if i < lost + gained => model == "m",
                        i => i % 2 == 0,
                    };
                    let labels = if shown { vec!["shape: star".to_string()] } else { vec![] };
                    entries.push(Entry {
                        labels: [("classifier".to_string(), labels)].into(),
                        clip: Some(ClipLook::new(&[1.0, i as f32], *score)),
                        ..picture(model, i)
                    });
                }
            }
            let numbers = Numbers::new(Path::new(""), &header, &entries).unwrap().of(&header.models[1]);
            let paired = &numbers.paired[..];
            assert_eq!((paired.len(), paired[0].label.as_str()), (1, "shape: star"));
            assert_eq!((paired[0].test.only_before, paired[0].test.only_after), (lost, gained));
            assert!((paired[0].test.p / case[2].as_f64().unwrap() - 1.0).abs() < 1e-9);
            let drop = (lost as f64 - gained as f64) / paired[0].n as f64;
            assert!((paired[0].drop - drop).abs() < 1e-12 && paired[0].low < drop && drop < paired[0].high);
            if entries.len() == 80 {
                close(numbers.clip_score_difference.unwrap().mean, &reference["bootstrap"]["mean"]);
            }
            assert!(numbers.left_out.iter().any(|what| what.starts_with("SSIM: some pictures")));
        }
    }

    #[test]
    fn unlearning_accuracies_of_an_audit_equal_the_reference() {
        let reference = &reference()["unlearn_canvas"];
        let answers: Vec<(String, bool)> = serde_json::from_value(reference["answers"].clone()).unwrap();
        let mut header = header();
        header.metrics.targets = vec![reference["target"].as_str().unwrap().into()];
        header.detectors[0].labels = answers.iter().map(|(label, _)| label.clone()).collect();
        header.detectors[0].labels.sort();
        header.detectors[0].labels.dedup();
        // two answers a picture: its style, which a column says, and its object, which the prompt says
        let entries: Vec<Entry> = answers
            .chunks(2)
            .enumerate()
            .map(|(i, pair)| {
                let value = |label: &str| label.split_once(": ").unwrap().1.to_string();
                let found = pair.iter().filter(|(_, right)| *right).map(|(label, _)| label.clone()).collect();
                let mut picture = picture("m", i);
                picture.prompt = format!("An image of {}.", value(&pair[1].0));
                picture.columns = [("style".to_string(), value(&pair[0].0))].into();
                Entry { labels: [("classifier".to_string(), found)].into(), ..picture }
            })
            .collect();
        let numbers = Numbers::new(Path::new(""), &header, &entries).unwrap().of(&header.models[0]);
        let found = &numbers.unlearning["classifier"];
        for (metric, name) in [(&found.ua, "ua"), (&found.ira, "ira"), (&found.cra, "cra")] {
            close(metric.as_ref().unwrap().value, &reference[name]);
        }
        assert!(numbers.lines()[0].starts_with("UA 86.7, IRA 95.6, CRA 71.7"), "{:?}", numbers.lines());
    }

    #[test]
    fn a_prompt_names_labels_by_column_or_by_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut picture = entry(folder.path(), "a");
        picture.prompt = "A Van-Gogh painting of cats".into();
        assert!(states(&picture, "style: van gogh") && states(&picture, "object: Cats") && states(&picture, "cats"));
        assert!(!states(&picture, "object: cat") && !states(&picture, "style: gogh van"));
        picture.columns.insert("Style".into(), "Monet".into());
        assert!(states(&picture, "style: monet") && !states(&picture, "style: van gogh"));
    }
}
