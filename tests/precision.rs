//! `--dtype bf16` and `--dtype f16`: frozen matrices in half the memory, what is trained in full, and the result as exact as ever.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use erase_concept::checkpoint::{LoadedModel, Loading, ModelFiles, Precision, load_model, load_model_with, save_model};
use erase_concept::diffusion::Generator;
use erase_concept::erase::Settings;
use erase_concept::hub;
use erase_concept::nn::{Instructions, ParamStore, backward};
use erase_concept::sd::Unet;
use std::collections::BTreeMap;
use std::sync::Arc;

const HALVES: [(Precision, DType); 2] = [(Precision::Bf16, DType::BF16), (Precision::F16, DType::F16)];

fn halved(precision: Precision, exact: &(dyn Fn(&str) -> bool + Sync)) -> LoadedModel {
    load_model_with(&hub::demo(), &Loading { precision, exact, beside: None, ..Loading::default() }).unwrap()
}

fn inputs() -> (Tensor, Tensor) {
    let mut noise = Generator::new(3);
    (noise.randn_tensor(&[2, 4, 8, 8], &Device::Cpu).unwrap(), noise.randn_tensor(&[2, 32, 128], &Device::Cpu).unwrap())
}

fn predict(loaded: &LoadedModel) -> Tensor {
    let (x, context) = inputs();
    loaded.model.unet().unwrap().forward(&x, &[3.0, 700.0], &context).unwrap()
}

fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm((a - b).unwrap()) / norm(b.clone())
}

#[test]
fn matrices_are_halved_and_what_is_trained_is_not() {
    let settings = Settings::preset("balanced").unwrap();
    let exact = |name: &str| settings.changes(name);
    let whole = load_model(&hub::demo()).unwrap();
    for (precision, dtype) in HALVES {
        let half = halved(precision, &exact);
        let mut trained = 0;
        for (name, tensor) in half.model.unet_params.tensors() {
            let plain = whole.model.unet_params.get(name).unwrap();
            let expected = if tensor.rank() > 1 && !exact(name) { dtype } else { DType::F32 };
            assert_eq!(tensor.dtype(), expected, "{name}");
            let rounded = plain.to_dtype(tensor.dtype()).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(common::difference(&tensor.to_dtype(DType::F32).unwrap(), &rounded).0, 0.0, "{name}");
            trained += usize::from(exact(name));
        }
        assert!(trained > 0);
        let all_halved = halved(precision, &|_| false);
        let (before, after) = (whole.model.bytes(), all_halved.model.bytes());
        assert!((1.9..2.0).contains(&(before as f64 / after as f64)), "{before} and {after} bytes");
    }
}

/// How far a prediction, an embedding and a picture are from those of the weights as they are in the files.
fn off(whole: &LoadedModel, half: &LoadedModel) -> [f32; 3] {
    let texts = ["a red star", "a photo of a dog"];
    let latent = Generator::new(4).randn_tensor(&[1, 4, 8, 8], &Device::Cpu).unwrap();
    let embed = |loaded: &LoadedModel| loaded.model.embed(&texts).unwrap().context;
    let decode = |loaded: &LoadedModel| loaded.model.vae.decode(&latent).unwrap();
    [
        relative(&predict(half), &predict(whole)),
        relative(&embed(half), &embed(whole)),
        relative(&decode(half), &decode(whole)),
    ]
}

#[test]
fn pictures_stay_close_and_those_of_a_model_in_f16_the_same() {
    // the demo is published in f16
    let exact = load_model(&hub::demo()).unwrap();
    assert_eq!(off(&exact, &halved(Precision::F16, &|_| false)), [0.0; 3]);
    for off in off(&exact, &halved(Precision::Bf16, &|_| false)) {
        assert!(off > 0.0 && off < 0.02, "off by {off}");
    }
}

#[test]
fn of_weights_in_f32_f16_keeps_several_times_more() {
    let demo = load_model(&hub::demo()).unwrap().model;
    let (x, context) = inputs();
    let mut noise = Generator::new(5);
    // no weight is one that f16 holds
    let values = |tensor: &Tensor| {
        let change = (noise.randn_tensor(tensor.shape(), &Device::Cpu).unwrap() * 1e-2).unwrap();
        let changed = (tensor * (change + 1.0).unwrap()).unwrap();
        changed.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let tensors = demo.unet_params.tensors();
    let values: Vec<Vec<f32>> = tensors.values().map(values).collect();
    let [exact, brain, half] = [Precision::F32, Precision::Bf16, Precision::F16].map(|precision| {
        let keep = |((name, tensor), values): ((&String, &Tensor), &Vec<f32>)| {
            (name.clone(), precision.keep(values.clone(), tensor.dims(), &Device::Cpu).unwrap())
        };
        let params = ParamStore::new(tensors.iter().zip(&values).map(keep).collect());
        Unet::new(&demo.unet_config, &params).unwrap().forward(&x, &[3.0, 700.0], &context).unwrap()
    });
    let (brain, half) = (relative(&brain, &exact), relative(&half, &exact));
    println!("predictions are off by {brain:.1e} with bf16, {half:.1e} with f16");
    assert!(half > 0.0 && (4.0..16.0).contains(&(brain / half)), "{half:e} with f16, {brain:e} with bf16");
}

/// A gradient through halved weights is that through the same numbers in `f32`, bit for bit; where products are of `bf16`, closely.
#[test]
fn gradients_pass_through_halved_weights() {
    let exact = |name: &str| name.contains("attn2");
    for (precision, dtype) in HALVES {
        let half = halved(precision, &exact);
        let names: Vec<String> = half.model.unet_params.tensors().keys().filter(|n| exact(n)).cloned().collect();
        let gradients = |mut params: ParamStore| {
            params.make_trainable(&names).unwrap();
            let unet = Unet::new(&half.model.unet_config, &params).unwrap();
            let (x, context) = inputs();
            let loss = unet.forward(&x, &[3.0, 700.0], &context).unwrap().sqr().unwrap().mean_all().unwrap();
            backward(loss, &params).unwrap()
        };
        let widened = half.model.unet_params.tensors().iter();
        let widened = widened.map(|(name, t)| (name.clone(), t.to_dtype(DType::F32).unwrap())).collect();
        let (found, expected) = (gradients(half.model.unet_params.clone()), gradients(ParamStore::new(widened)));
        assert_eq!(found.len(), names.len());
        let brief = precision == Precision::Bf16 && Instructions::used() == Instructions::Amx;
        if brief {
            let off = names.iter().map(|name| relative(&found[name], &expected[name]));
            let worst = off.fold(0.0, f32::max);
            println!("gradients are off by {worst:.1e} at most");
            assert!(worst > 0.0 && worst < 0.03, "{worst}");
        }
        for (name, gradient) in found.iter().filter(|_| !brief) {
            let (a, b) = (gradient.flatten_all().unwrap(), expected[name].flatten_all().unwrap());
            assert_eq!(a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap(), "{name}");
            assert!(a.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name}");
        }
        let mut params = half.model.unet_params.clone();
        let message = params.make_trainable(["conv_in.weight"]).unwrap_err().to_string();
        assert!(message.contains(&format!("conv_in.weight is kept in {}", dtype.as_str())), "{message}");
    }
}

#[test]
fn a_model_loaded_beside_its_base_shares_what_is_the_same() {
    let exact = |name: &str| name.contains("attn2");
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let loading = Loading { precision, exact: &exact, beside: None, ..Loading::default() };
        let base = load_model_with(&hub::demo(), &loading).unwrap();
        let changed_name = base.model.unet_params.tensors().keys().find(|name| exact(name)).unwrap().clone();
        let edited = (base.model.unet_params.get(&changed_name).unwrap() * 2.0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let changed = BTreeMap::from([(changed_name.clone(), edited)]);
        save_model(&hub::demo(), &base, &changed, folder.path(), &BTreeMap::new()).unwrap();
        let files = ModelFiles::Folder(folder.path().to_path_buf());
        let demo = hub::demo();
        let written = load_model_with(&files, &Loading { beside: Some((&demo, &base)), ..loading }).unwrap();
        for (name, tensor) in written.model.unet_params.tensors() {
            let shared = tensor.id() == base.model.unet_params.get(name).unwrap().id();
            assert_eq!(shared, *name != changed_name, "{name}");
        }
        assert!(Arc::ptr_eq(&written.model.vae, &base.model.vae));
        assert!(Arc::ptr_eq(&written.model.text_encoder, &base.model.text_encoder));
        // a component that is not the same is not shared
        let config = folder.path().join("vae/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replacen("\"scaling_factor\"", "\"force_upcast\": false, \"scaling_factor\"", 1))
            .unwrap();
        let other = load_model_with(&files, &Loading { beside: Some((&demo, &base)), ..loading }).unwrap();
        assert!(!Arc::ptr_eq(&other.model.vae, &base.model.vae));
    }
}
