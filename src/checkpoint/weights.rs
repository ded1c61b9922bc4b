//! Which files hold a component's weights: one file, shards with an index, or the fp16 variant of either.

use super::files::ModelFiles;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The files that hold the weights of one component.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightFiles {
    /// The index, if the weights are in shards.
    pub index: Option<String>,
    /// The safetensors files, in order of name; one, unless there is an index.
    pub shards: Vec<String>,
    /// Which shard the index says holds which tensor; empty without an index.
    pub weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Finds the weights whose plain name is `rel`, say `unet/diffusion_pytorch_model.safetensors`.
    ///
    /// In order: that file, its shards (`...safetensors.index.json`), the fp16 variant, the fp16 variant's shards.
    ///
    /// # Errors
    /// If there is none (the message says so if there are weights in another format), or an index is broken.
    pub fn find(files: &ModelFiles, rel: &str) -> Result<Self> {
        let stem = rel.strip_suffix(".safetensors").unwrap_or(rel);
        let candidates = [
            (rel.to_string(), false),
            (format!("{rel}.index.json"), true),
            (format!("{stem}.fp16.safetensors"), false),
            (format!("{rel}.index.fp16.json"), true),
        ];
        match candidates.into_iter().find(|(name, _)| files.contains(name)) {
            Some((name, true)) => Self::sharded(files, name),
            Some((name, false)) => Ok(Self { index: None, shards: vec![name], weight_map: BTreeMap::new() }),
            None => Err(absent(files, rel)),
        }
    }

    /// The file by which these weights are known: the index, or the one file.
    pub fn name(&self) -> &str {
        self.index.as_deref().or(self.shards.first().map(String::as_str)).unwrap_or_default()
    }

    /// Whether this file is one of them.
    pub fn contains(&self, rel: &str) -> bool {
        self.index.as_deref() == Some(rel) || self.shards.iter().any(|shard| shard == rel)
    }

    fn sharded(files: &ModelFiles, index: String) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let parsed: Index = serde_json::from_slice(&files.read(&index)?).map_err(|e| {
            Error::file(files.describe(&index), format!("not an index of shards: {e}; download it again"))
        })?;
        let folder = index.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in parsed.weight_map {
            if shard.contains(['/', '\\', ':']) || !shard.ends_with(".safetensors") {
                let what = format!("names {shard:?} as a shard; only safetensors files beside the index are read");
                return Err(Error::file(files.describe(&index), what));
            }
            weight_map.insert(tensor, if folder.is_empty() { shard } else { format!("{folder}/{shard}") });
        }
        let shards: BTreeSet<_> = weight_map.values().cloned().collect();
        if shards.is_empty() {
            return Err(Error::file(files.describe(&index), "names no shard; download it again"));
        }
        Ok(Self { index: Some(index), shards: shards.into_iter().collect(), weight_map })
    }
}

fn absent(files: &ModelFiles, rel: &str) -> Error {
    let stem = rel.strip_suffix(".safetensors").unwrap_or(rel);
    let stems = [stem.to_string(), format!("{stem}.fp16"), stem.replace("/model", "/pytorch_model")];
    let formats = [".bin", ".bin.index.json", ".ckpt", ".msgpack", ".onnx"];
    let other = stems.iter().flat_map(|stem| formats.iter().map(move |ending| format!("{stem}{ending}")));
    match other.into_iter().find(|name| files.contains(name)) {
        Some(name) => {
            let name = name.rsplit('/').next().unwrap_or_default();
            let what = format!(
                "no such file; there is only {name}, but safetensors are needed. Load the model with diffusers and write \
                 it with save_pretrained(..., safe_serialization=True), or download the safetensors version"
            );
            Error::file(files.describe(rel), what)
        }
        None => Error::file(
            files.describe(rel),
            "no such file, and no shards or fp16 variant of it; download the weights of this component",
        ),
    }
}
