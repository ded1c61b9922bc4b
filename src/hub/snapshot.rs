//! Which of a model's files are needed: what `model_index.json` names and this program reads, in one format and one variant.

use super::listing::Listing;
use crate::checkpoint::is_top_level;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// The file that says what a model consists of.
pub(super) const INDEX: &str = "model_index.json";

/// Components with weights, and the plain names of these.
const NETWORKS: [(&str, &str); 4] = [
    ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
];

/// Components of text files alone.
const TEXTS: [&str; 3] = ["tokenizer", "tokenizer_2", "scheduler"];

/// What a network at the top may have beside config and weights.
const SINGLE_TEXTS: [&str; 6] = [
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// Chooses files of `listing`; `read` gives the content of one (the index of shards). `model` is for messages.
///
/// # Errors
/// If there is no `model_index.json`, or a network has weights in another format only.
pub(super) fn choose(
    model: &str,
    listing: &Listing,
    index: &Value,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
) -> Result<BTreeSet<String>> {
    let named = |component: &str| {
        let class = index.get(component).and_then(Value::as_array);
        class.is_some_and(|class| !class.iter().all(Value::is_null))
    };
    let is_text = |name: &str| [".json", ".txt"].iter().any(|ending| name.ends_with(ending));
    let mut chosen = BTreeSet::new();
    for path in listing.0.keys() {
        let wanted = match path.split_once('/') {
            None => is_top_level(path),
            Some((folder, name)) => TEXTS.contains(&folder) && named(folder) && is_text(name) && !name.contains('/'),
        };
        if wanted {
            chosen.insert(path.clone());
        }
    }
    for (component, stem) in NETWORKS.iter().filter(|(component, _)| named(component)) {
        chosen.extend(network(model, component, stem, listing, read)?);
    }
    Ok(chosen)
}

/// As [`choose`], for a model of one network that lies at the top (a CLIP, an image classifier): config, weights, and the texts of
/// tokenizer and image processor.
///
/// # Errors
/// If there is no `config.json`, or weights in another format only.
pub(super) fn choose_single(
    model: &str,
    listing: &Listing,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
) -> Result<BTreeSet<String>> {
    if !listing.0.contains_key("config.json") {
        let what = format!(
            "{model} has no config.json at its top, so it is no detector in transformers' layout; choose another"
        );
        return Err(Error::Hub(what));
    }
    let wanted = |path: &&String| is_top_level(path) || SINGLE_TEXTS.contains(&path.as_str());
    let mut chosen: BTreeSet<String> = listing.0.keys().filter(wanted).cloned().collect();
    chosen.extend(network(model, "", "model", listing, read)?);
    Ok(chosen)
}

/// Config and weights of one network, in `component/`, or at the top if that is empty.
fn network(
    model: &str,
    component: &str,
    stem: &str,
    listing: &Listing,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
) -> Result<BTreeSet<String>> {
    let folder = if component.is_empty() { String::new() } else { format!("{component}/") };
    let has = |path: &str| listing.0.contains_key(path);
    let mut chosen: BTreeSet<String> =
        Some(format!("{folder}config.json")).filter(|config| has(config)).into_iter().collect();
    // in the order in which `WeightFiles::find` looks for them
    let file = |ending: &str| format!("{folder}{stem}{ending}");
    let indexed = |ending: &str, shards: bool| (file(ending), shards);
    let candidates = [
        indexed(".safetensors", false),
        indexed(".safetensors.index.json", true),
        indexed(".fp16.safetensors", false),
        indexed(".safetensors.index.fp16.json", true),
    ];
    match candidates.into_iter().find(|(path, _)| has(path)) {
        Some((path, false)) => drop(chosen.insert(path)),
        Some((path, true)) => {
            chosen.extend(shards(model, &folder, &path, listing, &read(&path)?)?);
            chosen.insert(path);
        }
        None => return Err(Error::Hub(no_safetensors(model, component, listing))),
    }
    Ok(chosen)
}

/// The shards that an index names.
fn shards(model: &str, folder: &str, path: &str, listing: &Listing, index: &[u8]) -> Result<BTreeSet<String>> {
    let wrong = |what: String| Error::Hub(format!("{model}: {path} {what}; choose another --revision or model"));
    let index: Value = serde_json::from_slice(index).map_err(|e| wrong(format!("is not an index of shards: {e}")))?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("has no weight_map".into()))?;
    let mut found = BTreeSet::new();
    for shard in map.values() {
        let shard = format!("{folder}{}", shard.as_str().unwrap_or_default());
        if !listing.0.contains_key(&shard) || !shard.ends_with(".safetensors") {
            return Err(wrong(format!("names the shard {shard:?}, which is not there")));
        }
        found.insert(shard);
    }
    Ok(found)
}

/// What is there in place of a network's safetensors.
fn no_safetensors(model: &str, component: &str, listing: &Listing) -> String {
    let others = [".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".onnx_data", ".h5"];
    let single = component.is_empty();
    let folder = format!("{component}/");
    let here = |path: &str| if single { !path.contains('/') } else { path.starts_with(&folder) };
    let inside = |path: &&String| here(path) && others.iter().any(|ending| path.ends_with(ending));
    if single {
        let other = listing.0.keys().find(inside).map(|other| format!(", only {other}")).unwrap_or_default();
        return format!(
            "{model}: has no model.safetensors{other}, but only safetensors are read (other formats may run code when they are \
             opened). Choose another revision or model, or convert it once: load it with transformers, write it with \
             save_pretrained(FOLDER), and name FOLDER"
        );
    }
    match listing.0.keys().find(inside) {
        Some(other) => format!(
            "{model}: the weights of {component} are there as {other} only, but only safetensors are read (the others may \
             run code when they are opened). Choose another --revision or model, or convert it once: load it with diffusers, \
             write it with save_pretrained(FOLDER, safe_serialization=True), and pass --model FOLDER"
        ),
        None => format!(
            "{model}: has no weights for {component}, which its {INDEX} names; choose another --revision or model"
        ),
    }
}

/// What to say of a model without `model_index.json`.
pub(super) fn no_index(model: &str, listing: &Listing) -> String {
    let singles = listing.0.keys().filter(|path| !path.contains('/') && path.ends_with(".safetensors"));
    let singles: Vec<&str> = singles.map(String::as_str).take(3).collect();
    let hint = match singles.first() {
        Some(_) => format!(" (there are single files: {}; download one and pass it)", singles.join(", ")),
        None => String::new(),
    };
    format!(
        "{model} has no {INDEX}, so it is not a text-to-image model in diffusers' layout{hint}; choose another model"
    )
}

#[cfg(test)]
mod tests {
    use super::super::listing::Entry;
    use super::*;
    use serde_json::json;

    fn listing(paths: &[&str]) -> Listing {
        Listing(paths.iter().map(|path| (path.to_string(), Entry::default())).collect())
    }

    fn index(components: &[&str]) -> Value {
        let mut index = json!({ "_class_name": "StableDiffusionPipeline", "feature_extractor": [null, null] });
        for component in components {
            index[component] = json!(["library", "Class"]);
        }
        index
    }

    fn chosen(paths: &[&str], components: &[&str]) -> Vec<String> {
        let mut read = |path: &str| -> Result<Vec<u8>> {
            assert!(path.ends_with(".json"), "{path}");
            Ok(br#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors", "c": "s-1.safetensors"}}"#.to_vec())
        };
        choose("m", &listing(paths), &index(components), &mut read).unwrap().into_iter().collect()
    }

    #[test]
    fn what_the_index_names_and_no_more() {
        let all = [
            ".gitattributes",
            "README.md",
            "LICENSE.md",
            "v1-4.ckpt",
            "v1-4.safetensors",
            "picture.png",
            "model_index.json",
            "feature_extractor/preprocessor_config.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer/deep/vocab.json",
            "tokenizer_2/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_flax_model.msgpack",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vae_decoder/model.onnx",
            "text_encoder_2/model.safetensors",
        ];
        let named = ["safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae", "vae_decoder"];
        let expected = [
            "LICENSE.md",
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(chosen(&all, &named), expected);
    }

    #[test]
    fn shards_and_half_precision_where_there_is_nothing_else() {
        let weights = |endings: &[&str]| {
            let paths = endings.iter().map(|ending| format!("unet/{ending}")).collect::<Vec<_>>();
            chosen(&paths.iter().map(String::as_str).collect::<Vec<_>>(), &["unet"])
        };
        let full = "diffusion_pytorch_model.safetensors";
        let (half, sharded) =
            ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.json");
        let sharded_half = "diffusion_pytorch_model.safetensors.index.fp16.json";
        let parts = ["s-1.safetensors", "s-2.safetensors", "s-3.safetensors"];
        assert_eq!(weights(&[full, half, sharded]), [format!("unet/{full}")]);
        let three = [format!("unet/{sharded}"), "unet/s-1.safetensors".into(), "unet/s-2.safetensors".into()];
        assert_eq!(weights(&[&[half, sharded], &parts[..]].concat()), three);
        assert_eq!(weights(&[half, sharded_half]), [format!("unet/{half}")]);
        assert_eq!(weights(&[&[sharded_half], &parts[..]].concat())[0], format!("unet/{sharded_half}"));
    }

    #[test]
    fn of_a_single_network_what_lies_at_the_top() {
        let single = |paths: &[&str]| {
            let mut read =
                |_: &str| Ok(br#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors"}}"#.to_vec());
            choose_single("o/m", &listing(paths), &mut read).map_err(|e| e.to_string())
        };
        let all = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "merges.txt",
            "model.safetensors",
            "onnx/model.onnx",
            "preprocessor_config.json",
            "pytorch_model.bin",
            "text_encoder/model.safetensors",
            "tokenizer.json",
            "vocab.json",
        ];
        let expected = [
            "README.md",
            "config.json",
            "merges.txt",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "vocab.json",
        ];
        assert_eq!(single(&all).unwrap().into_iter().collect::<Vec<_>>(), expected);
        let shards =
            single(&["config.json", "model.safetensors.index.json", "s-1.safetensors", "s-2.safetensors"]).unwrap();
        assert_eq!(shards.len(), 4);
        assert!(single(&["model.safetensors"]).unwrap_err().contains("o/m has no config.json at its top"));
        let bin = single(&["config.json", "pytorch_model.bin", "x/model.onnx"]).unwrap_err();
        assert!(bin.contains("has no model.safetensors, only pytorch_model.bin, but only safetensors"), "{bin}");
        let absent = single(&["config.json", "model.safetensors.index.json", "s-1.safetensors"]).unwrap_err();
        assert!(absent.contains("names the shard \"s-2.safetensors\", which is not there"), "{absent}");
    }

    #[test]
    fn weights_in_another_format_are_named() {
        let message = |paths: &[&str]| {
            let mut read = |_: &str| -> Result<Vec<u8>> { Ok(br#"{"weight_map": {"a": "s.safetensors"}}"#.to_vec()) };
            choose("o/m", &listing(paths), &index(&["vae"]), &mut read).unwrap_err().to_string()
        };
        let bin = message(&["vae/config.json", "vae/diffusion_pytorch_model.bin"]);
        assert!(bin.contains("o/m: the weights of vae are there as vae/diffusion_pytorch_model.bin only"), "{bin}");
        assert!(bin.contains("save_pretrained"), "{bin}");
        assert!(message(&["vae/config.json"]).contains("o/m: has no weights for vae"));
        let absent = message(&["vae/diffusion_pytorch_model.safetensors.index.json"]);
        assert!(absent.contains("names the shard \"vae/s.safetensors\", which is not there"), "{absent}");
    }
}
