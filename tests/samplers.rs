//! The samplers against diffusers, over the demo model and the SD 2.1 shape.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::{assert_close, facts, fixture, goldens};
use erase_concept::diffusion::{Generator, SAMPLERS, Sampler, Schedule, SchedulerConfig, sample, timesteps};
use erase_concept::sd::{SampleOptions, StableDiffusion};

fn demo() -> StableDiffusion {
    erase_concept::checkpoint::load_model(&erase_concept::hub::resolve("demo").unwrap()).unwrap().model
}

fn denoise(
    model: &StableDiffusion,
    o: &SampleOptions,
    prompts: &[&str],
    negative: &[&str],
    start: &Tensor,
    seed: u64,
) -> Tensor {
    let unet = model.unet().unwrap();
    let (context, negative) = (model.embed(prompts).unwrap(), model.embed_negative(negative).unwrap());
    let mut stream = Generator::new(seed);
    let mut noise = |shape: &[usize]| stream.randn_tensor(shape, &Device::Cpu);
    model.denoise(&unet, o, &context, &negative, start.clone(), &mut noise).unwrap()
}

fn options(sampler: Sampler, steps: usize, guidance_scale: f64) -> SampleOptions {
    SampleOptions { sampler, steps, guidance_scale, eta: 0.0, size: None }
}

const PROMPTS: [&str; 2] = ["a red circle on a white background", "a striped blue heart"];

#[test]
fn timesteps_and_final_latents_equal_diffusers() {
    let (model, g) = (demo(), goldens("demo"));
    let schedule = Schedule::new(&model.scheduler).unwrap();
    for (name, sampler) in SAMPLERS {
        let golden: Vec<f32> = g[&format!("sampler.{name}.timesteps")].to_vec1().unwrap();
        let ours = timesteps(sampler, &schedule, 20).unwrap();
        assert_eq!(ours.len(), golden.len(), "{name}");
        assert!(ours.iter().zip(&golden).all(|(a, b)| (a - b).abs() < 1e-3), "{name}: {ours:?} {golden:?}");
        let latents = denoise(&model, &options(sampler, 20, 7.5), &PROMPTS, &["", ""], &g["sampler.start"], 0);
        assert_close(name, &latents, &g[&format!("sampler.{name}.latents")], 2e-3);
    }
}

#[test]
fn negative_prompts_eta_and_pictures_equal_diffusers() {
    let (model, g, facts) = (demo(), goldens("demo"), facts("demo"));
    let negative: Vec<&str> =
        facts["negative_case"]["negative"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
    let latents = denoise(&model, &options(Sampler::Ddim, 10, 3.0), &PROMPTS, &negative, &g["sampler.start"], 0);
    assert_close("negative", &latents, &g["sampler.ddim.negative"], 2e-3);
    let eta = SampleOptions { eta: 1.0, ..options(Sampler::Ddim, 10, 7.5) };
    let latents = denoise(&model, &eta, &PROMPTS, &["", ""], &g["sampler.start"], 1234);
    assert_close("eta", &latents, &g["sampler.ddim.eta1"], 2e-3);
    let latents = denoise(&model, &options(Sampler::Ddim, 20, 7.5), &PROMPTS, &["", ""], &g["sampler.start"], 0);
    let image = ((model.decode_latents(&latents).unwrap() * 0.5).unwrap() + 0.5).unwrap().clamp(0f32, 1f32).unwrap();
    assert_close("image", &image, &g["sampler.ddim.image"], 4e-3);
}

#[test]
fn v_prediction_equals_diffusers() {
    let files = erase_concept::hub::resolve(fixture("tiny-sd21").to_str().unwrap()).unwrap();
    let model = erase_concept::checkpoint::load_model(&files).unwrap().model;
    let g = goldens("tiny-sd21");
    let latents = denoise(&model, &options(Sampler::Ddim, 10, 7.5), &["a red star"], &[""], &g["start"], 0);
    assert_close("tiny-sd21 ddim10", &latents, &g["ddim10"], 2e-3);
}

/// On a network that needs no weights; see `samplers` in `make_goldens.py`.
#[test]
fn every_spacing_and_parametrisation_equals_diffusers() {
    let facts = facts("samplers");
    let numbers = |value: &serde_json::Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
    let tensor = |value| Tensor::from_vec(numbers(value), (1, 4, 2, 2), &Device::Cpu).unwrap();
    let (start, mut count) = (tensor(&facts["start"]), 0);
    for case in facts["cases"].as_array().unwrap() {
        let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
        let sampler = SAMPLERS.into_iter().find(|(name, _)| case["sampler"] == *name).unwrap().1;
        let what =
            format!("{} {} {}", case["sampler"], case["config"]["prediction_type"], case["config"]["timestep_spacing"]);
        assert_eq!(config.sampler(), sampler);
        let schedule = Schedule::new(&config).unwrap();
        let ts = timesteps(sampler, &schedule, 12).unwrap();
        let golden = numbers(&case["timesteps"]);
        assert_eq!(ts.len(), golden.len(), "{what}: {ts:?} {golden:?}");
        assert!(ts.iter().zip(&golden).all(|(a, b)| (a - b).abs() < 1e-3), "{what}: {ts:?} {golden:?}");
        let mut predict = |x: &Tensor, t: f32| Ok(((x * f64::from(0.4 * (t / 300.0).cos()))? + 0.1)?);
        let mut noise = |_: &[usize]| unreachable!("eta is 0");
        let end = sample(sampler, &schedule, 12, 0.0, start.clone(), &mut noise, &mut predict).unwrap();
        assert_close(&what, &end, &tensor(&case["end"]), 1e-4);
        count += 1;
    }
    assert_eq!(count, 30);
}

/// For data that is a unit normal at every noise level, the exact noise prediction is `sqrt(1 - abar) x`.
#[test]
fn every_sampler_carries_a_unit_normal_to_a_unit_normal() {
    let config = r#"{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}"#;
    let config = SchedulerConfig::from_json(config).unwrap();
    let schedule = Schedule::new(&config).unwrap();
    let start = Generator::new(0).randn_tensor((4, 4, 16, 16), &Device::Cpu).unwrap();
    for (name, sampler) in SAMPLERS {
        let scaled = !matches!(sampler, Sampler::Ddim | Sampler::Pndm | Sampler::DpmSolverPlusPlus2M);
        let mut calls = 0;
        let mut predict = |x: &Tensor, t: f32| {
            calls += 1;
            let _ = scaled;
            let sigma = schedule.sigma(f64::from(t));
            Ok((x * (sigma / (1.0 + sigma * sigma).sqrt()))?)
        };
        let mut noise = |_: &[usize]| unreachable!("eta is 0");
        let x = sample(sampler, &schedule, 50, 0.0, start.clone(), &mut noise, &mut predict).unwrap();
        let deviation = x.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!((deviation - 1.0).abs() < 0.06, "{name}: {deviation}");
        assert_eq!(calls, timesteps(sampler, &schedule, 50).unwrap().len());
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let config = SchedulerConfig::from_json(r#"{"_class_name": "DDIMScheduler"}"#).unwrap();
    let schedule = Schedule::new(&config).unwrap();
    for (sampler, steps, eta, says) in [
        (Sampler::Ddim, 0, 0.0, "0 denoising steps"),
        (Sampler::DpmSolverPlusPlus2M, 1000, 0.0, "1000 denoising steps"),
        (Sampler::Ddim, 10, 1.5, "--eta 1.5"),
        (Sampler::Euler, 10, 0.5, "--scheduler ddim"),
    ] {
        let start = Tensor::zeros((1, 4, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = sample(sampler, &schedule, steps, eta, start, &mut |_| unreachable!(), &mut |x, _| Ok(x.clone()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{says:?} not in {error:?}");
    }
    assert!("ddpm".parse::<Sampler>().unwrap_err().to_string().contains("dpmpp_2m"));
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
