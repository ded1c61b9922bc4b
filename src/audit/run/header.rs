//! What the bytes of an audit depend on: the first line of its manifest.

use super::{IMAGES, Selection, Shard};
use crate::audit::Malformed;
use crate::hub::Origin;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the manifest's layout; rises when a field changes its meaning or goes away.
pub const SCHEMA: &str = "erase-concept.manifest/1";

/// A model of an audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What it is called here; no two have the same name.
    pub name: String,
    /// SHA-256 of its files.
    pub sha256: String,
    /// Where it came from, if that is the Hub.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hub: Option<Origin>,
}

/// What looks at the pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsedDetector {
    /// What it is called in entries and tables.
    pub key: String,
    /// What it is.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
    /// By which rule a picture is given a label, and what scores are.
    #[serde(default)]
    pub rule: String,
    /// Whether it says where in a picture something is.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub boxes: bool,
    /// Everything that it may find, in order.
    pub labels: Vec<String>,
}

/// A CLIP whose features of pictures and prompts are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsedClip {
    /// What it is.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
}

/// What pictures are compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// Those of another model of this audit, on the same prompts and seeds.
    Model(String),
    /// Other pictures.
    Folder {
        /// The folder's name.
        name: String,
        /// How many there are.
        pictures: usize,
        /// SHA-256 of the lines `FILE\0SHA256\n` of all, in order.
        sha256: String,
    },
}

/// What is computed beside how often labels were found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsRecord {
    /// For CLIP score, CLIP-FID and CMMD.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clip: Option<UsedClip>,
    /// For CLIP-FID and CMMD; of a model also SSIM and tests of pairs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub against: Option<Against>,
    /// Labels of one axis that should be gone, for UA, IRA and CRA.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub targets: Vec<String>,
    /// The column of the prompt set by which rates are told apart too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
}

/// The prompt set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptsRecord {
    /// SHA-256 of its file.
    pub sha256: String,
    /// Rows that are drawn, in all shards.
    pub rows: usize,
    /// Rows that cannot be.
    pub skipped: Vec<Malformed>,
}

/// Where all was computed before there was a choice.
fn cpu() -> String {
    "cpu".into()
}

/// How pictures are made and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SettingsRecord {
    /// Sampler of each model, in their order.
    pub scheduler: Vec<String>,
    /// Denoising steps.
    pub steps: usize,
    /// The type in which weights are kept.
    pub dtype: String,
    /// What computes: `cpu`, or the kind and the model of the GPU. Others round differently.
    #[serde(default = "cpu")]
    pub device: String,
    /// Whether `f32` matrices are multiplied in TF32.
    #[serde(default)]
    pub tf32: bool,
    /// Vector instructions of the processor: others round differently.
    pub instructions: String,
    /// Which rows are drawn, and how where they do not say.
    #[serde(flatten)]
    pub selection: Selection,
    /// Whether pictures are written.
    pub images: bool,
}

/// The first line of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this program.
    pub version: String,
    /// The models, in order.
    pub models: Vec<ModelRecord>,
    /// The prompt set.
    pub prompts: PromptsRecord,
    /// How pictures are made.
    pub settings: SettingsRecord,
    /// What looks at them.
    pub detectors: Vec<UsedDetector>,
    /// What else is computed.
    #[serde(skip_serializing_if = "MetricsRecord::is_empty", default)]
    pub metrics: MetricsRecord,
    /// Which part this is.
    pub shard: Shard,
}

impl MetricsRecord {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Header {
    /// What differs from another, in words: `settings.steps is 30 there and 8 here`.
    pub fn differences(&self, there: &Self) -> Vec<String> {
        let [here, there] = [self, there].map(|header| serde_json::to_value(header).unwrap_or(Value::Null));
        let mut found = Vec::new();
        compare("", &there, &here, &mut found);
        found
    }

    /// As [`Header::differences`], of what the pictures depend on alone: not what looks at them, nor where a model came from.
    pub fn differences_of_pictures(&self, there: &Self) -> Vec<String> {
        let mut like = self.clone();
        like.detectors.clone_from(&there.detectors);
        like.metrics = there.metrics.clone();
        for (model, there) in like.models.iter_mut().zip(&there.models) {
            model.hub.clone_from(&there.hub);
        }
        like.differences(there)
    }

    /// Whether what this detector found there counts here.
    pub fn knows(&self, detector: &UsedDetector) -> bool {
        self.detectors.contains(detector)
    }

    /// Where a model's pictures go, relative to the audit's folder, with `/`: of several models, each has a folder.
    pub fn folder_of(&self, model: usize) -> String {
        match &self.models[..] {
            [_] => IMAGES.into(),
            models => format!("{IMAGES}/{}", models[model].name),
        }
    }

    /// Rows of this shard.
    pub fn rows(&self) -> usize {
        (0..self.prompts.rows).filter(|row| self.shard.takes(*row)).count()
    }

    /// Pictures of all models in this shard.
    pub fn pictures(&self) -> usize {
        self.models.len() * self.rows() * self.settings.selection.samples
    }
}

fn compare(path: &str, there: &Value, here: &Value, found: &mut Vec<String>) {
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, value, b.get(key).unwrap_or(&Value::Null), found);
            }
            // what is left out where it is nothing
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, &Value::Null, value, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{i}]"), a, b, found);
            }
        }
        _ if there != here => found.push(format!("{path} is {} there and {} here", short(there), short(here))),
        _ => {}
    }
}

/// A value that fits a line.
fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "not given".to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("a list of {}", list.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(16) {
        Some((end, _)) if text.len() == 64 => format!("{}...", &text[..end]), // a hash
        _ => text,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn header() -> Header {
        Header {
            schema: SCHEMA.into(),
            version: "1".into(),
            models: vec![ModelRecord { name: "m".into(), sha256: "ab".repeat(32), hub: None }],
            prompts: PromptsRecord { sha256: "cd".repeat(32), rows: 5, skipped: vec![] },
            settings: SettingsRecord {
                scheduler: vec!["ddim".into()],
                steps: 30,
                dtype: "f32".into(),
                device: "cpu".into(),
                tf32: false,
                instructions: "avx2".into(),
                selection: Selection {
                    seed: 0,
                    guidance_scale: 7.5,
                    width: None,
                    height: None,
                    ignore: vec![],
                    from_case: None,
                    limit: None,
                    samples: 1,
                },
                images: true,
            },
            detectors: vec![UsedDetector {
                key: "classifier".into(),
                name: "a classifier".into(),
                sha256: "ef".repeat(32),
                rule: "the largest logit".into(),
                boxes: false,
                labels: vec!["shape: star".into(), "shape: ring".into()],
            }],
            metrics: MetricsRecord::default(),
            shard: Shard::WHOLE,
        }
    }

    #[test]
    fn differences_are_named() {
        let there = header();
        assert!(header().differences(&there).is_empty());
        let mut here = header();
        here.settings.steps = 8;
        here.settings.selection.limit = Some(3);
        (here.settings.device, here.settings.tf32) = ("cuda X".into(), true);
        here.models[0].sha256 = "00".repeat(32);
        let found = here.differences(&there);
        assert_eq!(
            found,
            [
                "models[0].sha256 is abababababababab... there and 0000000000000000... here",
                "settings.steps is 30 there and 8 here",
                "settings.device is cpu there and cuda X here",
                "settings.tf32 is false there and true here",
                "settings.limit is not given there and 3 here"
            ]
        );
        let line = serde_json::to_string(&there).unwrap();
        assert_eq!(serde_json::from_str::<Header>(&line).unwrap(), there);
        // from before there was a choice
        let old = line.replace(r#""device":"cpu","tf32":false,"#, "");
        assert!(old != line && serde_json::from_str::<Header>(&old).unwrap() == there);
    }

    #[test]
    fn what_looks_at_pictures_and_where_a_model_came_from_makes_no_other_pictures() {
        let there = header();
        let mut here = header();
        here.detectors[0].sha256 = "00".repeat(32);
        here.metrics.targets = vec!["shape: star".into()];
        here.models[0].hub = Some(Origin { repo: "o/n".into(), commit: "c".repeat(40) });
        assert!(here.differences_of_pictures(&there).is_empty() && here.differences(&there).len() == 3);
        assert!(!here.knows(&there.detectors[0]) && here.knows(&here.detectors[0]));
        here.settings.images = false;
        assert_eq!(here.differences_of_pictures(&there), ["settings.images is true there and false here"]);
        // a manifest of before there were metrics
        let line = serde_json::to_string(&there).unwrap();
        assert!(!line.contains("metrics") && !line.contains("boxes") && !line.contains("hub"), "{line}");
        let line = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Header>(&line).unwrap(), here);
    }

    #[test]
    fn a_shards_pictures_are_those_of_its_rows() {
        let mut h = header();
        h.shard = Shard { number: 1, of: 2 };
        h.settings.selection.samples = 2;
        assert_eq!((h.rows(), h.pictures()), (3, 6));
    }
}
