//! Gradients block by block are those of the whole graph.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use erase_concept::diffusion::Generator;
use erase_concept::erase::batch::Batch;
use erase_concept::erase::gradient;
use erase_concept::erase::loss::denoising;
use erase_concept::erase::memory::Thrift;
use erase_concept::erase::student::{Predictor, Student};
use erase_concept::nn::{Gradients, ParamStore, backward, backward_recorded, record, record_lean};
use erase_concept::sd::{Conditions, Unet, UnetConfig};

fn demo() -> (UnetConfig, ParamStore) {
    let loaded = erase_concept::checkpoint::load_model(&erase_concept::hub::demo()).unwrap();
    (loaded.model.unet_config, loaded.model.unet_params)
}

/// The gradients of one loss of two predictions in the parameters whose names `chosen` likes.
fn gradients(checkpointing: bool, chosen: &dyn Fn(&str) -> bool) -> Gradients {
    let (config, mut params) = demo();
    let names: Vec<String> = params.tensors().keys().filter(|name| chosen(name)).cloned().collect();
    assert!(!names.is_empty());
    params.make_trainable(&names).unwrap();
    let unet = Unet::new(&config, &params).unwrap();
    let mut noise = Generator::new(7);
    let mut randn = |shape: &[usize]| noise.randn_tensor(shape, &Device::Cpu).unwrap();
    let (x, context) = (randn(&[2, 4, 16, 16]), randn(&[2, 32, 128]));
    let (target, other) = (randn(&[2, 4, 16, 16]), randn(&[2, 32, 128]));
    let [context, other] = [&context, &other].map(Conditions::from);
    let student = Student::new(&unet, checkpointing);
    let a = student.predict(&x, &[981.0, 20.0], &context).unwrap();
    let b = student.predict(&x, &[500.0, 3.0], &other).unwrap();
    let loss = ((a * 2.0).unwrap() - b).unwrap();
    let loss = (loss - target).unwrap().sqr().unwrap().mean_all().unwrap();
    student.backward(loss, &params).unwrap()
}

fn compare(what: &str, chosen: &dyn Fn(&str) -> bool) {
    let (dense, blocks) = (gradients(false, chosen), gradients(true, chosen));
    assert_eq!(dense.keys().collect::<Vec<_>>(), blocks.keys().collect::<Vec<_>>(), "{what}");
    for (name, dense) in &dense {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (dense, blocks) = (values(dense), values(&blocks[name]));
        let norm = dense.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let off = dense.iter().zip(&blocks).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{what}: {name} has no gradient");
        assert!(off <= 1e-5 * norm, "{what}: {name} is off by {}", off / norm);
    }
}

#[test]
fn cross_attention_alone() {
    compare("xattn", &|name| name.contains("attn2"));
}

#[test]
fn every_parameter() {
    compare("full", &|_| true);
}

/// The gradients of a pass that keeps everything or forgets what it can make again, under two texts.
fn recorded(lean: bool, chosen: &dyn Fn(&str) -> bool) -> Gradients {
    let (config, mut params) = demo();
    let names: Vec<String> = params.tensors().keys().filter(|name| chosen(name)).cloned().collect();
    params.make_trainable(&names).unwrap();
    let unet = Unet::new(&config, &params).unwrap();
    let mut noise = Generator::new(11);
    let mut randn = |shape: &[usize]| noise.randn_tensor(shape, &Device::Cpu).unwrap();
    let (x, context) = (randn(&[1, 4, 24, 16]), randn(&[2, 32, 128]));
    let pass = || unet.forward(&x, &[321.0], &context);
    let (y, record) = if lean { record_lean(pass) } else { record(pass) }.unwrap();
    backward_recorded(y.sqr().unwrap().mean_all().unwrap(), vec![record], &params).unwrap()
}

#[test]
fn what_is_made_again_is_what_was_forgotten() {
    let scopes = ["attn2", "", "attn1.to_k", "norm3", "ff.net.2.weight", "resnets.1.conv1", "conv_shortcut.weight"];
    for scope in scopes {
        let [whole, lean] = [false, true].map(|lean| recorded(lean, &|name| name.contains(scope)));
        assert_eq!(whole.keys().collect::<Vec<_>>(), lean.keys().collect::<Vec<_>>());
        for (name, whole) in &whole {
            let bits = |tensor: &Tensor| -> Vec<u32> {
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
            };
            assert!(bits(whole) == bits(&lean[name]), "{scope:?}: the gradient of {name} is another");
            assert!(bits(whole).iter().any(|bits| *bits != 0), "{scope:?}: {name} has no gradient");
        }
    }
}

#[test]
fn only_parts_of_the_way_down() {
    compare("mid", &|name| name.starts_with("mid_block.resnets.1"));
    compare("out", &|name| name.starts_with("conv_out"));
    compare("in", &|name| name == "conv_in.weight");
    compare("time", &|name| name.starts_with("time_embedding.linear_1"));
}

#[test]
fn rows_of_large_latents_one_after_another_are_the_batch() {
    let (config, mut params) = demo();
    let names: Vec<String> = params.tensors().keys().filter(|name| name.contains("attn2")).cloned().collect();
    params.make_trainable(&names).unwrap();
    let unet = Unet::new(&config, &params).unwrap();
    let mut noise = Generator::new(9);
    let mut randn = |shape: &[usize]| noise.randn_tensor(shape, &Device::Cpu).unwrap();
    let (noisy, target, prompts) = (randn(&[3, 4, 40, 40]), randn(&[3, 4, 40, 40]), randn(&[2, 32, 128]));
    let prompts = Conditions::from(&prompts);
    let batch = Batch { noisy, t: vec![900.0, 400.0, 7.0], target, prompts: vec![1, 0, 1] };
    let thrift = Thrift { checkpointing: true, single_rows: false };
    assert!(!gradient::shares(&[3], 40 * 40, thrift, false).side_by_side);
    let trained = gradient::Trained { unet: &unet, params: &params, thrift };
    let loss = |part: &Batch, unet: &Student<'_>| denoising(unet, part, &part.conditions(&prompts)?);
    let (rows, value) = gradient::of_batch(&batch, &[trained], |_, part, student| loss(part, student)).unwrap();
    let whole = denoising(&unet, &batch, &batch.conditions(&prompts).unwrap()).unwrap();
    assert!((value - f64::from(whole.to_scalar::<f32>().unwrap())).abs() < 1e-6);
    for (name, whole) in backward(whole, &params).unwrap() {
        let square = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let off = (square(&(&whole - &rows[&name]).unwrap()) / square(&whole)).sqrt();
        assert!(off <= 1e-4, "{name} is off by {off} of its norm"); // some 1e-5 where the parts of the rows cancel
    }
}
