//! The pictures of an audit's report: what the manifest says of each, and which are flagged.

use super::header::Header;
use super::manifest::Entry;
use super::summary::find_label;
use crate::audit::counting_rules::EXPLICIT;
use crate::audit::detectors::SAFETY_CHECKER_LABEL;
use crate::audit::html::gallery::{Found, Gallery, GalleryLabel, GalleryPicture, REPORT_SIZE};
use crate::checkpoint::sha256_hex;
use crate::{Error, Result};
use image::{ImageFormat, RgbImage};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Words in labels of pictures that not everybody wants to see unasked.
const DELICATE: [&str; 21] = [
    "blood",
    "bloody",
    "corpse",
    "erotic",
    "explicit",
    "gore",
    "hentai",
    "naked",
    "nsfw",
    "nude",
    "nudes",
    "nudity",
    "porn",
    "pornographic",
    "pornography",
    "sexual",
    "sexy",
    "unsafe",
    "violence",
    "violent",
    "weapon",
];
/// Words that turn them around.
const NOT: [&str; 4] = ["no", "non", "not", "without"];

/// How the report shows pictures; the pictures and numbers do not depend on it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportSettings {
    /// Labels whose pictures are flagged, beside those that every audit flags.
    pub flag: Vec<String>,
    /// Whether flagged pictures are shown as they are.
    pub show: bool,
    /// Bytes that the report may have.
    pub size: u64,
}

impl Default for ReportSettings {
    fn default() -> Self {
        Self { flag: Vec::new(), show: false, size: REPORT_SIZE }
    }
}

impl ReportSettings {
    /// Detectors and labels whose pictures are flagged.
    ///
    /// # Errors
    /// If a label that was asked for is known to no detector.
    pub fn flags<'h>(&self, header: &'h Header) -> Result<HashSet<(&'h str, &'h str)>> {
        let mut flags = HashSet::new();
        for detector in &header.detectors {
            let delicate = detector.labels.iter().filter(|label| is_delicate(label));
            flags.extend(delicate.map(|label| (detector.key.as_str(), label.as_str())));
        }
        for label in &self.flag {
            flags.insert(find_label(header, &format!("--flag {label}"), label)?);
        }
        Ok(flags)
    }
}

/// Whether pictures with this label are flagged unasked.
fn is_delicate(label: &str) -> bool {
    if EXPLICIT.contains(&label) || ["BUTTOCKS_EXPOSED", SAFETY_CHECKER_LABEL].contains(&label) {
        return true;
    }
    let label = label.to_lowercase();
    let words: Vec<&str> = label.split(|c: char| !c.is_alphanumeric()).collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    has(&DELICATE) && !has(&NOT)
}

/// What the manifest says, for the report. Of the labels only those are there that were found at least once.
///
/// # Errors
/// As [`ReportSettings::flags`].
pub fn gallery<'a>(header: &'a Header, entries: &'a [Entry], report: &ReportSettings) -> Result<Gallery<'a>> {
    let flags = report.flags(header)?;
    let given = |entry: &'a Entry| {
        entry.labels.iter().flat_map(|(key, names)| names.iter().map(move |name| (key.as_str(), name.as_str())))
    };
    let found: HashSet<(&str, &str)> = entries.iter().flat_map(given).collect();
    let mut labels = Vec::new();
    for detector in &header.detectors {
        let key = detector.key.as_str();
        let of_detector = detector.labels.iter().filter(|label| found.contains(&(key, label.as_str())));
        labels.extend(of_detector.map(|label| GalleryLabel {
            detector: key,
            label,
            flagged: flags.contains(&(key, label.as_str())),
        }));
    }
    let places: HashMap<(&str, &str), usize> =
        labels.iter().enumerate().map(|(i, l)| ((l.detector, l.label), i)).collect();
    let models: Vec<&str> = header.models.iter().map(|model| model.name.as_str()).collect();
    let picture = |entry: &'a Entry| {
        let of_detector = |(key, names): (&String, &Vec<String>)| {
            let found = |name: &String| {
                let label = places.get(&(key.as_str(), name.as_str())).copied()?;
                let scores = entry.scores.get(key).into_iter().flatten().filter(|seen| seen.label == *name);
                Some(Found { label, score: scores.map(|seen| f64::from(seen.score)).reduce(f64::max) })
            };
            names.iter().filter_map(found).collect::<Vec<_>>()
        };
        GalleryPicture {
            model: models.iter().position(|model| *model == entry.model).unwrap_or(0),
            case: &entry.case,
            sample: entry.sample,
            prompt: &entry.prompt,
            seed: entry.seed,
            guidance_scale: entry.guidance_scale,
            size: (entry.width, entry.height),
            file: entry.file.as_deref(),
            labels: entry.labels.iter().flat_map(of_detector).collect(),
        }
    };
    let pictures = entries.iter().map(picture).collect();
    Ok(Gallery { pictures, models, labels, hide: !report.show })
}

/// Reads a picture of an audit.
///
/// # Errors
/// If it was not kept, its file is not there or is no longer what was written.
pub fn picture(folder: &Path, entry: &Entry) -> Result<RgbImage> {
    let Some(file) = &entry.file else {
        return Err(Error::usage(format!("the picture {}_{} was not kept", entry.case, entry.sample)));
    };
    let path = folder.join(file);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    if sha256_hex(&bytes) != entry.sha256 {
        return Err(Error::file(path, "is not what was written: its hash differs; run the same command again"));
    }
    let image = image::load_from_memory_with_format(&bytes, ImageFormat::Png);
    image.map(|image| image.into_rgb8()).map_err(|e| Error::file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_not_everybody_wants_to_see_are_known() {
        for label in [
            "FEMALE_BREAST_EXPOSED",
            SAFETY_CHECKER_LABEL,
            "nsfw",
            "content: Nudity",
            "a naked person",
            "NSFW_explicit",
        ] {
            assert!(is_delicate(label), "{label}");
        }
        for label in [
            "FEET_EXPOSED",
            "FEMALE_BREAST_COVERED",
            "shape: star",
            "not nude",
            "non-sexual",
            "sfw",
            "neutral",
            "Essex",
        ] {
            assert!(!is_delicate(label), "{label}");
        }
    }
}
