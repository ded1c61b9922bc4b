//! The UNet against diffusers: predictions, losses, gradients.

mod common;

use candle_core::{Device, Tensor};
use common::{assert_close, difference, fixture, goldens, repository, tensors};
use erase_concept::diffusion::Generator;
use erase_concept::nn::{ParamStore, assuming_rows};
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

/// What comes before the first cross-attention is computed once for all texts, and keys and values once for all steps; the bits
/// must be those of a row for each text.
#[test]
fn several_texts_of_a_latent_are_predicted_as_if_each_had_its_own() {
    let x = |seed: u64| Generator::new(seed).randn_tensor(&[2, 4, 16, 16], &Device::Cpu).unwrap();
    for (folder, g, text) in [
        (repository("weights/demo/unet"), goldens("demo"), "unet.context"),
        (fixture("tiny-sd21/unet"), goldens("tiny-sd21"), "text"),
        (fixture("tiny-sdxl/unet"), goldens("tiny-sdxl"), "text"),
    ] {
        let (config, params) = load(folder);
        let unet = Unet::new(&config, &params).unwrap();
        let row = |i: usize| g[text].narrow(0, i % g[text].dim(0).unwrap(), 1).unwrap();
        let added = |rows: usize, first: f32| {
            let row = g.get("pooled")?.narrow(0, 0, 1).unwrap();
            let rows: Vec<Tensor> = (0..rows).map(|i| (&row * f64::from(first + i as f32)).unwrap()).collect();
            let text_embeds = Tensor::cat(&rows, 0).unwrap();
            Some(AddedConditions { time_ids: vec![[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]; rows.len()], text_embeds })
        };
        let texts = [1.0f32, 0.5].map(|scale| {
            let rows = [row(0), row(1)].map(|row| (row * f64::from(scale)).unwrap());
            Conditions { context: Tensor::cat(&rows, 0).unwrap(), added: added(2, scale) }
        });
        let both = Conditions::cat(&[&texts[0], &texts[1]]).unwrap();
        let reader = unet.reading(&both);
        for seed in [1, 2] {
            let (x, t) = (x(seed), [321.0, 807.0]);
            let each = assuming_rows(4, || texts.each_ref().map(|texts| unet.forward(&x, &t, texts).unwrap()));
            let each = Tensor::cat(&each, 0).unwrap();
            let (together, remembered) = assuming_rows(4, || (unet.forward(&x, &t, &both), reader.forward(&x, &t)));
            assert_eq!(difference(&together.unwrap(), &each).0, 0.0, "{text}: together");
            assert_eq!(difference(&remembered.unwrap(), &each).0, 0.0, "{text}: remembered");
            assert_ne!(difference(&each.narrow(0, 0, 2).unwrap(), &each.narrow(0, 2, 2).unwrap()).0, 0.0);
        }
        let three = Conditions::from(&Tensor::cat(&[row(0), row(1), row(0)], 0).unwrap());
        let error = unet.forward(&x(1), &[1.0, 2.0], &three).unwrap_err().to_string();
        assert!(error.contains("2 latents, 2 timesteps and 3 texts do not match"), "{error}");
    }
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
