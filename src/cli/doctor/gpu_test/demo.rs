//! The demo model's networks, pictures and erasure.

use super::check::{Check, Found, error, larger, same_bytes, time};
use crate::checkpoint::{Precision, load_component, load_model};
use crate::cli::doctor::device::{allow_tf32, demo_on, moved};
use crate::concept::Concept;
use crate::diffusion::{Generator, Sampler};
use crate::erase::{self, Data, Outcome, Scope, Settings};
use crate::hub;
use crate::nn::{Gradients, ParamStore, attention_in_bf16, backward_recorded, record};
use crate::progress::Silent;
use crate::sd::{SampleOptions, TextEncoder, Unet, UnetConfig, Vae};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// Whole networks in `f32`.
const F32: f64 = 1e-3;
/// The same with products in TF32.
const TF32: f64 = 5e-2;
/// The same with frozen weights in `bf16`.
const BF16: f64 = 1e-1;
/// An erasure: what is trimmed may differ by a weight or two whose scores are alike (rounding alone changes losses by 1e-5).
const ERASED: f64 = 5e-3;

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("demo: text encoder", "2 prompts", F32, text_encoder),
        Check::new("demo: UNet, attn2 gradients", "2 x 4x16x16", F32, |device| unet(device, Precision::F32, false)),
        Check::new("demo: UNet, TF32", "2 x 4x16x16", TF32, |device| unet(device, Precision::F32, true)),
        Check::new("demo: UNet, bf16 weights", "2 x 4x16x16", BF16, |device| unet(device, Precision::Bf16, false)),
        Check::new("demo: UNet, f16 weights", "2 x 4x16x16", F32, |device| unet(device, Precision::F16, false)),
        Check::new("demo: VAE decodes", "2 pictures", F32, |device| vae(device, Some([2, 4, 16, 16]))),
        Check::new("demo: VAE decodes in stripes", "640x640", F32, |device| vae(device, Some([1, 4, 160, 160]))),
        Check::new("demo: VAE encodes", "2 pictures", F32, |device| vae(device, None)),
        Check::new("demo: DDIM pictures", "2 prompts, 4 steps", F32, sample),
        Check::new("demo: erasure, mean losses", "4 + 4 latents, 4 steps", ERASED, erasure),
    ]
}

/// The config and the weights of a part of the demo.
fn part<C: DeserializeOwned>(folder: &str, weights: &str) -> Result<(C, ParamStore)> {
    load_component(&hub::demo(), folder, weights)
}

fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
    Generator::new(seed).randn_tensor(shape, &Device::Cpu)
}

/// Compares what `f` gives on the device, twice, with what it gives on the CPU.
fn compare(device: &Device, f: impl Fn(&Device) -> Result<Box<dyn Fn() -> Result<Tensor>>>) -> Result<Found> {
    let exact = f(&Device::Cpu)?()?;
    let there = f(device)?;
    let (first, second) = (there()?, there()?);
    let mut found = Found { forward: Some(error(&first, &exact)?), ..Found::default() };
    twice(&mut found, same_bytes(&first, &second)?);
    found.forward_ms = Some(time(device, || there().map(drop))?);
    Ok(found)
}

fn twice(found: &mut Found, same: bool) {
    if !same {
        found.problems.push("the same call twice gives other bytes".into());
    }
}

fn text_encoder(device: &Device) -> Result<Found> {
    let model = load_model(&hub::demo())?.model;
    let ids = model.tokenizer.encode(&["a red star", "three blue rings on a green ground"])?.ids;
    compare(device, |device| {
        let (config, params) = part("text_encoder", "model.safetensors")?;
        let (encoder, ids) = (TextEncoder::new(&config, &moved(&params, device)?)?, ids.clone());
        Ok(Box::new(move || encoder.forward(&ids)))
    })
}

/// Latents of this shape decoded, or pictures encoded.
fn vae(device: &Device, latents: Option<[usize; 4]>) -> Result<Found> {
    compare(device, move |device| {
        let (config, params) = part("vae", WEIGHTS)?;
        let vae = Vae::new(&config, &moved(&params, device)?)?;
        if let Some(shape) = latents {
            let latent = random(5, &shape)?.to_device(device)?;
            return Ok(Box::new(move || vae.decode(&latent)));
        }
        let picture = random(6, &[2, 3, 64, 64])?.clamp(-1f32, 1f32)?.to_device(device)?;
        Ok(Box::new(move || {
            let (mean, logvar) = vae.encode(&picture)?;
            Ok(Tensor::cat(&[mean, logvar], 1)?)
        }))
    })
}

/// A prediction and the gradients of the cross-attentions' weights.
fn predict(unet: &Unet, params: &ParamStore, operands: &[Tensor; 3]) -> Result<(Tensor, Gradients)> {
    let [x, context, noise] = operands;
    let (prediction, record) = record(|| unet.forward(x, &[321.0, 807.0], context))?;
    let loss = (&prediction - noise)?.sqr()?.mean_all()?;
    Ok((prediction.detach(), backward_recorded(loss, vec![record], params)?))
}

fn unet(device: &Device, precision: Precision, tf32: bool) -> Result<Found> {
    let (_, params): (serde_json::Value, _) = part("unet", WEIGHTS)?;
    let config = hub::demo().read("unet/config.json")?;
    let config = UnetConfig::from_json(&String::from_utf8_lossy(&config))?;
    let names = Scope::parse("xattn")?.select(params.tensors().keys())?;
    let width = config.cross_attention_dim;
    let operands = [random(1, &[2, 4, 16, 16])?, random(2, &[2, 32, width])?, random(3, &[2, 4, 16, 16])?];

    let build = |device: &Device, precision: Precision| -> Result<_> {
        let tensors = params.tensors().iter().map(|(name, x)| {
            let kept = if names.contains(name) { DType::F32 } else { precision.kept_as(x.dims()) };
            Ok((name.clone(), x.to_dtype(kept)?.to_device(device)?))
        });
        let mut params = ParamStore::new(tensors.collect::<Result<_>>()?);
        params.make_trainable(&names)?;
        Ok((Unet::new(&config, &params)?, params))
    };
    // in f16 too: the demo's files are f16, and everything is computed in f32
    let (unet, exact_params) = build(&Device::Cpu, Precision::F32)?;
    let (exact, exact_gradients) = predict(&unet, &exact_params, &operands)?;

    let (unet, params) = build(device, precision)?;
    let operands = [0, 1, 2].map(|i| operands[i].to_device(device));
    let [Ok(x), Ok(context), Ok(noise)] = operands else {
        return Err(Error::Numeric("the operands cannot be moved to the device".into()));
    };
    let operands = [x, context, noise];
    allow_tf32(tf32);
    attention_in_bf16(precision == Precision::Bf16);
    let _reset = Exact;
    let (got, gradients) = predict(&unet, &params, &operands)?;
    let mut found = Found { forward: Some(error(&got, &exact)?), ..Found::default() };
    for (name, exact) in &exact_gradients {
        let gradient = gradients.get(name).ok_or_else(|| Error::Numeric(format!("{name} has no gradient")))?;
        larger(&mut found.backward, error(gradient, exact)?);
    }
    let (again, gradients_again) = predict(&unet, &params, &operands)?;
    let mut same = same_bytes(&got, &again)?;
    for (name, gradient) in &gradients {
        same &= same_bytes(gradient, &gradients_again[name])?;
    }
    twice(&mut found, same);
    let frozen = Unet::new(&config, &params.detached())?;
    found.forward_ms = Some(time(device, || frozen.forward(&operands[0], &[321.0, 807.0], &operands[1]).map(drop))?);
    found.both_ms = Some(time(device, || predict(&unet, &params, &operands).map(drop))?);
    Ok(found)
}

/// Products are exact again when the check ends, whatever its end.
struct Exact;

impl Drop for Exact {
    fn drop(&mut self) {
        allow_tf32(false);
        attention_in_bf16(false);
    }
}

fn sample(device: &Device) -> Result<Found> {
    compare(device, |device| {
        let model = demo_on(device, Precision::F32)?;
        let unet = model.unet()?;
        let options = SampleOptions { sampler: Sampler::Ddim, steps: 4, guidance_scale: 5.0, eta: 0.0, size: None };
        Ok(Box::new(move || {
            let prompts = ["a red star", "three blue rings"];
            let latents = model.sample_latents(&unet, &options, &prompts, &["", ""], &[0, 1])?;
            model.decode_latents(&latents)
        }))
    })
}

/// The smallest erasure that goes through every stage.
fn erase_once(device: &Device) -> Result<Outcome> {
    let model = demo_on(device, Precision::F32)?;
    let concept = Concept::resolve("star", None)?;
    let mut settings = Settings::preset("balanced")?;
    (settings.data.forget, settings.data.retain, settings.data.steps) = (4, 4, 4);
    (settings.score_batches, settings.repair_steps) = (2, 4);
    let data = Data::sample(&model, &concept, &settings, 0, &mut Silent)?;
    let plan = erase::plan(&model, &settings, Default::default())?;
    erase::scissorhands(&model, &concept, &data, &settings, 0, plan, &mut Silent)
}

fn erasure(device: &Device) -> Result<Found> {
    let exact = erase_once(&Device::Cpu)?;
    let mut last = None;
    let milliseconds = time(device, || {
        last = Some(erase_once(device)?);
        Ok(())
    })?;
    let got = last.ok_or_else(|| Error::Numeric("the erasure did not run".into()))?;
    let mut found = Found { both_ms: Some(milliseconds), ..Found::default() };
    let mean = |outcome: &Outcome, loss: fn(&erase::StepRecord) -> f32| {
        outcome.losses.iter().map(|step| f64::from(loss(step))).sum::<f64>() / outcome.losses.len() as f64
    };
    let losses: [fn(&erase::StepRecord) -> f32; 2] = [|step| step.retain, |step| step.forget];
    for loss in losses {
        let (got, exact) = (mean(&got, loss), mean(&exact, loss));
        larger(&mut found.forward, (got - exact).abs() / exact.abs());
    }
    if got.changed.keys().ne(exact.changed.keys()) {
        found.problems.push("other tensors were changed".into());
    }
    for (name, tensor) in &got.changed {
        if !tensor.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            found.problems.push(format!("{name} is not finite"));
        }
    }
    Ok(found)
}
