//! A model in diffusers' layout as one file with the original names.

use super::convert::{original_shape, to_original};
use super::{
    Architecture, COMPONENTS, CONFIGS, How, NEEDED, NameTable, Networks, SPELLING, Spelling, TOKENIZER, TensorFile,
    vocabulary,
};
use crate::checkpoint::files::{Bytes, ModelFiles};
use crate::checkpoint::save::{check_shape, check_written, rounded};
use crate::checkpoint::weights::WeightFiles;
use crate::checkpoint::write::{Source, Streamed, write_streamed};
use crate::sd::{Activation, UnetConfig};
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Writes a model as one file with the original names, every tensor in the type and with the bytes that it has.
///
/// Its configs (and its tokenizer, unless that is CLIP's) go into the metadata, from where [`super::SingleFile`] takes them;
/// `metadata` is added.
///
/// # Errors
/// If the model cannot be read, has a tensor that the original layout has no place for, or the file cannot be written.
pub fn write_single_file(files: &ModelFiles, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    write_edited_single_file(files, &BTreeMap::new(), path, metadata).map(drop)
}

/// As [`write_single_file`], with the `changed` tensors of the UNet (by diffusers' names) in the types that they had. Returns
/// what of the source was left out.
///
/// Of a single file everything stays as it is: names, types, tensors that are no part of the model, metadata. Only averaged
/// weights (`model_ema.*`) are left out: they would still hold the concept.
///
/// # Errors
/// As [`write_single_file`], and if a changed tensor is not in the UNet, has another shape, or a value that its type cannot hold.
pub fn write_edited_single_file(
    files: &ModelFiles,
    changed: &BTreeMap<String, Tensor>,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    if let ModelFiles::Single(file) = files {
        return super::rewrite::rewrite(file, changed, path, metadata);
    }
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
    let mut views: BTreeMap<(&str, String), (TensorView<'_>, &TensorFile, &str)> = BTreeMap::new();
    for (component, described, file) in &opened {
        let tensors = file.tensors()?.into_iter();
        views.extend(tensors.map(|(name, view)| ((*component, name), (view, file, described.as_str()))));
    }
    let spelling = spelling(&networks, &|component, name| views.contains_key(&(component, name.to_string())));
    let table = NameTable::new(&networks, spelling);
    let mut written = BTreeSet::new();
    let mut tensors = Vec::new();
    for (original, parts) in table.originals() {
        let mut found = Vec::with_capacity(parts.len());
        let mut of = None;
        for (component, entry) in parts {
            let missing = || {
                let what = format!("has no {}; it does not fit its config", entry.diffusers);
                Error::file(files.describe(component), what)
            };
            let (view, file, described) = views.remove(&(component, entry.diffusers.clone())).ok_or_else(missing)?;
            of = Some(file.bytes());
            let edited = changed.get(&entry.diffusers).filter(|_| component == "unet");
            if let Some(tensor) = edited {
                check_shape(described, &entry.diffusers, view.shape(), tensor.dims())?;
                written.insert(entry.diffusers.as_str());
            }
            found.push((entry.how, view, edited));
        }
        tensors.push(as_original(original, found, of)?);
    }
    // OpenCLIP has no such buffer
    if let Some(((_, name), (_, _, file))) = views.iter().find(|((_, name), _)| !name.ends_with("position_ids")) {
        return Err(Error::file(file, format!("{name} has no place in a single file")));
    }
    check_written(changed, |name| written.contains(name), &files.describe("unet"))?;
    let mut all = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    all.insert(CONFIGS.to_string(), configs(files, spelling)?);
    all.extend(metadata.clone());
    write_streamed(path, tensors, &all)?;
    Ok(files.inventory()?.left_out)
}

/// A part of an original tensor: how it lies there, what it was, and what it became.
type Part<'a> = (How, TensorView<'a>, Option<&'a Tensor>);

/// The original tensor of its parts; what has to be turned round, put together or rounded is made when it is written.
fn as_original<'a>(name: &'a str, parts: Vec<Part<'a>>, of: Option<&'a Bytes>) -> Result<Streamed<'a>> {
    let named = move |what: String| Error::Weights(format!("{name} {what}"));
    let empty: Vec<_> = parts.iter().map(|(how, view, _)| (*how, view.dtype(), view.shape())).collect();
    let (dtype, shape) = original_shape(&empty).map_err(named)?;
    let bytes = match &parts[..] {
        [(How::Same | How::Squeezed, view, None)] => Source::Ready(Cow::Borrowed(view.data())),
        _ => Source::Made(Box::new(move || {
            let mut encoded = Vec::with_capacity(parts.len());
            for (_, view, edited) in &parts {
                encoded.push(match edited {
                    None => Cow::Borrowed(view.data()),
                    Some(tensor) => Cow::Owned(rounded(name, tensor, view.dtype())?),
                });
            }
            let raw = parts.iter().zip(&encoded);
            let raw: Vec<_> = raw.map(|((how, view, _), bytes)| (*how, view.dtype(), view.shape(), &**bytes)).collect();
            Ok(Cow::Owned(to_original(&raw).map_err(named)?.2.into_owned()))
        })),
    };
    Ok(Streamed { name: Cow::Borrowed(name), dtype, shape, bytes, of })
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
