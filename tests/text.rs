//! Tokenizer and text encoder against transformers.

#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_close, facts, fixture, goldens, repository, tensors};
use erase_concept::nn::ParamStore;
use erase_concept::sd::{TextEncoder, TextEncoderConfig, Tokenizer};
use std::path::{Path, PathBuf};

fn tokenizer(folder: &Path) -> erase_concept::Result<Tokenizer> {
    Tokenizer::from_files(&|name| Ok(std::fs::read(folder.join(name)).ok()))
}

fn encoder(folder: PathBuf) -> TextEncoder {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: TextEncoderConfig = serde_json::from_str(&config).unwrap();
    TextEncoder::new(&config, &ParamStore::new(tensors(folder.join("model.safetensors")))).unwrap()
}

fn prompts() -> Vec<String> {
    serde_json::from_value(facts("demo")["prompts"].clone()).unwrap()
}

#[test]
fn token_ids_equal_transformers_from_either_kind_of_file() {
    let golden = goldens("demo")["text.ids_i64"].to_vec2::<i64>().unwrap();
    for folder in [repository("weights/demo/tokenizer"), fixture("tiny-sd21/tokenizer")] {
        let ids = tokenizer(&folder).unwrap().encode(&prompts()).unwrap().ids;
        let ids: Vec<Vec<i64>> = ids.iter().map(|row| row.iter().map(|id| i64::from(*id)).collect()).collect();
        assert_eq!(ids, golden, "{}", folder.display());
    }
}

#[test]
fn what_does_not_fit_is_cut_and_said() {
    let tokenizer = tokenizer(&repository("weights/demo/tokenizer")).unwrap();
    let long = ["star"; 40].join(" ");
    let tokens = tokenizer.encode(&["a star", &long]).unwrap();
    assert!(tokens.ids.iter().all(|ids| ids.len() == 32) && tokens.ids[1][31] == 712);
    assert_eq!(tokens.truncated, [(1, ["star"; 10].join(" "))]);
}

#[test]
fn hidden_states_equal_transformers_in_any_batch() {
    let encoder = encoder(repository("weights/demo/text_encoder"));
    let ids = tokenizer(&repository("weights/demo/tokenizer")).unwrap().encode(&prompts()).unwrap().ids;
    let golden = &goldens("demo")["text.last_hidden_state"];
    assert_close("text", &encoder.forward(&ids).unwrap(), golden, 1e-4);
    assert_close("one of them", &encoder.forward(&ids[1..2]).unwrap(), &golden.narrow(0, 1, 1).unwrap(), 1e-4);
}

#[test]
fn exact_gelu_and_names_without_a_prefix() {
    let ids = tokenizer(&fixture("tiny-sd21/tokenizer")).unwrap().encode(&["a red star"]).unwrap().ids;
    let state = encoder(fixture("tiny-sd21/text_encoder")).forward(&ids).unwrap();
    assert_close("tiny-sd21 text", &state, &goldens("tiny-sd21")["text"], 1e-4);
}

#[test]
fn both_encoders_of_sdxl() {
    let g = goldens("tiny-sdxl");
    let ids = tokenizer(&fixture("tiny-sdxl/tokenizer")).unwrap().encode(&["a red star"]).unwrap().ids;
    let one = encoder(fixture("tiny-sdxl/text_encoder")).forward_all(&ids, 712).unwrap();
    let two = encoder(fixture("tiny-sdxl/text_encoder_2")).forward_all(&ids, 712).unwrap();
    let both = candle_core::Tensor::cat(&[one.penultimate, two.penultimate], 2).unwrap();
    assert_close("tiny-sdxl text", &both, &g["text"], 1e-4);
    assert_close("tiny-sdxl pooled", &two.pooled.unwrap(), &g["pooled"], 1e-4);
}

#[test]
fn wrong_files_are_named() {
    let folder = repository("weights/demo/tokenizer");
    let without = |missing: &'static str| {
        let read = |name: &str| Ok(std::fs::read(folder.join(name)).ok().filter(|_| name != missing));
        Tokenizer::from_files(&read).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(without("vocab.json").contains("vocab.json is missing"));
    assert!(without("merges.txt").contains("merges.txt is missing"));
    let broken = Tokenizer::from_files(&|name| {
        let bytes = std::fs::read(folder.join(name)).ok();
        Ok(if name == "merges.txt" { Some(b"#version: 0.2\na n</w>\nstray\n".to_vec()) } else { bytes })
    });
    assert!(broken.err().unwrap().to_string().contains("merges.txt line 3"));
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}

#[test]
fn words_are_the_means_of_their_tokens() {
    let encoder = encoder(repository("weights/demo/text_encoder"));
    let [a, b, c] = [[3u32], [5], [9]].map(|ids| encoder.mean_tokens(&[ids.to_vec()]).unwrap());
    let both = encoder.mean_tokens(&[vec![5], vec![3]]).unwrap();
    assert_close("single", &both, &candle_core::Tensor::cat(&[&b, &a], 0).unwrap(), 0.0);
    let mixed = encoder.mean_tokens(&[vec![9], vec![3, 5]]).unwrap();
    let mean = ((a + b).unwrap() / 2.0).unwrap();
    assert_close("mixed", &mixed, &candle_core::Tensor::cat(&[&c, &mean], 0).unwrap(), 1e-6);
}
