//! The UNet against diffusers: predictions, losses, gradients.

mod common;

use common::{assert_close, difference, fixture, goldens, repository, tensors};
use erase_concept::nn::ParamStore;
use erase_concept::sd::{AddedConditions, Conditions, Unet, UnetConfig};

fn load(folder: std::path::PathBuf) -> (UnetConfig, ParamStore) {
    let config = std::fs::read_to_string(folder.join("config.json")).expect("config");
    let config = UnetConfig::from_json(&config).expect("a valid config");
    (config, ParamStore::new(tensors(folder.join("diffusion_pytorch_model.safetensors"))))
}

#[test]
fn demo_predicts_the_golden_noise_with_a_timestep_a_row() {
    let (config, params) = load(repository("weights/demo/unet"));
    let unet = Unet::new(&config, &params).unwrap();
    let g = goldens("demo");
    let t: Vec<f32> = g["unet.t_i64"].to_vec1::<i64>().unwrap().iter().map(|t| *t as f32).collect();
    let eps = unet.forward(&g["unet.x"], &t, &g["unet.context"]).unwrap();
    assert_close("unet.eps", &eps, &g["unet.eps"], 1e-3);
    assert!(difference(&eps, &g["unet.eps"]).1 <= 1e-5, "mean difference");
}

#[test]
fn sd21_shape_predicts_the_golden_v() {
    let (config, params) = load(fixture("tiny-sd21/unet"));
    let unet = Unet::new(&config, &params).unwrap();
    let g = goldens("tiny-sd21");
    let v = unet.forward(&g["start"], &[321.0], &g["text"]).unwrap();
    assert_close("tiny-sd21 unet.v", &v, &g["unet.v"], 1e-3);
    assert!(difference(&v, &g["unet.v"]).1 <= 1e-5, "mean difference");
}

#[test]
fn sdxl_shape_predicts_the_golden_noise() {
    let (config, params) = load(fixture("tiny-sdxl/unet"));
    let unet = Unet::new(&config, &params).unwrap();
    let g = goldens("tiny-sdxl");
    let sizes = vec![[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]];
    let added = AddedConditions { text_embeds: g["pooled"].clone(), time_ids: sizes };
    let conditions = Conditions { context: g["text"].clone(), added: Some(added) };
    let eps = unet.forward(&g["start"], &[321.0], &conditions).unwrap();
    assert_close("tiny-sdxl unet.eps", &eps, &g["unet.eps"], 1e-3);
    let error = unet.forward(&g["start"], &[321.0], &g["text"]).unwrap_err().to_string();
    assert!(error.contains("SDXL"), "{error}");
}

#[test]
fn a_load_that_is_not_clean_names_every_tensor() {
    let folder = repository("weights/demo/unet");
    let (config, _) = load(folder.clone());
    let mut all = tensors(folder.join("diffusion_pytorch_model.safetensors"));
    let bias = all.remove("conv_in.bias").unwrap();
    all.insert("conv_in.stray".into(), bias.clone());
    all.insert("conv_out.weight".into(), bias);
    let error = Unet::new(&config, &ParamStore::new(all)).err().unwrap().to_string();
    for part in [
        "1 missing: conv_in.bias",
        "1 unused: conv_in.stray",
        "conv_out.weight is [64] where the config implies [4, 64, 3, 3]",
    ] {
        assert!(error.contains(part), "{part:?} not in {error:?}");
    }
}

#[test]
fn configs_that_contradict_themselves_are_refused() {
    let text = std::fs::read_to_string(repository("weights/demo/unet/config.json")).unwrap();
    for (from, to, says) in [
        (
            "\"CrossAttnDownBlock2D\",\n    \"CrossAttnDownBlock2D\"",
            "\"CrossAttnDownBlock2D\"",
            "3 entries but there are 2",
        ),
        ("\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"", "act_fn is \"mish\""),
        ("\"attention_head_dim\": 4", "\"attention_head_dim\": 0", "attention_head_dim must be"),
        ("\"attention_head_dim\": 4", "\"attention_head_dim\": 5", "5 heads"),
        ("\"DownBlock2D\"", "\"KDownBlock2D\"", "KDownBlock2D is not supported"),
    ] {
        assert!(text.contains(from), "{from:?}");
        let error = UnetConfig::from_json(&text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(says), "{says:?} not in {error:?}");
    }
}

#[test]
fn a_detached_network_records_no_graph_and_sees_every_update() {
    let (config, mut params) = load(fixture("tiny-sd21/unet"));
    let name = params.tensors().keys().find(|name| name.ends_with("attn2.to_k.weight")).unwrap().clone();
    params.make_trainable([&name]).unwrap();
    let g = goldens("tiny-sd21");
    let forward = |unet: &Unet| unet.forward(&g["start"], &[321.0], &g["text"]).unwrap();
    let (student, sampler) = (Unet::new(&config, &params).unwrap(), Unet::new(&config, &params.detached()).unwrap());
    let (tracked, plain) = (forward(&student), forward(&sampler));
    assert!(tracked.track_op(), "a trainable network records its graph");
    assert!(!plain.track_op(), "a step of sampling keeps nothing of the one before");
    assert_eq!(difference(&tracked, &plain).0, 0.0);
    let var = &params.vars()[&name];
    var.set(&(var.as_tensor() * 3.0).unwrap()).unwrap();
    assert_ne!(difference(&forward(&sampler), &plain).0, 0.0);
    assert_eq!(difference(&forward(&sampler), &forward(&student)).0, 0.0);
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
