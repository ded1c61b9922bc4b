//! What the page's script reads: each prompt once, a short array for each picture.

use super::thumbnails::Thumbnails;
use super::{Found, Gallery, GalleryPicture};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Whole numbers beyond this are not exact in a browser.
const EXACT: u64 = 1 << 53;
/// Of what the list of pictures may take, where not all fit: the rest is for thumbnails.
const LISTED: f64 = 0.7;

/// The pictures that are listed, written as JSON, without their thumbnails.
pub(super) struct Listing {
    /// Models, labels and what else stands before the rows.
    head: String,
    /// Case, prompt and guidance of rows.
    rows: Vec<String>,
    /// Pictures, without their closing bracket.
    pictures: Vec<String>,
}

impl Listing {
    /// As many pictures as fit into `bytes`; if not all do, they leave room for thumbnails.
    pub fn new(gallery: &Gallery<'_>, bytes: usize) -> Self {
        let all = Self::first(gallery, usize::MAX);
        if all.bytes() <= bytes { all } else { Self::first(gallery, (bytes as f64 * LISTED) as usize) }
    }

    fn first(gallery: &Gallery<'_>, bytes: usize) -> Self {
        let labels: Vec<Value> =
            gallery.labels.iter().map(|l| json!([l.detector, l.label, u8::from(l.flagged)])).collect();
        let head = json!({ "models": gallery.models, "labels": labels, "hide": gallery.hide });
        let mut listing = Self { head: escaped(&head), rows: Vec::new(), pictures: Vec::new() };
        let mut left = bytes.saturating_sub(listing.bytes());
        let mut rows: HashMap<(&str, &str, u64), usize> = HashMap::new();
        for picture in &gallery.pictures {
            let key = (picture.case, picture.prompt, picture.guidance_scale.to_bits());
            let new = rows.len();
            let place = rows.get(&key).copied().unwrap_or(new);
            let row = (place == new).then(|| escaped(&json!([picture.case, picture.prompt, picture.guidance_scale])));
            let text = entry(picture, place);
            let takes = text.len() + row.as_ref().map_or(0, String::len) + 3; // commas and a bracket
            let Some(rest) = left.checked_sub(takes) else { break };
            left = rest;
            rows.insert(key, place);
            listing.rows.extend(row);
            listing.pictures.push(text);
        }
        listing
    }

    /// How many pictures are listed.
    pub fn listed(&self) -> usize {
        self.pictures.len()
    }

    /// Bytes of the JSON without thumbnails.
    pub fn bytes(&self) -> usize {
        let all = |texts: &[String]| texts.iter().map(|text| text.len() + 2).sum::<usize>();
        self.head.len() + all(&self.rows) + all(&self.pictures) + 64
    }

    /// The whole, with thumbnails.
    pub fn json(&self, thumbnails: &Thumbnails) -> String {
        let mut text = String::with_capacity(self.bytes() + thumbnails.bytes());
        text.push_str(self.head.trim_end_matches('}'));
        text.push_str(",\"heads\":[");
        let heads: Vec<String> = thumbnails.heads().map(|head| format!("\"{head}\"")).collect();
        text.push_str(&heads.join(","));
        text.push_str("],\"rows\":[");
        text.push_str(&self.rows.join(","));
        text.push_str("],\"pictures\":[");
        for (i, picture) in self.pictures.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            text.push_str(picture);
            if let Some((head, body)) = thumbnails.of(i) {
                text.push_str(&format!(",{head},\"{body}\""));
            }
            text.push(']');
        }
        text.push_str("]}");
        text
    }
}

/// `[model, row, sample, seed, width, height, file, labels, scores`
fn entry(picture: &GalleryPicture<'_>, row: usize) -> String {
    let seed = if picture.seed <= EXACT { json!(picture.seed) } else { json!(picture.seed.to_string()) };
    let labels: Vec<usize> = picture.labels.iter().map(|found| found.label).collect();
    let thousandths = |found: &Found| found.score.map(|score| (score * 1000.0).round() / 1000.0);
    let scores: Vec<Option<f64>> = match picture.labels.iter().any(|found| found.score.is_some()) {
        true => picture.labels.iter().map(thousandths).collect(),
        false => Vec::new(),
    };
    let (width, height) = picture.size;
    let file = picture.file.map(super::address);
    let value = json!([picture.model, row, picture.sample, seed, width, height, file, labels, scores]);
    let mut text = escaped(&value);
    text.pop();
    text
}

/// JSON that can stand in a page: no `<`, so that neither `</script>` nor `<!--` ends it.
fn escaped(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}
