//! Euler steps (Karras et al. 2022, algorithm 2 without churn), as diffusers' `EulerDiscreteScheduler`.

use super::{PredictionType, Run, Schedule, TimestepSpacing};
use crate::Result;
use candle_core::Tensor;

/// Descending timesteps, by default `linspace`, which gives fractions.
pub fn timesteps(schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    Ok(schedule.spaced(steps, TimestepSpacing::Linspace, 0)?.into_iter().map(|t| t as f32).collect())
}

/// The noise levels at `timesteps`, then 0.
pub(super) fn sigmas(schedule: &Schedule, timesteps: &[f32]) -> Vec<f64> {
    timesteps.iter().map(|t| schedule.sigma(f64::from(*t))).chain([0.0]).collect()
}

/// What unit-normal noise is multiplied by at the start.
pub(super) fn start_scale(schedule: &Schedule, sigmas: &[f64]) -> f64 {
    let largest = sigmas.iter().copied().fold(0.0, f64::max);
    match schedule.config.timestep_spacing {
        Some(TimestepSpacing::Leading) => (largest * largest + 1.0).sqrt(),
        _ => largest,
    }
}

/// `dx/dsigma` at `x = x0 + sigma eps`, from a model that is fed `x / sqrt(sigma^2 + 1)`.
pub(super) fn derivative(run: &mut Run<'_>, x: &Tensor, t: f32, sigma: f64) -> Result<Tensor> {
    let square = sigma * sigma + 1.0;
    let output = run.predict(&(x / square.sqrt())?, t)?;
    match run.schedule.config.prediction_type {
        PredictionType::Epsilon => Ok(output),
        PredictionType::VPrediction => {
            let x0 = ((x / square)? - (output * (sigma / square.sqrt()))?)?;
            Ok(((x - x0)? / sigma)?)
        }
    }
}

/// First-order steps from one noise level to the next.
pub fn euler(run: &mut Run<'_>, x: Tensor) -> Result<Tensor> {
    let ts = timesteps(run.schedule, run.steps)?;
    let sigmas = sigmas(run.schedule, &ts);
    let mut x = (x * start_scale(run.schedule, &sigmas))?;
    for (i, t) in ts.iter().enumerate() {
        let d = derivative(run, &x, *t, sigmas[i])?;
        x = (x + (d * (sigmas[i + 1] - sigmas[i]))?)?;
    }
    Ok(x)
}
