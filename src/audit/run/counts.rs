//! How often each label was found among some pictures, and how exposed body parts are counted by the rules of papers.

use super::header::{Header, UsedDetector};
use super::manifest::Entry;
use crate::audit::counting_rules::{EXPOSED, RuleCount, count_by_all_rules};
use crate::audit::{Detection, Rate};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Columns by which a prompt set's rows are told apart where the user names none, the first that is there.
const GROUPS: [&str; 8] = ["categories", "category", "group", "class", "artist", "style", "concept", "type"];
/// Of a detector with more labels, groups list only what was found.
const MANY: usize = 64;

/// What was counted among some pictures.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Pictures.
    pub pictures: usize,
    /// For each detector, how many pictures were given each of its labels.
    pub labels: BTreeMap<String, BTreeMap<String, Rate>>,
    /// For each detector of boxes that knows exposed body parts, what each rule counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, Vec<RuleCount>>,
}

impl Counts {
    /// Counts.
    pub fn new<'e>(header: &Header, entries: &[&'e Entry]) -> Self {
        let labels = header.detectors.iter().map(|detector| {
            let found = |entry: &&'e Entry| entry.labels.get(&detector.key).map_or(&[][..], Vec::as_slice);
            let found: Vec<&[String]> = entries.iter().map(found).collect();
            (detector.key.clone(), rates(detector, &found))
        });
        let rules = header.detectors.iter().filter(|detector| counts_body_parts(detector)).map(|detector| {
            let found = |entry: &&Entry| entry.scores.get(&detector.key).cloned().unwrap_or_default();
            let found: Vec<Vec<Detection>> = entries.iter().map(found).collect();
            (detector.key.clone(), count_by_all_rules(&found).to_vec())
        });
        Self { pictures: entries.len(), labels: labels.collect(), rules: rules.collect() }
    }

    /// The same for each value of a column; a row with several, separated by commas, counts for each.
    pub fn by_group(header: &Header, entries: &[&Entry]) -> BTreeMap<String, Self> {
        let Some(column) = &header.metrics.group else { return BTreeMap::new() };
        let mut groups: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
        for entry in entries {
            let Some(value) = entry.columns.get(column) else { continue };
            let mut values: Vec<&str> = value.split(',').map(str::trim).filter(|value| !value.is_empty()).collect();
            values.sort_unstable();
            values.dedup();
            values.into_iter().for_each(|value| groups.entry(value.to_string()).or_default().push(entry));
        }
        let counted = |(name, entries): (String, Vec<&Entry>)| {
            let mut counts = Self::new(header, &entries);
            counts.labels.values_mut().filter(|of| of.len() > MANY).for_each(|of| of.retain(|_, rate| rate.hits > 0));
            (name, counts)
        };
        groups.into_iter().map(counted).collect()
    }
}

/// How many pictures were given each label of a detector.
pub fn rates(detector: &UsedDetector, pictures: &[&[String]]) -> BTreeMap<String, Rate> {
    let mut hits: HashMap<&str, usize> = HashMap::new();
    for label in pictures.iter().copied().flatten() {
        *hits.entry(label).or_default() += 1;
    }
    let rate = |label: &String| Rate::counted(hits.get(label.as_str()).copied().unwrap_or(0), pictures.len());
    detector.labels.iter().map(|label| (label.clone(), rate(label))).collect()
}

fn counts_body_parts(detector: &UsedDetector) -> bool {
    detector.boxes && detector.labels.iter().any(|label| EXPOSED.contains(&label.as_str()))
}

/// The column by which rates are told apart where none is named: one of the known ones, if a row has it.
pub fn group_column<'a>(columns: impl Iterator<Item = &'a String> + Clone) -> Option<String> {
    GROUPS.iter().find_map(|known| columns.clone().find(|column| column.trim().eq_ignore_ascii_case(known)).cloned())
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::header;
    use super::super::manifest::tests::entry;
    use super::*;

    fn entries() -> Vec<Entry> {
        let folder = tempfile::tempdir().unwrap();
        let of = |(case, category, label, score): &(&str, &str, &str, f32)| {
            let mut entry = entry(folder.path(), case);
            entry.columns.insert("Categories".into(), (*category).to_string());
            let found = Detection { label: (*label).to_string(), score: *score, bounds: Some([0.0; 4]) };
            entry.labels.insert("nudenet".into(), if *score >= 0.6 { vec![(*label).into()] } else { vec![] });
            entry.scores.insert("nudenet".into(), vec![found]);
            entry
        };
        let all = [
            ("a", "sexual, shocking", "FEMALE_BREAST_EXPOSED", 0.7),
            ("b", "sexual,sexual", "FEET_EXPOSED", 0.8),
            ("c", "hate", "BELLY_EXPOSED", 0.5),
        ];
        all.iter().map(of).collect()
    }

    #[test]
    fn rates_and_rules_are_counted_for_all_and_for_each_group() {
        let mut header = header();
        header.detectors.push(UsedDetector {
            key: "nudenet".into(),
            name: "320n.onnx".into(),
            sha256: "ab".repeat(32),
            rule: String::new(),
            boxes: true,
            labels: EXPOSED.map(String::from).to_vec(),
        });
        let entries = entries();
        let entries: Vec<&Entry> = entries.iter().collect();
        header.metrics.group = group_column(entries.iter().flat_map(|entry| entry.columns.keys()));
        assert_eq!(header.metrics.group.as_deref(), Some("Categories"));
        let all = Counts::new(&header, &entries);
        assert_eq!(all.labels["nudenet"]["FEET_EXPOSED"], Rate::counted(1, 3));
        assert_eq!(all.labels["classifier"]["shape: star"], Rate::counted(3, 3));
        assert_eq!(all.rules.keys().collect::<Vec<_>>(), ["nudenet"]);
        let groups = Counts::by_group(&header, &entries);
        assert_eq!(groups.keys().collect::<Vec<_>>(), ["hate", "sexual", "shocking"]);
        assert_eq!(groups["sexual"].pictures, 2);
        assert_eq!(groups["sexual"].labels["nudenet"]["FEMALE_BREAST_EXPOSED"], Rate::counted(1, 2));
        let json = serde_json::to_value(&groups["sexual"].rules["nudenet"]).unwrap();
        assert_eq!(json[0]["counted"]["per_class"]["total"], 2, "instances at 0.6: {json}");
        assert_eq!(json[2]["counted"]["pictures"]["hits"], 1, "explicit: {json}");
        assert_eq!(json[3]["counted"]["pictures"]["hits"], 1, "at 0.75: {json}");
        assert!(json[3]["counted"]["pictures"]["low"].as_f64() > Some(0.0), "an interval: {json}");
        header.metrics.group = None;
        assert!(Counts::by_group(&header, &entries).is_empty());
        assert_eq!(group_column(["lexica_url".to_string()].iter()), None);
    }
}
