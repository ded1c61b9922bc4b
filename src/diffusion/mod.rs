//! Noise schedule, samplers, noise. Knows nothing of networks: a predictor is a closure.

mod ddim;
mod dpmpp_2m;
mod euler;
mod lms;
mod noise;
mod pndm;
mod schedule;
mod scheduler_config;

pub use noise::Generator;
pub use schedule::Schedule;
pub use scheduler_config::{PredictionType, SchedulerConfig, TimestepSpacing};

use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::Tensor;

/// A sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// DDIM.
    Ddim,
    /// PNDM (PLMS).
    Pndm,
    /// DPM-Solver++ 2M.
    DpmSolverPlusPlus2M,
    /// Euler.
    Euler,
    /// Linear multistep.
    Lms,
}

/// The samplers by the names that users write.
pub const SAMPLERS: [(&str, Sampler); 5] = [
    ("ddim", Sampler::Ddim),
    ("pndm", Sampler::Pndm),
    ("dpmpp_2m", Sampler::DpmSolverPlusPlus2M),
    ("euler", Sampler::Euler),
    ("lms", Sampler::Lms),
];

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = SAMPLERS.iter().find(|(_, sampler)| sampler == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl std::str::FromStr for Sampler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = SAMPLERS.iter().find(|(name, _)| *name == text);
        found.map(|(_, sampler)| *sampler).ok_or_else(|| {
            let known: Vec<_> = SAMPLERS.iter().map(|(name, _)| *name).collect();
            Error::usage(format!("there is no scheduler {text:?}; choose {}", known.join(", ")))
        })
    }
}

/// Draws noise of a shape.
pub type Noise<'a> = dyn FnMut(&[usize]) -> Result<Tensor> + 'a;
/// The model's (guided) output for `x` at a timestep, in its own parametrisation.
pub type Predict<'a> = dyn FnMut(&Tensor, f32) -> Result<Tensor> + 'a;

/// What every sampler is given.
pub struct Run<'a> {
    schedule: &'a Schedule,
    steps: usize,
    eta: f64,
    noise: &'a mut Noise<'a>,
    predict: &'a mut Predict<'a>,
}

impl Run<'_> {
    fn predict(&mut self, x: &Tensor, t: f32) -> Result<Tensor> {
        check_interrupted()?;
        Ok((self.predict)(x, t)?.detach())
    }

    fn noise(&mut self, shape: &[usize]) -> Result<Tensor> {
        (self.noise)(shape)
    }
}

/// The timesteps that a sampler visits, in order.
///
/// # Errors
/// If `steps` is 0 or more than the training timesteps.
pub fn timesteps(sampler: Sampler, schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    match sampler {
        Sampler::Ddim => ddim::timesteps(schedule, steps),
        Sampler::Pndm => pndm::timesteps(schedule, steps),
        Sampler::DpmSolverPlusPlus2M => dpmpp_2m::timesteps(schedule, steps),
        Sampler::Euler => euler::timesteps(schedule, steps),
        Sampler::Lms => lms::timesteps(schedule, steps),
    }
}

/// Denoises unit-normal `latent` `(B, C, h, w)`; only DDIM with `eta` above 0 draws noise on the way.
///
/// # Errors
/// If `steps` or `eta` makes no sense, the user interrupts, or `predict` fails.
pub fn sample<'a>(
    sampler: Sampler,
    schedule: &'a Schedule,
    steps: usize,
    eta: f64,
    latent: Tensor,
    noise: &'a mut Noise<'a>,
    predict: &'a mut Predict<'a>,
) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::usage(format!("--eta {eta} must lie between 0 and 1")));
    }
    if eta > 0.0 && sampler != Sampler::Ddim {
        return Err(Error::usage(format!("--eta goes with --scheduler ddim, not with {sampler}")));
    }
    timesteps(sampler, schedule, steps)?; // refuses step counts that make no sense
    let mut run = Run { schedule, steps, eta, noise, predict };
    match sampler {
        Sampler::Ddim => ddim::ddim(&mut run, latent),
        Sampler::Pndm => pndm::pndm(&mut run, latent),
        Sampler::DpmSolverPlusPlus2M => dpmpp_2m::dpmpp_2m(&mut run, latent),
        Sampler::Euler => euler::euler(&mut run, latent),
        Sampler::Lms => lms::lms(&mut run, latent),
    }
}

/// Classifier-free guidance (Ho & Salimans 2022): `uncond + scale (cond - uncond)`.
pub fn guide(uncond: &Tensor, cond: &Tensor, guidance_scale: f64) -> Result<Tensor> {
    Ok((uncond + ((cond - uncond)? * guidance_scale)?)?)
}
