//! Where a detector's files are: a folder of its own, or a folder of a model.

use super::Kind;
use crate::audit::image_processor::{ImageProcessor, ProcessorKind};
use crate::checkpoint::{ModelFiles, WeightFiles, load_tensors_on, sha256_file, sha256_hex};
use crate::hub::{self, Hub, Lookup};
use crate::nn::ParamStore;
use crate::progress::Progress;
use crate::sd::Tokenizer;
use crate::{Error, Result};
use candle_core::Device;
use serde_json::Value;
use std::path::Path;

/// The one name that transformers writes weights under.
const WEIGHTS: &str = "model.safetensors";
const PREPROCESSOR: &str = "preprocessor_config.json";

/// A detector's files.
#[derive(Debug, Clone)]
pub struct DetectorFiles {
    files: ModelFiles,
    /// Within `files`, with `/`; empty for the folder itself.
    folder: String,
    name: String,
    device: Device,
}

impl PartialEq for DetectorFiles {
    fn eq(&self, other: &Self) -> bool {
        (&self.files, &self.folder, &self.name) == (&other.files, &other.folder, &other.name)
            && self.device.same_device(&other.device)
    }
}

impl DetectorFiles {
    /// A detector by its name: a folder, `demo/clip` or `demo/classifier` (part of this program), or `OWNER/NAME` on
    /// the Hugging Face Hub, which is taken from the cache or fetched (`lookup` says at which revision, and whether
    /// offline).
    ///
    /// # Errors
    /// As [`DetectorFiles::folder`]; of the Hub, [`Error::Hub`] says why it is not to be had.
    pub fn find(name: &str, lookup: &Lookup, progress: &mut dyn Progress) -> Result<Self> {
        match name.strip_prefix("demo/") {
            _ if Path::new(name).is_dir() => Self::folder(Path::new(name)),
            Some(part @ ("clip" | "classifier")) => Ok(Self::within(hub::demo(), part)),
            _ => {
                let mut hub = Hub::from_environment()?;
                hub.offline |= lookup.offline;
                Self::on_hub(&hub, name, lookup.revision.as_deref(), progress)
            }
        }
    }

    /// `OWNER/NAME` on this Hub; its name in reports tells the commit.
    ///
    /// # Errors
    /// As [`DetectorFiles::find`].
    pub fn on_hub(hub: &Hub, name: &str, revision: Option<&str>, progress: &mut dyn Progress) -> Result<Self> {
        let found = hub::find_single_on(hub, name, revision, progress)?;
        let name =
            found.origin.map_or(name.to_string(), |origin| format!("{} at commit {}", origin.repo, origin.commit));
        Ok(Self { name, ..Self::within(found.files, "") })
    }

    /// A folder with `config.json` and `model.safetensors`, as `save_pretrained` writes it and as a snapshot of the Hub
    /// has it.
    ///
    /// # Errors
    /// If there is no such folder, or no `config.json` in it.
    pub fn folder(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let what = "is not a folder; a detector is a folder with a config.json, a preprocessor_config.json and a \
                        model.safetensors";
            return Err(Error::file(path, what));
        }
        // a component of a pipeline: what it shares with others (tokenizer, feature extractor) lies beside it
        let parent = path.parent().filter(|parent| parent.join("model_index.json").is_file());
        let folder = path.file_name().and_then(|name| name.to_str());
        let found = match (parent, folder) {
            (Some(parent), Some(folder)) => Self::within(ModelFiles::Folder(parent.to_path_buf()), folder),
            _ => Self::within(ModelFiles::Folder(path.to_path_buf()), ""),
        };
        let found = Self { name: path.display().to_string(), ..found };
        match found.files.contains(&found.rel("config.json")) {
            true => Ok(found),
            false => Err(Error::file(
                path.join("config.json"),
                "no such file; a detector has it, so name the folder that holds the detector's own config.json",
            )),
        }
    }

    /// A folder of a model: the demo's `clip`, Stable Diffusion's `safety_checker`.
    pub fn within(files: ModelFiles, folder: &str) -> Self {
        let name = files.describe(folder);
        Self { files, folder: folder.to_string(), name, device: Device::Cpu }
    }

    /// The same, to be opened on this device.
    pub fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// Whether its config is a CLIP's.
    ///
    /// # Errors
    /// If the config cannot be read.
    pub fn is_clip(&self) -> Result<bool> {
        Ok(Kind::of(&self.config()?) == Some(Kind::Clip))
    }

    /// What a report should call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn describe(&self, name: &str) -> String {
        self.files.describe(&self.rel(name))
    }

    fn rel(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_string() } else { format!("{}/{name}", self.folder) }
    }

    fn json(&self, rel: &str) -> Result<Value> {
        let file = |what: String| Error::file(self.files.describe(rel), what);
        let value: Value = serde_json::from_slice(&self.files.read(rel)?)
            .map_err(|e| file(format!("{e}; correct it, or download the file again")))?;
        if value.is_object() { Ok(value) } else { Err(file("is not a JSON object; download the file again".into())) }
    }

    /// `config.json`, parsed.
    pub(super) fn config(&self) -> Result<Value> {
        self.json(&self.rel("config.json"))
    }

    /// The weights.
    pub(super) fn weights(&self) -> Result<ParamStore> {
        Ok(ParamStore::new(load_tensors_on(&self.files, &self.rel(WEIGHTS), &self.device)?.tensors))
    }

    /// SHA-256 of the weights' file; of shards, that of a line `NAME\0HASH\n` for each, as of a whole model.
    pub(super) fn sha256(&self) -> Result<String> {
        let found = WeightFiles::find(&self.files, &self.rel(WEIGHTS))?;
        let hash = |rel: &String| match &self.files {
            ModelFiles::Folder(root) => sha256_file(root.join(rel)),
            other => Ok(sha256_hex(&other.read(rel)?)),
        };
        let hashes = found.shards.iter().map(hash).collect::<Result<Vec<_>>>()?;
        match hashes.as_slice() {
            [one] => Ok(one.clone()),
            all => {
                let lines: Vec<String> =
                    found.shards.iter().zip(all).map(|(rel, hash)| format!("{rel}\0{hash}\n")).collect();
                Ok(sha256_hex(lines.concat().as_bytes()))
            }
        }
    }

    /// The image processor: beside the weights, or in the pipeline's `feature_extractor/`.
    pub(super) fn processor(&self, kind: ProcessorKind) -> Result<ImageProcessor> {
        let shared = format!("feature_extractor/{PREPROCESSOR}");
        let rel = [self.rel(PREPROCESSOR), shared].into_iter().find(|rel| self.files.contains(rel));
        let Some(rel) = rel else {
            let what = "no such file; it says how pictures are prepared for this detector, download it too";
            return Err(Error::file(self.describe(PREPROCESSOR), what));
        };
        ImageProcessor::from_value(&self.json(&rel)?, kind).map_err(|e| self.name_file(&rel, e))
    }

    /// The tokenizer: beside the weights, or the pipeline's own.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        let has = |folder: &str| {
            ["tokenizer.json", "vocab.json"].iter().any(|name| self.files.contains(&format!("{folder}{name}")))
        };
        let own = if self.folder.is_empty() { String::new() } else { format!("{}/", self.folder) };
        let folder = [own, "tokenizer/".to_string()].into_iter().find(|folder| has(folder));
        let Some(folder) = folder else {
            let what =
                "no such file; a CLIP needs its tokenizer.json, or its vocab.json and merges.txt: download them too";
            return Err(Error::file(self.describe("tokenizer.json"), what));
        };
        let read = |name: &str| Ok(self.files.try_read(&format!("{folder}{name}"))?.map(|bytes| bytes.into_owned()));
        Tokenizer::from_files(&read).map_err(|e| self.name_file(folder.trim_end_matches('/'), e))
    }

    /// Says that a complaint about settings or weights is about the config.
    pub(super) fn in_config(&self, e: Error) -> Error {
        self.name_file(&self.rel("config.json"), e)
    }

    fn name_file(&self, rel: &str, e: Error) -> Error {
        match e {
            Error::Usage(what) => {
                Error::file(self.files.describe(rel), format!("{what}; correct it, or download the file again"))
            }
            Error::Weights(what) => Error::file(self.files.describe(rel), what),
            other => other,
        }
    }
}
