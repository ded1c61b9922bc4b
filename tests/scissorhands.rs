//! The parts of Scissorhands against PyTorch: losses, gradients, scores, trim counts, projection, Adam.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{assert_close, facts, goldens, tensors};
use erase_concept::diffusion::Schedule;
use erase_concept::erase::adam::Adam;
use erase_concept::erase::batch::Batch;
use erase_concept::erase::loss::{denoising, guided_denoising, mse};
use erase_concept::erase::project::{dot, project, solve_dual};
use erase_concept::erase::scope::Scope;
use erase_concept::erase::score::Sensitivity;
use erase_concept::erase::trim::{Scores, threshold};
use erase_concept::nn::{Gradients, ParamStore, backward};
use erase_concept::sd::{Conditions, StableDiffusion, Unet};
use serde_json::Value;
use std::collections::HashMap;

struct Case {
    model: StableDiffusion,
    schedule: Schedule,
    arrays: HashMap<String, Tensor>,
    facts: Value,
}

impl Case {
    fn new() -> Self {
        let files = erase_concept::hub::resolve("demo").unwrap();
        let model = erase_concept::checkpoint::load_model(&files).unwrap().model;
        let schedule = Schedule::new(&model.scheduler).unwrap();
        Self { model, schedule, arrays: goldens("demo"), facts: facts("demo") }
    }

    fn embed(&self, key: &str) -> Conditions {
        let prompts: Vec<String> = serde_json::from_value(self.facts[key].clone()).unwrap();
        self.model.embed(&prompts).unwrap()
    }

    fn batch(&self, b: usize) -> Batch {
        let get = |what: &str| &self.arrays[&format!("shs.batch{b}.{what}")];
        let t: Vec<usize> = get("t_i64").to_vec1::<i64>().unwrap().iter().map(|t| *t as usize).collect();
        Batch::new(&self.schedule, get("x0"), &t, get("noise"), vec![0, 1, 2, 3]).unwrap()
    }

    fn params(&self, scope: &str) -> (ParamStore, Vec<String>) {
        let mut params = self.model.unet_params.clone();
        let names = Scope::parse(scope).unwrap().select(params.tensors().keys()).unwrap();
        params.make_trainable(&names).unwrap();
        (params, names)
    }

    fn unet(&self, params: &ParamStore) -> Unet {
        Unet::new(&self.model.unet_config, params).unwrap()
    }
}

fn value(t: &Tensor) -> f64 {
    f64::from(t.to_scalar::<f32>().unwrap())
}

fn norm(t: &Tensor) -> f64 {
    value(&t.sqr().unwrap().sum_all().unwrap()).sqrt()
}

fn assert_relative(what: &str, ours: f64, golden: f64, tolerance: f64) {
    println!("{what}: {ours} golden {golden}");
    assert!((ours - golden).abs() <= tolerance * golden.abs(), "{what}: {ours} is not {golden}");
}

#[test]
fn losses_equal_pytorchs() {
    let case = Case::new();
    let unet = case.model.unet().unwrap();
    let golden = |name: &str| case.facts["losses"][name].as_f64().unwrap();
    let (c, ca, cr) = (case.embed("shs_prompts"), case.embed("shs_anchor_prompts"), case.embed("shs_retain_prompts"));
    let b0 = case.batch(0);
    let plain = |b, c: &Conditions| value(&denoising(&unet, &case.batch(b), c).unwrap());
    assert_relative("plain0", plain(0, &c), golden("plain0"), 1e-5);
    assert_relative("plain1", plain(1, &c), golden("plain1"), 1e-5);
    assert_relative("retain2", plain(2, &cr), golden("retain2"), 1e-5);
    let predict = |c: &Conditions| unet.forward(&b0.noisy, &b0.t, c).unwrap();
    let anchor = value(&mse(&predict(&c), &predict(&ca)).unwrap());
    assert_relative("anchor0", anchor, golden("anchor0"), 1e-5);
    let empty = case.model.embed(&["", "", "", ""]).unwrap();
    let guided = value(&guided_denoising(&unet, &b0, &c, &empty).unwrap());
    assert_relative("guided0", guided, golden("guided0"), 1e-5);
}

#[test]
fn every_gradient_equals_pytorchs_and_scores_give_its_counts() {
    let case = Case::new();
    let (params, names) = case.params("full");
    let unet = case.unet(&params);
    let c = case.embed("shs_prompts");
    let mut sensitivity = Sensitivity::default();
    for b in [0, 1] {
        let gradients = backward(denoising(&unet, &case.batch(b), &c).unwrap(), &params).unwrap();
        sensitivity.add(&gradients).unwrap();
        if b == 1 {
            continue;
        }
        assert_eq!(gradients.len(), names.len());
        for (name, norm_of) in case.facts["grad_norms_plain0"].as_object().unwrap() {
            assert_relative(name, norm(&gradients[name]), norm_of.as_f64().unwrap(), 1e-3);
        }
        let mut compared = 0;
        for name in &names {
            assert!(norm(&gradients[name]) > 0.0, "{name} has a gradient of zeros");
            if let Some(golden) = case.arrays.get(&format!("grad.{name}")) {
                let d = norm(&(&gradients[name] - golden).unwrap());
                assert!(d <= 1e-3 * norm(golden), "{name}: ||d|| {d:e}, ||g|| {:e}", norm(golden));
                compared += 1;
            }
        }
        assert!(compared > 30, "{compared} gradients compared");
    }
    let scores = sensitivity.scores(&params).unwrap();
    for scope in ["full", "xattn"] {
        let names = Scope::parse(scope).unwrap().select(scores.keys()).unwrap();
        let scores: Scores = names.iter().map(|n| (n.clone(), scores[n].clone())).collect();
        for kept in [0.9, 0.99, 0.995] {
            let golden = &case.facts["trim"][format!("{scope}@{kept}")];
            let (k, tau) = threshold(&scores, kept).unwrap();
            assert_eq!(k as u64, golden["k"].as_u64().unwrap());
            assert_relative("threshold", f64::from(tau), golden["threshold"].as_f64().unwrap(), 1e-4);
            for (name, count) in golden["trimmed"].as_object().unwrap() {
                let ours = scores[name].iter().filter(|s| **s > tau).count() as f64;
                let count = count.as_f64().unwrap();
                assert!((ours - count).abs() <= (0.001 * count).max(2.0), "{scope}@{kept} {name}: {ours} of {count}");
            }
        }
    }
}

#[test]
fn pinned_scores_give_the_exact_threshold_and_counts() {
    let (g, facts) = (goldens("demo"), facts("demo"));
    let flat: Vec<f32> = g["score.xattn"].to_vec1().unwrap();
    let all = tensors(common::repository("weights/demo/unet/diffusion_pytorch_model.safetensors"));
    let mut scores = Scores::new();
    let mut start = 0;
    for name in facts["xattn_order"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let n = all[name].elem_count();
        scores.insert(name.into(), flat[start..start + n].to_vec());
        start += n;
    }
    assert_eq!(start, flat.len());
    for kept in [0.9, 0.99, 0.995] {
        let golden = &facts["trim"][format!("xattn@{kept}")];
        let (k, tau) = threshold(&scores, kept).unwrap();
        assert_eq!(k as u64, golden["k"].as_u64().unwrap());
        assert_eq!(tau, golden["threshold"].as_f64().unwrap() as f32);
        for (name, count) in golden["trimmed"].as_object().unwrap() {
            assert_eq!(scores[name].iter().filter(|s| **s > tau).count() as u64, count.as_u64().unwrap(), "{name}");
        }
    }
}

#[test]
fn only_trainable_parameters_get_gradients() {
    let case = Case::new();
    let c = case.embed("shs_prompts");
    for scope in ["xattn", "selfattn", "noxattn", "conv_in.*", "*.norm2.*", "*conv2.weight"] {
        let (params, names) = case.params(scope);
        // backward itself fails if a frozen parameter gets a gradient or a trainable one does not
        let gradients = backward(denoising(&case.unet(&params), &case.batch(0), &c).unwrap(), &params).unwrap();
        assert!(gradients.keys().eq(names.iter()), "{scope}");
        assert!(gradients.values().all(|g| norm(g) > 0.0), "{scope}");
    }
}

#[test]
fn projection_equals_pytorchs() {
    let case = Case::new();
    let (params, names) = case.params("xattn");
    let unet = case.unet(&params);
    let (c, cr) = (case.embed("shs_prompts"), case.embed("shs_retain_prompts"));
    let gradient = |b: usize, c: &Conditions, sign: f64| {
        backward((denoising(&unet, &case.batch(b), c).unwrap() * sign).unwrap(), &params).unwrap()
    };
    let memory = gradient(0, &c, -1.0);
    let repair = (denoising(&unet, &case.batch(2), &cr).unwrap()
        - (denoising(&unet, &case.batch(1), &c).unwrap() * 0.1).unwrap())
    .unwrap();
    let steps = [("repair", backward(repair, &params).unwrap()), ("relearn", gradient(0, &c, 1.0))];
    let order: Vec<String> = serde_json::from_value(case.facts["xattn_order"].clone()).unwrap();
    for (name, step) in steps {
        let golden = &case.facts["projection"][name];
        let get = |key: &str| golden[key].as_f64().unwrap();
        let (d, mm, gg) = (get("dot"), get("mm"), get("gg"));
        let within = |ours: f64, what: f64| (ours - what).abs() <= 1e-4 * (mm * gg).sqrt();
        assert!(within(dot(&memory, &step, &names).unwrap(), d), "{name}");
        for n in &order[..2] {
            for (ours, key) in [(&step[n], format!("step.{name}.{n}")), (&memory[n], format!("memory0.{n}"))] {
                let pinned = &case.arrays[&key];
                assert!(norm(&(ours - pinned).unwrap()) <= 1e-3 * norm(pinned), "{key}");
            }
        }
        for tag in ["gem", "exact"] {
            let (margin, eps) = (golden[tag]["margin"].as_f64().unwrap(), golden[tag]["eps"].as_f64().unwrap());
            let mut z = step.clone();
            let done = project(&mut z, std::slice::from_ref(&memory), &names, margin, eps).unwrap();
            assert_eq!(done.changed(), golden["violates"].as_bool().unwrap(), "{name} {tag}");
            let v = golden[tag]["v"].as_f64().unwrap();
            assert!((done.v[0] - v).abs() <= 1e-3 * v.abs().max(1.0), "{name} {tag}: v {} golden {v}", done.v[0]);
            assert!((dot(&memory, &z, &names).unwrap() - golden[tag]["m_dot_z"].as_f64().unwrap()).abs() <= 1e-3 * mm);
        }
    }
}

#[test]
fn projection_of_pinned_vectors_is_exact() {
    let (g, facts) = (goldens("demo"), facts("demo"));
    let order: Vec<String> = serde_json::from_value(facts["xattn_order"].clone()).unwrap();
    let golden = &facts["projection"]["relearn"];
    let number = |v: &Value| v.as_f64().unwrap();
    for tag in ["gem", "exact"] {
        let (margin, eps) = (number(&golden[tag]["margin"]), number(&golden[tag]["eps"]));
        let v = solve_dual(&[vec![number(&golden["mm"])]], &[number(&golden["dot"])], margin, eps).unwrap();
        assert!((v[0] - number(&golden[tag]["v"])).abs() <= 1e-4);
        for n in &order[..2] {
            let (step, memory) = (&g[&format!("step.relearn.{n}")], &g[&format!("memory0.{n}")]);
            let z = (step + (memory * v[0]).unwrap()).unwrap();
            assert_close(n, &z, &g[&format!("projected.{tag}.{n}")], 1e-4);
        }
        let qp = &facts["qp"];
        let gram: Vec<Vec<f64>> = serde_json::from_value(qp["gram"].clone()).unwrap();
        let q: Vec<f64> = serde_json::from_value(qp["m_dot_g"].clone()).unwrap();
        let expected: Vec<f64> = serde_json::from_value(qp[tag]["v"].clone()).unwrap();
        let ours = solve_dual(&gram, &q, number(&qp[tag]["margin"]), number(&qp[tag]["eps"])).unwrap();
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours - expected).abs() <= 1e-6, "{tag}: {ours} is not {expected}");
        }
    }
}

#[test]
fn adam_equals_pytorchs_after_three_pinned_steps() {
    let (g, facts) = (goldens("demo"), facts("demo"));
    let order: Vec<String> = serde_json::from_value(facts["xattn_order"].clone()).unwrap();
    let four = &order[..4];
    let mut params =
        ParamStore::new(four.iter().map(|n| (n.clone(), g[&format!("adam.before.{n}")].clone())).collect());
    params.make_trainable(four).unwrap();
    let mut adam = Adam::default();
    for step in 0..3 {
        let gradients: Gradients =
            four.iter().map(|n| (n.clone(), g[&format!("adam.grad{step}.{n}")].clone())).collect();
        adam.step(&params, &gradients, 1e-3).unwrap();
    }
    for n in four {
        assert_close(n, params.get(n).unwrap(), &g[&format!("adam.after.{n}")], 1e-6);
    }
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
