//! DDIM (Song, Meng & Ermon 2021), as diffusers' `DDIMScheduler`.

use super::{Run, Schedule, TimestepSpacing};
use crate::Result;
use candle_core::Tensor;

/// Descending timesteps, `leading` by default.
pub fn timesteps(schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    let t = schedule.spaced(steps, TimestepSpacing::Leading, 0)?;
    Ok(t.into_iter().map(|t| t.round_ties_even() as f32).collect())
}

/// Equation 12 of the paper; `eta` 0 is deterministic, 1 is DDPM.
pub fn ddim(run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
    let s = run.schedule;
    let stride = s.config.num_train_timesteps / run.steps;
    let last = if s.config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { s.abar(0) };
    for t in timesteps(s, run.steps)? {
        let output = run.predict(&x, t)?;
        let t = t as usize;
        let abar = s.abar(t);
        let previous = t.checked_sub(stride).map_or(last, |t| s.abar(t));
        let (x0, eps) = s.split(&x, &output, abar.sqrt(), (1.0 - abar).sqrt())?;
        let variance = (1.0 - previous) / (1.0 - abar) * (1.0 - abar / previous);
        let deviation = run.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - previous - deviation * deviation).max(0.0).sqrt();
        x = ((x0 * previous.sqrt())? + (eps * direction)?)?;
        if run.eta > 0.0 {
            x = (&x + (run.noise(x.dims())? * deviation)?)?;
        }
    }
    Ok(x)
}
