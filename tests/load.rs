//! Whole models, loaded and saved.

mod common;

use erase_concept::checkpoint::{ModelFiles, UNET_WEIGHTS, base_sha256, load_model, save_model};
use erase_concept::hub;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A copy of the demo in a folder, with one file changed.
fn demo_with(rel: &str, from: &str, to: &str) -> (tempfile::TempDir, ModelFiles) {
    let tmp = tempfile::tempdir().expect("tempdir");
    erase_concept::checkpoint::save_edited(&hub::demo(), &BTreeMap::new(), tmp.path(), &BTreeMap::new()).expect("copy");
    let text = fs::read_to_string(tmp.path().join(rel)).expect("text");
    assert!(text.contains(from), "{rel} has no {from}");
    fs::write(tmp.path().join(rel), text.replacen(from, to, 1)).expect("write");
    let files = ModelFiles::Folder(tmp.path().to_path_buf());
    (tmp, files)
}

#[test]
fn the_demo_loads_and_an_edit_is_in_the_saved_model_alone() {
    let loaded = load_model(&hub::demo()).expect("demo");
    assert_eq!(loaded.unet_file, UNET_WEIGHTS);
    assert_eq!(loaded.unet_dtypes.len(), loaded.model.unet_params.tensors().len());
    assert_eq!(loaded.base_sha256, base_sha256(&hub::demo()).expect("hash"));
    let tmp = tempfile::tempdir().expect("tempdir");
    let name = "conv_in.bias";
    let edited = (loaded.model.unet_params.get(name).expect("tensor") * 2.0).expect("tensor"); // exact in float16
    let changed = BTreeMap::from([(name.to_string(), edited.clone())]);
    // the demo's classifier and clip are not in model_index.json, yet a saved demo has them
    save_model(&hub::demo(), &loaded, &changed, tmp.path(), &BTreeMap::new()).expect("save");
    assert!(tmp.path().join("classifier/model.safetensors").is_file());
    let again = load_model(&ModelFiles::Folder(tmp.path().to_path_buf())).expect("saved");
    assert_ne!(again.base_sha256, loaded.base_sha256);
    for (tensor, value) in loaded.model.unet_params.tensors() {
        let expected = if tensor == name { &edited } else { value };
        assert_eq!(
            common::difference(again.model.unet_params.get(tensor).expect("tensor"), expected).0,
            0.0,
            "{tensor}"
        );
    }
}

#[test]
fn other_layouts_load_or_say_why_not() {
    for model in ["tiny-sd21", "tiny-sdxl"] {
        load_model(&ModelFiles::Folder(common::fixture(model))).expect(model);
    }
    for (rel, from, to, expected) in [
        (
            "unet/config.json",
            "\"cross_attention_dim\": 128",
            "\"cross_attention_dim\": 96",
            "cross_attention_dim is 96, but",
        ),
        ("unet/config.json", "\"in_channels\": 4", "\"in_channels\": 9", "in_channels is 9, but latent_channels"),
        ("unet/config.json", "\"silu\"", "\"relu\"", "unet/config.json: act_fn"),
        ("unet/config.json", "    64,\n    96", "    32,\n    96", "the weights do not fit the config"),
        ("vae/config.json", "{", "", "vae/config.json: "),
        ("tokenizer/vocab.json", "{", "", "tokenizer: "),
    ] {
        let (_folder, files) = demo_with(rel, from, to);
        let message = load_model(&files).err().expect(expected).to_string();
        assert!(message.contains(expected), "{message}\nlacks {expected}");
    }
}

#[test]
fn a_source_that_changed_meanwhile_is_not_saved() {
    let (folder, files) = demo_with("model_index.json", "{", "{");
    let loaded = load_model(&files).expect("load");
    fs::write(folder.path().join("README.md"), "new").expect("write");
    let tmp = tempfile::tempdir().expect("tempdir");
    let result = save_model(&files, &loaded, &BTreeMap::new(), tmp.path(), &BTreeMap::new());
    assert!(result.expect_err("refused").to_string().contains("changed since they were loaded"));
    assert!(fs::read_dir(Path::new(tmp.path())).expect("folder").next().is_none());
}

#[test]
fn the_demo_classifier_loads() {
    assert!(!hub::demo_classifier().expect("classifier").labels().is_empty());
}
