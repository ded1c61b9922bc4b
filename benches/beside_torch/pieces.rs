//! Our half: each piece, timed.

use candle_core::{Device, Tensor};
use erase_concept::Result;
use erase_concept::checkpoint::{Precision, load_model};
use erase_concept::concept::Concept;
use erase_concept::diffusion::{Generator, Sampler};
use erase_concept::erase::student::{Predictor, Student};
use erase_concept::erase::trim::{Init, Scores, trim};
use erase_concept::erase::{self, Data, Scope, Settings};
use erase_concept::progress::Silent;
use erase_concept::sd::{Conditions, SampleOptions, Unet};
use erase_concept::{Error, hub};
use std::time::Instant;

/// The median of `runs` runs in seconds, after one that is not counted.
pub fn time(name: &str, runs: usize) -> Result<f64> {
    let mut piece = ready(name)?;
    piece()?;
    let mut seconds = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        let began = Instant::now();
        piece()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?)
}

/// The piece, its weights in memory.
fn ready(name: &str) -> Result<Box<dyn FnMut() -> Result<()>>> {
    match name {
        "unet-forward" | "unet-forward-bf16" | "unet-xattn" | "unet-xattn-lean" | "unet-full" => unet(name),
        "vae-decode" => {
            let (vae, latent) = (hub::made_up_vae()?, random(&[1, 4, 64, 64])?);
            Ok(Box::new(move || vae.decode(&latent).map(drop)))
        }
        "text" => {
            let encoder = hub::made_up_text_encoder()?;
            let ids: Vec<Vec<u32>> =
                (0..8).map(|row| (0..77).map(|i| (row * 6007 + i * 641) % 49408).collect()).collect();
            Ok(Box::new(move || encoder.forward(&ids).map(drop)))
        }
        "demo-sample" => {
            let model = load_model(&hub::demo())?.model;
            let unet = model.unet()?;
            let options =
                SampleOptions { sampler: Sampler::Ddim, steps: 20, guidance_scale: 7.5, eta: 0.0, size: None };
            Ok(Box::new(move || {
                let seeds: Vec<u64> = (0..32).collect();
                let latents = model.sample_latents(&unet, &options, &["a red star"; 32], &[""; 32], &seeds)?;
                model.decode_latents(&latents).map(drop)
            }))
        }
        "erase" => {
            let model = load_model(&hub::demo())?.model;
            let (concept, settings) = (Concept::resolve("star", None)?, Settings::preset("balanced")?);
            Ok(Box::new(move || {
                let data = Data::sample(&model, &concept, &settings, 0, &mut Silent)?;
                let plan = erase::plan(&model, &settings, Default::default())?;
                erase::scissorhands(&model, &concept, &data, &settings, 0, plan, &mut Silent).map(drop)
            }))
        }
        "trim" => trimming(),
        _ => Err(Error::Usage(format!("there is no piece {name:?}"))),
    }
}

/// Threshold and trim with scores of every parameter of the UNet. The parameters and one copy of scores are all that is needed.
fn trimming() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let (_, mut params) = hub::made_up_unet()?;
    let names: Vec<String> = params.tensors().keys().cloned().collect();
    params.make_trainable(&names)?;
    let mut scores = Scores::new();
    for (name, tensor) in params.tensors() {
        scores.insert(name.clone(), tensor.flatten_all()?.abs()?.to_vec1()?);
    }
    Ok(Box::new(move || {
        let summary = trim(&params, &scores, 0.995, &names, Init::Matched, &mut Generator::new(1))?;
        assert!(summary.total > 4_000_000, "half a percent was trimmed");
        Ok(())
    }))
}

fn unet(name: &str) -> Result<Box<dyn FnMut() -> Result<()>>> {
    let side = if name == "unet-full" { 32 } else { 64 };
    let (x, context) = (random(&[1, 4, side, side])?, random(&[1, 77, 768])?);
    let lean = matches!(name, "unet-xattn-lean" | "unet-forward-bf16");
    let xattn = Scope::parse("xattn")?;
    let (config, mut params) =
        hub::made_up_unet_as(if lean { Precision::Bf16 } else { Precision::F32 }, &|name| xattn.contains(name))?;
    let scope = match name {
        "unet-forward" | "unet-forward-bf16" => {
            let unet = Unet::new(&config, &params)?;
            return Ok(Box::new(move || unet.forward(&x, &[500.0], &context).map(drop)));
        }
        "unet-xattn" | "unet-xattn-lean" => "xattn",
        _ => "*",
    };
    let names = Scope::parse(scope)?.select(params.tensors().keys())?;
    params.make_trainable(&names)?;
    let unet = Unet::new(&config, &params)?;
    Ok(Box::new(move || {
        let student = Student::new(&unet, lean);
        let loss = student.predict(&x, &[500.0], &Conditions::from(&context))?.sqr()?.mean_all()?;
        student.backward(loss, &params).map(drop)
    }))
}
