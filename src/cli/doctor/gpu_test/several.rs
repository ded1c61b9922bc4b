//! The device twice: two openings of it share the work, and give what one gives.

use super::check::{Check, Found, error, larger, same_bytes};
use crate::checkpoint::Precision;
use crate::cli::doctor::device::{again, demo_on};
use crate::concept::Concept;
use crate::diffusion::Sampler;
use crate::erase::{self, Data, Outcome, Settings};
use crate::nn::across;
use crate::progress::Silent;
use crate::sd::{Replica, SampleOptions, StableDiffusion};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::time::Instant;

/// What is compared is the same to the bit, or wrong.
const EXACT: f64 = 0.0;
/// Rows of each batch of the erasure: together more than a GPU takes in one share.
const ROWS: usize = 40;

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("demo: pictures, two devices", "5 x 2 prompts, 4 steps", EXACT, pictures),
        Check::new("demo: erasure, two devices", "40 + 40 latents, 2 steps", EXACT, erasure),
    ]
}

/// The demo there, and once more on another opening of the device.
fn twice(device: &Device) -> Result<StableDiffusion> {
    let mut model = demo_on(device, Precision::F32)?;
    model.copies.push(demo_on(&again(device)?, Precision::F32)?);
    Ok(model)
}

/// Compares what one device gives with what two do, and times the two.
fn compare<T>(
    device: &Device,
    f: impl Fn(&StableDiffusion) -> Result<T>,
    mut check: impl FnMut(&mut Found, T, T) -> Result<()>,
) -> Result<Found> {
    let one = f(&demo_on(device, Precision::F32)?)?;
    let model = twice(device)?;
    let began = Instant::now();
    let two = f(&model)?;
    let mut found = Found { forward_ms: Some(began.elapsed().as_secs_f64() * 1e3), ..Found::default() };
    check(&mut found, one, two)?;
    Ok(found)
}

fn same(found: &mut Found, what: &str, one: &Tensor, two: &Tensor) -> Result<()> {
    larger(&mut found.forward, error(two, one)?);
    if !same_bytes(one, two)? {
        found.problems.push(format!("{what} has other bytes"));
    }
    Ok(())
}

fn pictures(device: &Device) -> Result<Found> {
    let draw = |model: &StableDiffusion| {
        let options = SampleOptions { sampler: Sampler::Ddim, steps: 4, guidance_scale: 5.0, eta: 0.0, size: None };
        let batch = |replica: &Replica<'_>, i: usize| {
            let seeds = [2 * i as u64, 2 * i as u64 + 1];
            let pixels = replica.pixels(&options, &["a red star", "three blue rings"], &["", ""], &seeds)?;
            across(&pixels, &Device::Cpu)
        };
        let mut all = Vec::new();
        model.replicas()?.deal(5, batch, |_, pixels| {
            all.push(pixels);
            Ok(())
        })?;
        Ok(Tensor::cat(&all, 0)?)
    };
    compare(device, draw, |found, one, two| same(found, "a picture", &one, &two))
}

fn erasure(device: &Device) -> Result<Found> {
    let erase = |model: &StableDiffusion| {
        let concept = Concept::resolve("star", None)?;
        let mut settings = Settings::preset("balanced")?;
        (settings.data.forget, settings.data.retain, settings.data.steps) = (ROWS, ROWS, 1);
        (settings.forget_batch, settings.retain_batch) = (ROWS, ROWS);
        (settings.score_batches, settings.repair_steps, settings.other_words) = (1, 2, 0);
        let data = Data::sample(model, &concept, &settings, 0, &mut Silent)?;
        let plan = erase::plan(model, &settings, Default::default())?;
        erase::scissorhands(model, &concept, &data, &settings, 0, plan, &mut Silent)
    };
    compare(device, erase, |found, one: Outcome, two: Outcome| {
        for (name, tensor) in &one.changed {
            let other = two.changed.get(name).ok_or_else(|| Error::Numeric(format!("{name} was not changed")))?;
            same(found, name, tensor, other)?;
        }
        let losses = |outcome: &Outcome| outcome.losses.iter().map(|step| step.retain.to_bits()).collect::<Vec<_>>();
        if losses(&one) != losses(&two) {
            found.problems.push("the losses are others".into());
        }
        Ok(())
    })
}
