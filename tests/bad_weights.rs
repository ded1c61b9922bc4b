//! Model folders with something wrong in them: each is refused with exit code 2, by the file's name, and nothing is written.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{TEXT, Tiny, UNET, VAE, replaced};

const CONFIGS: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "unet/config.json",
    "vae/config.json",
];

#[test]
fn a_missing_file_is_named() {
    let tiny = Tiny::new();
    for rel in CONFIGS.iter().chain(&[UNET, VAE, TEXT]) {
        let bytes = tiny.read(rel);
        std::fs::remove_file(tiny.file(rel)).unwrap();
        let expected: &[&str] = match *rel {
            "model_index.json" => &["without a model_index.json", "a model is either"],
            "tokenizer/tokenizer.json" => &["model/tokenizer", "vocab.json is missing", "needs tokenizer.json"],
            rel if rel.ends_with(".json") => &[rel, "no such file", "the folder is incomplete"],
            rel => &[rel, "no such file", "download the weights"],
        };
        tiny.both_refuse(expected);
        tiny.put(rel, bytes);
    }
    tiny.command(&tiny.erase(&["--output", "out"])).assert().code(0);
}

#[test]
fn a_pointer_a_web_page_or_nothing_in_place_of_a_file_is_recognised() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let html = "\n<!DOCTYPE html>\n<html><body>Sign in to continue</body></html>";
    let tiny = Tiny::with_classifier();
    for rel in CONFIGS.iter().chain(&[UNET, VAE, TEXT, "classifier/model.safetensors", "classifier/config.json"]) {
        let bytes = tiny.read(rel);
        for (content, expected) in [
            (lfs, "run `git lfs pull`"),
            (html, "an HTML page instead of the file"),
            ("", "the file is empty; download"),
        ] {
            tiny.put(rel, content);
            let args = tiny.erase(&["--output", "out"]);
            tiny.refused(&args, &[&format!("model/{rel}: "), expected]);
        }
        tiny.put(rel, bytes);
    }
}

#[test]
fn a_file_that_is_cut_says_how_much_is_missing() {
    let tiny = Tiny::new();
    for rel in [UNET, VAE, TEXT] {
        let bytes = tiny.read(rel);
        for length in [5, 500, bytes.len() / 2, bytes.len() - 1] {
            tiny.put(rel, &bytes[..length]);
            tiny.both_refuse(&[rel, "truncated: ", "download it again"]);
        }
        tiny.put(rel, bytes);
    }
    for rel in CONFIGS {
        let bytes = tiny.read(rel);
        tiny.put(rel, &bytes[..bytes.len() / 2]);
        tiny.both_refuse(&[rel.split('/').next().unwrap(), "EOF", "download the file again"]);
        tiny.put(rel, bytes);
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let tiny = Tiny::new();
    let good = tiny.read(UNET);
    let replaced = |from: &str, to: &str| replaced(&good, from, to);
    let mut long = good.clone();
    long[..8].copy_from_slice(&(good.len() as u64 * 2).to_le_bytes());
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases = [
        (replaced("\"F32\"", "\"F16\""), "a broken safetensors header"),
        (replaced("\"F32\"", "\"I32\""), "the weights do not fit the config: "),
        (replaced("conv_in.bias", "conv_on.bias"), "1 missing: conv_in.bias; 1 unused: conv_on.bias"),
        (replaced("data_offsets\":[0", "data_offsets\":[4"), "a broken safetensors header"),
        (replaced("\"shape\":[4,16,3,3]", "\"shape\":[16,4,3,3]"), "conv_out.weight is [16, 4, 3, 3] where the config"),
        (long, "truncated: the header should have"),
        (huge, "not a safetensors file"),
        ([&good[..], b"more"].concat(), "does not end where its tensors end"),
    ];
    for (bytes, expected) in cases {
        tiny.put(UNET, bytes);
        tiny.both_refuse(&["model/unet", expected]);
    }
}

#[test]
fn nan_and_infinity_are_found_in_every_component() {
    for rel in [UNET, VAE, TEXT, "classifier/model.safetensors"] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let tiny = Tiny::with_classifier();
            let name = tiny.poke(rel, value);
            let expected = [rel, &name, "NaN or infinite", "download or export the weights again"];
            tiny.refused(&tiny.erase(&["--output", "out"]), &expected);
        }
    }
}

#[test]
fn a_config_that_contradicts_itself_or_the_weights_is_refused() {
    let unet = "unet/config.json";
    let fit = "the weights do not fit the config";
    for (rel, from, to, expected) in [
        (unet, "    16,\n    32", "    16,\n    64", fit),
        (unet, "    16,\n    32", "    16,\n    32,\n    32", "block_out_channels has 3 entries but there are 2"),
        (unet, "    16,\n    32", "    16,\n    33", "cannot be divided into 8 norm groups"),
        (
            unet,
            "\"cross_attention_dim\": 32",
            "\"cross_attention_dim\": 48",
            "cross_attention_dim is 48, but hidden_size",
        ),
        (unet, "\"layers_per_block\": 1", "\"layers_per_block\": 2", fit),
        (unet, "\"layers_per_block\": 1", "\"layers_per_block\": 99999999", "layers_per_block of 99999999 is beyond"),
        (unet, "\"transformer_layers_per_block\": 1", "\"transformer_layers_per_block\": 60", fit),
        (
            unet,
            "\"sample_size\": 16",
            "\"sample_size\": 15",
            "sample_size is 15; with 2 levels it must be a multiple of 2",
        ),
        (unet, "\"sample_size\": 16", "\"sample_size\": 0", "sample_size is 0"),
        (unet, "\"sample_size\": 16", "\"sample_size\": 1000000", "sample_size of 1000000 is beyond"),
        (unet, "\"out_channels\": 4", "\"out_channels\": 8", "in_channels is 4, but out_channels is 8"),
        (unet, "\"in_channels\": 4", "\"in_channels\": -4", "invalid value: integer `-4`"),
        (unet, "\"norm_eps\": 1e-05", "\"norm_eps\": -1", "norm_eps is -1"),
        (unet, "\"freq_shift\": 0", "\"freq_shift\": 8", "freq_shift is 8"),
        (unet, "\"use_linear_projection\": true", "\"use_linear_projection\": false", fit),
        (unet, "\"UpBlock2D\"", "\"UpBlock3D\"", "block type UpBlock3D is not supported"),
        (unet, "\"act_fn\": \"silu\"", "\"act_fn\": \"gelu\"", "act_fn is \"gelu\"; this program supports \"silu\""),
        ("text_encoder/config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 0", "intermediate_size is 0"),
        (
            "text_encoder/config.json",
            "\"vocab_size\": 713",
            "\"vocab_size\": 99999999999999",
            "vocab_size is 99999999999999",
        ),
        ("text_encoder/config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 255", fit),
        ("text_encoder/config.json", "\"layer_norm_eps\": 1e-05", "\"layer_norm_eps\": 0", "layer_norm_eps is 0"),
        (
            "vae/config.json",
            "\"latent_channels\": 4",
            "\"latent_channels\": 8",
            "in_channels is 4, but latent_channels",
        ),
        ("vae/config.json", "\"scaling_factor\": 0.", "\"scaling_factor\": -0.", "scaling_factor is -0."),
        ("vae/config.json", "\"out_channels\": 3", "\"out_channels\": 1", "pictures have 3"),
        ("scheduler/scheduler_config.json", "\"beta_end\": 0.012", "\"beta_end\": 1.2", "do not make a noise schedule"),
        ("scheduler/scheduler_config.json", "1000", "1000000000000", "do not make a noise schedule"),
        ("scheduler/scheduler_config.json", "\"v_prediction\"", "\"sample\"", "unknown variant `sample`"),
        (
            "model_index.json",
            "StableDiffusionPipeline",
            "FluxPipeline",
            "_class_name is FluxPipeline; this program edits",
        ),
    ] {
        let tiny = Tiny::new();
        tiny.edit(rel, from, to);
        tiny.both_refuse(&["model/", rel, expected]);
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let tiny = Tiny::new();
    tiny.edit("tokenizer/tokenizer_config.json", "<|startoftext|>", "<|begin|>");
    tiny.both_refuse(&["model/tokenizer", "\"<|begin|>\" is not in the vocabulary", "download the file again"]);
    let tiny = Tiny::new();
    let (from, to) = ("\"<|endoftext|>\": 712", "\"<|endoftext|>\": 49407");
    let compact = (from.replace(": ", ":"), to.replace(": ", ":"));
    let text = String::from_utf8(tiny.read("tokenizer/tokenizer.json")).unwrap();
    let text = text.replace(from, to).replace(&compact.0, &compact.1).replace("\"id\":712", "\"id\":49407");
    tiny.put("tokenizer/tokenizer.json", text.replace("\"id\": 712", "\"id\": 49407"));
    tiny.both_refuse(&["model/tokenizer", "id 49407", "vocab_size", "is 713", "download both again"]);
}

#[test]
fn a_broken_classifier_is_found_before_the_work() {
    let tiny = Tiny::with_classifier();
    tiny.edit("classifier/config.json", "\"basic\"", "\"bottleneck\"");
    tiny.refused(
        &tiny.erase(&["--output", "out"]),
        &["model/classifier/config.json", "do not fit the config", "same model"],
    );
    let stdout = tiny.command(&tiny.erase(&["--output", "out", "--json"])).assert().code(2).get_output().stdout.clone();
    assert!(!String::from_utf8(stdout).unwrap().contains("sampling"), "found after the work began");
}

#[test]
fn numbers_that_overflow_end_the_job_rather_than_draw_black_pictures() {
    let tiny = Tiny::new();
    tiny.poke(UNET, 3e38);
    tiny.both_refuse(&["NaN or infinite", "download the model again"]);
    let tiny = Tiny::new();
    tiny.poke(VAE, 3e38);
    tiny.both_refuse(&["NaN or infinite", "download the model again"]);
}
