//! The UNet at Stable Diffusion 1.x's size, with made-up weights, against diffusers and PyTorch: 5 GB of memory, a minute.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{assert_close, difference, facts, goldens};
use erase_concept::diffusion::Generator;
use erase_concept::erase::student::{Predictor, Student};
use erase_concept::hub::made_up_unet;
use erase_concept::nn::Gradients;
use erase_concept::sd::{Conditions, Unet};

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let product = (a.to_dtype(DType::F64).unwrap() * b.to_dtype(DType::F64).unwrap()).unwrap();
    product.sum_all().unwrap().to_scalar::<f64>().unwrap()
}

#[test]
fn predicts_and_trains_as_pytorch_does_at_full_size() {
    let (config, mut params) = made_up_unet().unwrap();
    let (g, facts) = (goldens("sd14-full"), facts("sd14-full"));
    let elements: usize = params.tensors().values().map(Tensor::elem_count).sum();
    assert_eq!(elements as u64, facts["unet_parameters"].as_u64().unwrap());
    let t: Vec<f32> = g["t_i64"].to_vec1::<i64>().unwrap().iter().map(|t| *t as f32).collect();
    let eps = Unet::new(&config, &params).unwrap().forward(&g["x"], &t, &g["context"]).unwrap();
    assert_close("eps", &eps, &g["eps"], 1e-3);
    // What f32 can hold: the golden (PyTorch with AVX-512) is off by 1.6e-5 in the mean from what PyTorch gives in f64, and
    // PyTorch with AVX2 by 2.2e-5. So the mean is held against f64, and may be a little more than PyTorch's.
    let exact = goldens("sd14-full-f64")["eps64"].to_dtype(DType::F32).unwrap();
    let (ours, golden) = (difference(&eps, &exact).1, difference(&g["eps"], &exact).1);
    println!("off from f64 in the mean: ours {ours:.2e}, the golden {golden:.2e}");
    assert!(golden < 2e-5 && ours <= 2.0 * golden, "the mean error {ours:e} is more than f32's rounding");

    let norms = facts["attn2_grad_norms"].as_object().unwrap();
    params.make_trainable(norms.keys()).unwrap();
    let unet = Unet::new(&config, &params).unwrap();
    let noise = Generator::new(3).randn_tensor((2, 4, 16, 16), &Device::Cpu).unwrap();
    let gradients = |checkpointing: bool| -> Gradients {
        let student = Student::new(&unet, checkpointing);
        let prediction = student.predict(&g["x"], &t, &Conditions::from(&g["context"])).unwrap();
        let loss = (prediction - &noise).unwrap().sqr().unwrap().mean_all().unwrap();
        let value = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((value - facts["loss"].as_f64().unwrap()).abs() < 1e-5, "loss {value}");
        student.backward(loss, &params).unwrap()
    };
    let blocks = gradients(true);
    // Against f64 too: each product with a random direction is off by about the gradient's own error.
    let exact = common::facts("sd14-full-f64");
    let (mut ours, mut goldens) = (0.0, 0.0);
    for (name, norm) in norms {
        let (gradient, norm) = (&blocks[name], norm.as_f64().unwrap());
        let found = dot(gradient, gradient).sqrt();
        assert!((found - norm).abs() <= 1e-3 * norm, "{name}: norm {found}, golden {norm}");
        let seed = u64::from(crc32fast::hash(name.as_bytes())) + 1;
        let direction = Generator::new(seed).randn_tensor(gradient.shape(), &Device::Cpu).unwrap();
        let (found, exact) = (dot(gradient, &direction), exact["dots"][name].as_f64().unwrap());
        let golden = facts["attn2_grad_dot_randn_crc32_plus_1"][name].as_f64().unwrap();
        // PyTorch with AVX2 is up to 1.2e-3 away from PyTorch with AVX-512
        assert!((found - golden).abs() <= 3e-3 * norm, "{name}: product {found}, golden {golden}, norm {norm}");
        ours += ((found - exact) / norm).powi(2) / norms.len() as f64;
        goldens += ((golden - exact) / norm).powi(2) / norms.len() as f64;
    }
    println!("gradients are off from f64 by {:.2e}, the golden's by {:.2e}", f64::sqrt(ours), f64::sqrt(goldens));
    assert!(ours <= 4.0 * goldens, "the gradients' error is more than twice PyTorch's");
    for (name, dense) in gradients(false) {
        let off = dot(&(&dense - &blocks[&name]).unwrap(), &(&dense - &blocks[&name]).unwrap()).sqrt();
        assert!(off <= 1e-5 * norms[&name].as_f64().unwrap(), "{name}: with checkpoints off by {off}");
    }
}
