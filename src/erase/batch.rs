//! Noisy batches: which latents a step sees, at which timestep, under which noise.

use super::data::Latents;
use super::gradient::narrow;
use super::settings::{Batches, Timesteps};
use crate::Result;
use crate::diffusion::{Generator, Schedule};
use crate::nn::across;
use crate::sd::Conditions;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// One batch, ready for the UNet.
pub struct Batch {
    /// `(B, C, h, w)`: latents with noise.
    pub noisy: Tensor,
    /// A timestep for each row.
    pub t: Vec<f32>,
    /// What the model should predict: the noise, or v.
    pub target: Tensor,
    /// For each row, the index of its prompt.
    pub prompts: Vec<u32>,
}

impl Batch {
    /// Noises the latents `x0` `(B, C, h, w)` at `t`, with the given noise.
    pub fn new(schedule: &Schedule, x0: &Tensor, t: &[usize], noise: &Tensor, prompts: Vec<u32>) -> Result<Self> {
        Ok(Self {
            noisy: schedule.add_noise(x0, noise, t)?,
            t: t.iter().map(|t| *t as f32).collect(),
            target: schedule.target(x0, noise, t)?,
            prompts,
        })
    }

    /// The same batch there.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let (noisy, target) = (across(&self.noisy, device)?, across(&self.target, device)?);
        Ok(Self { noisy, t: self.t.clone(), target, prompts: self.prompts.clone() })
    }

    /// Some of its rows.
    pub fn rows(&self, rows: &Range<usize>) -> Result<Self> {
        Ok(Self {
            noisy: narrow(&self.noisy, rows)?,
            t: self.t[rows.clone()].to_vec(),
            target: narrow(&self.target, rows)?,
            prompts: self.prompts[rows.clone()].to_vec(),
        })
    }

    /// Of the conditions of all prompts, those of each row.
    pub fn conditions(&self, prompts: &Conditions) -> Result<Conditions> {
        prompts.select(&self.prompts)
    }
}

/// Draws batches from latents.
pub struct Loader<'a> {
    data: &'a Latents,
    schedule: &'a Schedule,
    size: usize,
    batches: Batches,
    timesteps: Timesteps,
    queue: Vec<u32>,
}

impl<'a> Loader<'a> {
    /// A loader of batches of `size` rows (fewer if there are fewer latents).
    pub fn new(data: &'a Latents, schedule: &'a Schedule, size: usize, batches: Batches, timesteps: Timesteps) -> Self {
        Self { data, schedule, size: size.min(data.len()), batches, timesteps, queue: Vec::new() }
    }

    /// The next batch: rows in turn, shuffled anew when all were seen; timestep and noise drawn from `noise`.
    pub fn next(&mut self, noise: &mut Generator) -> Result<Batch> {
        self.next_mixed(noise, None, 0.0)
    }

    /// As [`Loader::next`], with the latents (not the prompts) of a fraction of the rows taken from `others`.
    pub fn next_mixed(&mut self, noise: &mut Generator, others: Option<&Latents>, fraction: f64) -> Result<Batch> {
        let rows: Vec<u32> = match self.batches {
            Batches::Fixed => (0..self.size as u32).collect(),
            Batches::Live => (0..self.size).map(|_| self.draw(noise)).collect(),
        };
        let device = self.data.latents.device();
        let mut x0 = self.data.latents.index_select(&Tensor::new(rows.as_slice(), device)?, 0)?;
        if let Some(others) = others.filter(|others| fraction > 0.0 && !others.is_empty()) {
            let count = ((rows.len() as f64 * fraction).round() as usize).min(rows.len());
            let index: Vec<u32> = (0..count).map(|_| noise.below(others.len()) as u32).collect();
            let foreign = others.latents.index_select(&Tensor::new(index.as_slice(), device)?, 0)?;
            x0 = Tensor::cat(&[&foreign, &x0.narrow(0, count, rows.len() - count)?], 0)?;
        }
        let t: Vec<usize> = rows.iter().map(|_| self.timestep(noise)).collect();
        let eps = noise.randn_tensor(x0.dims(), device)?;
        let prompts = rows.iter().map(|row| self.data.of_prompt[*row as usize] as u32).collect();
        Batch::new(self.schedule, &x0, &t, &eps, prompts)
    }

    fn timestep(&self, noise: &mut Generator) -> usize {
        let n = self.schedule.alphas_cumprod.len();
        let draw = noise.below(n);
        match self.timesteps {
            Timesteps::Uniform => draw,
            Timesteps::Late => draw.max(noise.below(n)), // the larger of two has a density in proportion to t
        }
    }

    fn draw(&mut self, noise: &mut Generator) -> u32 {
        if self.queue.is_empty() {
            self.queue = (0..self.data.len() as u32).collect();
            noise.shuffle(&mut self.queue);
        }
        self.queue.pop().unwrap_or(0)
    }
}
