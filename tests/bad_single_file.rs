//! Files that are no model, or a damaged one: each is named for what it is, with exit code 2, and nothing is written.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{Tiny, UNET, replaced};
use common::{fixture, original, repository};
use erase_concept::checkpoint::single_file::write_single_file;
use erase_concept::checkpoint::{ModelFiles, SingleFile, write_safetensors};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by name.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];

/// Writes a file with these tensors, of zeros.
fn file(path: &Path, tensors: Shapes<'_>, metadata: &[(&str, &str)]) {
    let tensors = tensors.iter().map(|(name, shape)| {
        (name.to_string(), (Dtype::F16, shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()]))
    });
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    write_safetensors(path, &tensors.collect(), &metadata).unwrap();
}

const CONV_IN: &str = "model.diffusion_model.input_blocks.0.0.weight";

#[test]
fn other_kinds_of_files_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("file.safetensors");
    let cases: [(Shapes<'_>, &str); 34] = [
        (&[("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &[4, 8])], "a LoRA (small changes"),
        (&[("unet.up_blocks.0.attentions.0.attn1.to_q.lora_A.weight", &[4, 8])], "pass that"),
        (&[("lora_te_text_model.hada_w1_a", &[4, 8])], "a LoRA"),
        (
            &[("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", &[2])],
            "a Flux model, which is not supported yet",
        ),
        (&[("double_blocks.0.img_attn.norm.key_norm.scale", &[2])], "a Flux model"),
        (
            &[("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", &[2])],
            "a Stable Diffusion 3 model, which is not",
        ),
        (
            &[("transformer_blocks.0.attn.add_k_proj.weight", &[2])],
            "a diffusion transformer (Stable Diffusion 3 or Flux",
        ),
        (&[("distilled_guidance_layer.in_proj.bias", &[2])], "a Chroma model"),
        (&[("double_layers.0.attn.w1q.weight", &[2])], "an AuraFlow model"),
        (&[("txt_in.individual_token_refiner.blocks.0.norm1.weight", &[2])], "a HunyuanVideo model"),
        (&[("clip_txt_mapper.weight", &[2])], "a Stable Cascade model"),
        (&[("down_blocks.1.0.channelwise.0.weight", &[2])], "a Stable Cascade model"),
        (&[("adaln_single.linear.weight", &[2])], "a diffusion transformer (PixArt"),
        (&[("control_model.time_embed.0.weight", &[2])], "a ControlNet"),
        (&[("controlnet_cond_embedding.conv_in.weight", &[2])], "a ControlNet"),
        (&[("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", &[2])], "an AnimateDiff"),
        (&[("image_proj.proj.weight", &[2])], "an IP-Adapter"),
        (&[("emb_params", &[1, 768])], "an embedding (textual inversion)"),
        (&[("clip_g", &[1, 1280]), ("clip_l", &[1, 768])], "an embedding (textual inversion)"),
        (&[("edm_mean", &[4]), (CONV_IN, &[2, 4, 3, 3])], "a Playground 2.5 model"),
        (
            &[(CONV_IN, &[2, 4, 3, 3]), ("conditioner.embedders.0.model.ln_final.bias", &[2])],
            "the Stable Diffusion XL refiner",
        ),
        (&[(CONV_IN, &[2, 9, 3, 3])], "an inpainting model (its UNet takes 9 channels)"),
        (&[(CONV_IN, &[2, 8, 3, 3])], "an InstructPix2Pix model"),
        (&[(CONV_IN, &[2, 5, 3, 3])], "a depth-to-image model"),
        (&[(CONV_IN, &[2, 7, 3, 3])], "an upscaler"),
        (&[(CONV_IN, &[2, 4, 3, 3]), ("embedder.model.visual.proj", &[2])], "unCLIP"),
        (&[(CONV_IN, &[2, 4, 3, 3])], "a UNet alone, without a text encoder and a VAE; pass the whole checkpoint"),
        (
            &[(CONV_IN, &[2, 4, 3, 3]), ("cond_stage_model.transformer.text_model.final_layer_norm.bias", &[2])],
            "without its VAE",
        ),
        (&[(CONV_IN, &[2, 4, 3, 3]), ("cond_stage_model.roberta.bias", &[2])], "a text encoder that is not known"),
        (&[("input_blocks.0.0.weight", &[2]), ("output_blocks.0.0.weight", &[2])], "a UNet alone, not a whole model"),
        (
            &[("down_blocks.0.resnets.0.conv1.bias", &[2]), ("up_blocks.0.resnets.0.conv1.bias", &[2])],
            "pass the model's folder",
        ),
        (
            &[("encoder.conv_in.bias", &[2]), ("decoder.conv_in.bias", &[2])],
            "a VAE alone, not a whole model; pass the model",
        ),
        (&[("text_model.final_layer_norm.bias", &[2])], "a text encoder alone, not a whole model"),
        (
            &[("blk.0.attn", &[2]), ("other", &[1])],
            "of a kind that is not known (its tensors: blk.0.attn, other); this program edits",
        ),
    ];
    for (tensors, expected) in cases {
        file(&path, tensors, &[]);
        let message = SingleFile::open(&path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        assert!(message.contains(expected), "{message}\nbut not: {expected}");
    }
    for component in [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"] {
        let message = SingleFile::open(&repository("weights/demo").join(component)).unwrap_err().to_string();
        assert!(message.contains("alone, not a whole model; pass the model"), "{message}");
    }
}

#[test]
fn a_damaged_file_is_named_and_nothing_is_written() {
    let tiny = Tiny::new();
    write_single_file(&ModelFiles::Folder(fixture("tiny-sd21")), &tiny.root().join("good"), &BTreeMap::new()).unwrap();
    let good = std::fs::read(tiny.root().join("good")).unwrap();
    let replaced = |from: &str, to: &str| replaced(&good, from, to);
    let mut long = good.clone();
    long[..8].copy_from_slice(&(good.len() as u64 * 2).to_le_bytes());
    // the second tensor begins where the first does
    let overlapping = {
        let text = String::from_utf8_lossy(&good[..good.len().min(1 << 20)]).into_owned();
        let second = text.match_indices("\"data_offsets\":[").nth(1).unwrap().0 + "\"data_offsets\":[".len();
        let digits = text[second..].find(',').unwrap();
        let mut bytes = good.clone();
        let at = good.windows(16).enumerate().filter(|(_, w)| *w == b"\"data_offsets\":[").nth(1).unwrap().0 + 16;
        bytes[at..at + digits].copy_from_slice(format!("{:>digits$}", 0).as_bytes());
        bytes
    };
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n".to_vec();
    let html = b"\n<!DOCTYPE html>\n<html><body>Sign in to continue</body></html>".to_vec();
    let missing = ("middle_block.0.in_layers.0.bias", "middle_block.0.in_layers.0.bios");
    let cases = [
        (lfs, "run `git lfs pull`"),
        (html, "an HTML page instead of the file"),
        (Vec::new(), "the file is empty; download it again"),
        (
            b"PK\x03\x04 and so on".to_vec(),
            "a PyTorch pickle, a format that can hold programs. Prefer the safetensors version",
        ),
        (good[..good.len() / 2].to_vec(), "truncated: the tensors should have"),
        (good[..500].to_vec(), "truncated: the header should have"),
        (long, "truncated: the header should have"),
        (overlapping, "a broken safetensors header"),
        (replaced("\"F32\"", "\"F16\""), "a broken safetensors header"),
        (
            replaced(missing.0, missing.1),
            "Stable Diffusion 2.x, but incomplete or of a kind that is not known: 1 tensor missing (model.diffusion_model.middle_block",
        ),
        (
            replaced("\"model_index.json\\\"", "\"nodel_index.json\\\""),
            "its metadata erase.configs: model_index.json is missing",
        ),
        (replaced("\\\"act_fn\\\"", "\\\"act_fn !"), "its metadata erase.configs: "),
    ];
    for (content, expected) in cases {
        std::fs::write(tiny.root().join("bad.safetensors"), content).unwrap();
        let bad = ["--model", "bad.safetensors"];
        tiny.refused(&[&bad[..], &["--concept", "star", "--output", "out"]].concat(), &["bad.safetensors: ", expected]);
        let sample = [&["sample"], &bad[..], &["--prompt", "x", "--output", "out"]].concat();
        tiny.refused(&sample, &["bad.safetensors: ", expected]);
    }
}

#[test]
fn tensors_of_a_wrong_type_or_value_are_refused_when_they_are_loaded() {
    let tiny = Tiny::new();
    let path = tiny.root().join("bad.safetensors");
    write_single_file(&ModelFiles::Folder(fixture("tiny-sd21")), &path, &BTreeMap::new()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap().into_iter().collect();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let all: BTreeMap<_, _> =
        parsed.iter().map(|(name, v)| (name.to_string(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
    let attention = "first_stage_model.decoder.mid.attn_1.q.weight";
    assert_eq!(all[attention].1, [16, 16, 1, 1], "a 1x1 convolution");
    let conv = "model.diffusion_model.out.2.bias";
    let in_proj = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias";
    let nan = f32::NAN.to_le_bytes().repeat(4);
    for (name, dtype, shape, data, expected) in [
        (conv, Dtype::F8_E4M3, vec![4], vec![0; 4], "conv_out.bias is stored as F8_E4M3, which is not read"),
        (conv, Dtype::F32, vec![4], nan, "conv_out.bias has a value that is NaN or infinite"),
        (conv, Dtype::I32, vec![4], vec![0; 16], "the weights do not fit the config: "),
        (
            attention,
            Dtype::F32,
            vec![16, 4, 2, 2],
            vec![0; 1024],
            "attn_1.q.weight: is [16, 4, 2, 2], which no known model has",
        ),
        (in_proj, Dtype::F32, vec![95], vec![0; 380], "in_proj_bias: is [95], which no known model has"),
        (in_proj, Dtype::F32, vec![3], vec![0; 12], "the weights do not fit the config: "),
    ] {
        let mut tensors = all.clone();
        tensors.insert(name.to_string(), (dtype, shape, data));
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let args = ["sample", "--model", "bad.safetensors", "--prompt", "x", "--output", "out"];
        tiny.refused(&args, &["bad.safetensors", expected]);
    }
}

#[test]
fn a_model_of_its_own_size_needs_its_configs() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model.safetensors");
    for (folder, expected) in [
        (
            repository("weights/demo"),
            "has a vocabulary of 713 tokens that it does not bring; only CLIP's, of 49408, is known",
        ),
        (fixture("tiny-sd21"), "has a vocabulary of 713 tokens"),
    ] {
        let none = BTreeMap::from([("erase.configs".to_string(), String::new())]);
        write_single_file(&ModelFiles::Folder(folder.clone()), &path, &none).unwrap();
        let message = SingleFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("its metadata erase.configs: EOF"), "{message}");
        let bytes = std::fs::read(&path).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let all: BTreeMap<_, _> =
            parsed.iter().map(|(n, v)| (n.to_string(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
        write_safetensors(&path, &all, &BTreeMap::new()).unwrap();
        let message = SingleFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn configs_from_a_stranger_can_neither_name_files_elsewhere_nor_ask_for_the_impossible() {
    let tmp = tempfile::tempdir().unwrap();
    let (path, bad) = (tmp.path().join("model.safetensors"), tmp.path().join("bad.safetensors"));
    write_single_file(&ModelFiles::Folder(fixture("tiny-sd21")), &path, &BTreeMap::new()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let all: BTreeMap<_, _> =
        parsed.iter().map(|(n, v)| (n.to_string(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
    let configs: serde_json::Value = serde_json::from_str(&metadata["erase.configs"]).unwrap();
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut configs = configs.clone();
        change(&mut configs);
        write_safetensors(&bad, &all, &BTreeMap::from([("erase.configs".to_string(), configs.to_string())])).unwrap();
        SingleFile::open(&bad)
    };
    let file = open(&|configs| {
        for name in
            ["../evil.json", "/etc/evil", "tokenizer/../../evil", "unet/x.py", "classifier/model.safetensors", ""]
        {
            configs[name] = "evil".into();
        }
    });
    let files = ModelFiles::Single(std::sync::Arc::new(file.unwrap()));
    let expected = ModelFiles::Folder(fixture("tiny-sd21")).list().unwrap();
    let found = files.list().unwrap();
    assert!(found.iter().all(|rel| expected.contains(rel)), "{found:?}");
    for (component, key, value, expected) in [
        ("text_encoder", "num_hidden_layers", 1u64 << 40, "num_hidden_layers is 1099511627776; it must lie between"),
        ("vae", "layers_per_block", 1 << 40, "layers_per_block of 1099511627776 must lie between"),
        ("unet", "layers_per_block", 1 << 40, "layers_per_block of 1099511627776 is beyond"),
        ("unet", "transformer_layers_per_block", 1 << 40, "transformer_layers_per_block of 1099511627776 is beyond"),
        ("unet", "transformer_layers_per_block", 3, "tensors missing ("),
    ] {
        let message = open(&|configs| configs[format!("{component}/config.json")][key] = value.into()).unwrap_err();
        assert!(message.to_string().contains(expected), "{message}");
    }
}

#[test]
fn a_full_size_model_that_lacks_something_is_incomplete() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model.safetensors");
    for (without, expected) in [
        (
            "model.diffusion_model.output_blocks.5.2.conv.bias",
            "Stable Diffusion 1.x, but incomplete or of a kind that is not known: 1 tensor missing (model.diffusion_model.output_blocks.5.2.conv.bias)",
        ),
        ("first_stage_model.decoder.up.3.", "26 tensors missing (first_stage_model.decoder.up.3."),
        (
            "first_stage_model.decoder.conv_in.",
            "has no first_stage_model.decoder.conv_in.weight; the file is incomplete",
        ),
        (
            "model.diffusion_model.input_blocks.",
            "a model without the first layer of its UNet (model.diffusion_model.input_blocks.0.0.weight)",
        ),
        (
            "model.diffusion_model.input_blocks.2.",
            "534 tensors that belong to no such model (model.diffusion_model.input_blocks.10.",
        ),
        (
            "cond_stage_model.transformer.text_model.encoder.layers.5.",
            "96 tensors that belong to no such model (cond_stage_model.transformer.text_model.encoder.layers.10.",
        ),
        ("first_stage_model.encoder.down.1.", "tensors that belong to no such model (first_stage_model."),
        ("model.diffusion_model.middle_block.", "has no model.diffusion_model.middle_block.1."),
    ] {
        let mut shapes = original::models()[0].original();
        shapes.retain(|name, _| !name.starts_with(without));
        original::zeros(&path, &shapes, &[]);
        let message = SingleFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{without}: {message}");
    }
}
