//! DPM-Solver++ (2M) (Lu et al. 2022), as diffusers' `DPMSolverMultistepScheduler` (order 2, midpoint, final sigma 0).

use super::{Run, Schedule, TimestepSpacing};
use crate::Result;
use candle_core::Tensor;

/// Descending timesteps, `linspace` by default: one more than `steps` are spaced and the last is dropped.
pub fn timesteps(schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    let t = schedule.spaced(steps, TimestepSpacing::Linspace, 1)?;
    Ok(t.into_iter().map(|t| t.round_ties_even() as f32).collect())
}

/// Algorithm 2 of the paper in the data prediction; the last step is of first order and gives x0 itself.
pub fn dpmpp_2m(run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
    let s = run.schedule;
    let ts = timesteps(s, run.steps)?;
    let sigmas: Vec<f64> = ts.iter().map(|t| s.sigma(f64::from(*t))).chain([0.0]).collect();
    let alpha = |sigma: f64| 1.0 / (1.0 + sigma * sigma).sqrt();
    let mut previous: Option<(Tensor, f64)> = None; // x0 and h of the step before
    for (i, t) in ts.iter().enumerate() {
        let output = run.predict(&x, *t)?;
        let (from, to) = (sigmas[i], sigmas[i + 1]);
        let (a, b) = (alpha(from), alpha(to));
        let (x0, _) = s.split(&x, &output, a, from * a)?;
        let ratio = to / from; // = exp(-h), as lambda = -ln sigma here
        let h = -ratio.ln();
        let mut next = ((&x * (to * b / (from * a)))? - (&x0 * (b * (ratio - 1.0)))?)?;
        if let Some((x0_before, h_before)) = previous.filter(|_| i + 1 < ts.len()) {
            let d = ((&x0 - x0_before)? * (h / h_before))?;
            next = (next - (d * (0.5 * b * (ratio - 1.0)))?)?;
        }
        previous = Some((x0, h));
        x = next;
    }
    Ok(x)
}
