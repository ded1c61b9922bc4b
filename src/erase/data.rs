//! Forget and retain data: latents that the model itself makes from prompts. They are never decoded here.

use super::settings::{DataSettings, Settings};
use crate::concept::Concept;
use crate::diffusion::Generator;
use crate::nn::across;
use crate::progress::{Event, Progress};
use crate::sd::{Replica, SampleOptions, StableDiffusion};
use crate::{Error, Result};
use candle_core::Tensor;

/// Latents asked for at a time, at least.
const SAMPLING_BATCH: usize = 32;

/// Latents with the prompt that each was made from.
#[derive(Clone)]
pub struct Latents {
    /// The prompts.
    pub prompts: Vec<String>,
    /// For each latent, the index of its prompt.
    pub of_prompt: Vec<usize>,
    /// `(N, C, h, w)`, in the UNet's scale.
    pub latents: Tensor,
    /// Seed of the first latent; the i-th has this + i.
    pub first_seed: u64,
}

/// What scoring and repair are fed with.
#[derive(Clone)]
pub struct Data {
    /// Pictures of the concept; `anchors[i]` of the concept belongs to prompt i.
    pub forget: Latents,
    /// Pictures of everything else.
    pub retain: Latents,
}

impl Latents {
    /// Samples `count` latents, prompt by prompt in turn; the i-th from seed `seed + i`.
    pub fn sample(
        model: &StableDiffusion,
        prompts: &[String],
        count: usize,
        settings: &DataSettings,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::usage("there are no prompts to make data from"));
        }
        let options = SampleOptions {
            sampler: settings.sampler,
            steps: settings.steps,
            guidance_scale: settings.guidance_scale,
            eta: 0.0,
            size: None,
        };
        let of_prompt: Vec<usize> = (0..count).map(|i| i % prompts.len()).collect();
        let mut parts = Vec::new();
        let size = model.together().max(SAMPLING_BATCH);
        let batch = |replica: &Replica<'_>, i: usize| {
            let rows = i * size..((i + 1) * size).min(count);
            let texts: Vec<&str> = rows.clone().map(|i| prompts[of_prompt[i]].as_str()).collect();
            let seeds: Vec<u64> = rows.map(|i| seed.wrapping_add(i as u64)).collect();
            let latents = replica.latents(&options, &texts, &vec![""; texts.len()], &seeds)?;
            across(&latents, model.device())
        };
        model.replicas()?.deal(count.div_ceil(size), batch, |_, latents| {
            (0..latents.dim(0)?).for_each(|_| progress.event(Event::Step { loss: None }));
            parts.push(latents);
            Ok(())
        })?;
        Ok(Self { prompts: prompts.to_vec(), of_prompt, latents: Tensor::cat(&parts, 0)?, first_seed: seed })
    }

    /// Number of latents.
    pub fn len(&self) -> usize {
        self.of_prompt.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of_prompt.is_empty()
    }
}

impl Data {
    /// Samples both sets with the model as it is.
    pub fn sample(
        model: &StableDiffusion,
        concept: &Concept,
        settings: &Settings,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let forget = Self::sample_forget(model, concept, settings, seed, progress)?;
        Ok(Self { forget, retain: Self::sample_retain(model, concept, settings, seed, progress)? })
    }

    /// Samples pictures of the concept.
    pub fn sample_forget(
        model: &StableDiffusion,
        concept: &Concept,
        settings: &Settings,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        let d = &settings.data;
        progress.event(Event::Stage { name: "sampling forget latents", steps: d.forget });
        Latents::sample(model, &concept.forget, d.forget, d, seed, progress)
    }

    /// Samples pictures of everything else.
    pub fn sample_retain(
        model: &StableDiffusion,
        concept: &Concept,
        settings: &Settings,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<Latents> {
        let d = &settings.data;
        let mut prompts = concept.retain.clone();
        // the order of the file is by kind; a shuffle makes any number of latents a fair sample of it
        Generator::new(seed).shuffle(&mut prompts);
        if d.one_retain_caption {
            prompts = vec![concept.anchors[0].clone()];
        }
        progress.event(Event::Stage { name: "sampling retain latents", steps: d.retain });
        Latents::sample(model, &prompts, d.retain, d, seed.wrapping_add(1 << 20), progress)
    }
}
