//! A model in diffusers' layout as one file with the original names.

use super::convert::to_original;
use super::{
    Architecture, COMPONENTS, CONFIGS, NEEDED, NameTable, Networks, SPELLING, Spelling, TOKENIZER, TensorFile,
    vocabulary,
};
use crate::checkpoint::files::ModelFiles;
use crate::checkpoint::weights::WeightFiles;
use crate::checkpoint::write::{TensorBytes, write_tensors};
use crate::sd::{Activation, UnetConfig};
use crate::{Error, Result};
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a model as one file with the original names, every tensor in the type and with the bytes that it has.
///
/// Its configs (and its tokenizer, unless that is CLIP's) go into the metadata, from where [`super::SingleFile`] takes them;
/// `metadata` is added.
///
/// # Errors
/// If the model cannot be read, has a tensor that the original layout has no place for, or the file cannot be written.
pub fn write_single_file(files: &ModelFiles, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    let networks = networks(files)?;
    let components = COMPONENTS
        .iter()
        .filter(|(component, _)| *component != "text_encoder_2" || networks.architecture == Architecture::Sdxl);
    let mut opened = Vec::new();
    for (component, rel) in components {
        for shard in &WeightFiles::find(files, rel)?.shards {
            opened.push((*component, files.describe(shard), TensorFile::open(files, shard)?));
        }
    }
    let mut views: BTreeMap<(&str, String), (TensorView<'_>, &str)> = BTreeMap::new();
    for (component, described, file) in &opened {
        views.extend(file.tensors()?.into_iter().map(|(name, view)| ((*component, name), (view, described.as_str()))));
    }
    let spelling = spelling(&networks, &|component, name| views.contains_key(&(component, name.to_string())));
    let table = NameTable::new(&networks, spelling);
    let mut tensors = Vec::new();
    for (original, parts) in table.originals() {
        let mut found = Vec::with_capacity(parts.len());
        for (component, entry) in parts {
            let missing = || {
                let what = format!("has no {}; it does not fit its config", entry.diffusers);
                Error::file(files.describe(component), what)
            };
            let (view, _) = views.remove(&(component, entry.diffusers.clone())).ok_or_else(missing)?;
            found.push((entry.how, view));
        }
        // the views borrow from the mapped files, not from themselves
        let parts: Vec<_> = found.iter().map(|(how, view)| (*how, view.dtype(), view.shape(), view.data())).collect();
        let (dtype, shape, bytes) = to_original(&parts).map_err(|what| Error::Weights(format!("{original} {what}")))?;
        tensors.push((original, dtype, shape, bytes));
    }
    // OpenCLIP has no such buffer
    if let Some(((_, name), (_, file))) = views.iter().find(|((_, name), _)| !name.ends_with("position_ids")) {
        return Err(Error::file(file, format!("{name} has no place in a single file")));
    }
    let tensors = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let bytes = std::borrow::Cow::Borrowed(&**bytes);
        TensorBytes { name, dtype: *dtype, shape, bytes }
    });
    let mut all = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    all.insert(CONFIGS.to_string(), configs(files, spelling)?);
    all.extend(metadata.clone());
    write_tensors(path, tensors.collect(), &all)
}

/// The networks of a model.
pub(in crate::checkpoint) fn networks(files: &ModelFiles) -> Result<Networks> {
    let unet = UnetConfig::from_json(&String::from_utf8_lossy(&files.read("unet/config.json")?))
        .map_err(|e| Error::file(files.describe("unet/config.json"), e))?;
    let text_encoder: crate::sd::TextEncoderConfig = config(files, "text_encoder/config.json")?;
    let architecture = match (unet.addition_embed_type.is_some(), text_encoder.hidden_act) {
        (true, _) => Architecture::Sdxl,
        (false, Activation::Gelu) => Architecture::Sd2,
        (false, Activation::QuickGelu) => Architecture::Sd1,
    };
    let second = (architecture == Architecture::Sdxl).then(|| config(files, "text_encoder_2/config.json"));
    let networks = Networks {
        architecture,
        unet,
        vae: config(files, "vae/config.json")?,
        text_encoder,
        text_encoder_2: second.transpose()?,
    };
    networks.check().map_err(|e| Error::file(files.describe("model_index.json"), e))?;
    Ok(networks)
}

fn config<T: DeserializeOwned>(files: &ModelFiles, rel: &str) -> Result<T> {
    serde_json::from_slice(&files.read(rel)?).map_err(|e| Error::file(files.describe(rel), e))
}

/// How the folder spells its names.
fn spelling(networks: &Networks, has: &dyn Fn(&str, &str) -> bool) -> Spelling {
    let prefixed = |component| has(component, "text_model.final_layer_norm.weight");
    let (text_model, text_model_2) = (prefixed("text_encoder"), prefixed("text_encoder_2"));
    let positions = if text_model { "text_model.embeddings.position_ids" } else { "embeddings.position_ids" };
    Spelling {
        text_model,
        text_model_2,
        old_vae_attention: has("vae", "encoder.mid_block.attentions.0.query.weight"),
        original_text_model: true,
        position_ids: networks.architecture != Architecture::Sd2 && has("text_encoder", positions),
    }
}

/// [`CONFIGS`]: all small files of the model that this program needs.
fn configs(files: &ModelFiles, spelling: Spelling) -> Result<String> {
    let mut all = Map::new();
    let tokenizers = ["tokenizer", "tokenizer_2"].into_iter().flat_map(|folder| {
        let names: &[&str] = if is_clip(files, folder) { &TOKENIZER_SETTINGS } else { &TOKENIZER };
        names.iter().map(move |name| format!("{folder}/{name}"))
    });
    let needed = NEEDED.iter().map(ToString::to_string);
    for rel in needed.chain(["text_encoder_2/config.json".to_string()]).chain(tokenizers) {
        let Some(bytes) = files.try_read(&rel)? else { continue };
        let text = String::from_utf8(bytes.into_owned()).map_err(|e| Error::file(files.describe(&rel), e))?;
        let content = match rel.ends_with(".json") {
            true => serde_json::from_str(&text).map_err(|e| Error::file(files.describe(&rel), e))?,
            false => Value::String(text),
        };
        all.insert(rel, content);
    }
    all.insert(SPELLING.to_string(), serde_json::to_value(spelling).map_err(Error::usage)?);
    Ok(Value::Object(all).to_string())
}

/// What is not the same for all tokenizers with CLIP's vocabulary.
const TOKENIZER_SETTINGS: [&str; 2] = ["special_tokens_map.json", "tokenizer_config.json"];

/// Whether a tokenizer's vocabulary is CLIP's, which every reader of single files has.
fn is_clip(files: &ModelFiles, folder: &str) -> bool {
    let read = |name: &str| files.try_read(&format!("{folder}/{name}")).ok().flatten();
    let Some(vocab) = read("vocab.json") else { return false };
    let parsed = |bytes: &[u8]| serde_json::from_slice::<BTreeMap<String, u32>>(bytes).ok();
    parsed(&vocab).is_some_and(|vocab| Some(vocab) == parsed(vocabulary::vocab_json()))
}
