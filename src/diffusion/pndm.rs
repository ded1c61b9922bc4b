//! PLMS, the linear multistep part of PNDM (Liu et al. 2022), as diffusers' `PNDMScheduler` with `skip_prk_steps`.

use super::{Run, Schedule, TimestepSpacing};
use crate::Result;
use crate::diffusion::PredictionType;
use candle_core::Tensor;

/// Descending timesteps, `leading` by default; the second is visited twice, so there is one more than `steps`.
pub fn timesteps(schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    let t = schedule.spaced(steps, TimestepSpacing::Leading, 0)?;
    let mut t: Vec<f32> = t.into_iter().map(|t| t.round_ties_even() as f32).collect();
    if t.len() > 1 {
        t.insert(1, t[1]);
    }
    Ok(t)
}

/// Adams-Bashforth of up to fourth order over the predicted noise; the first step is improved by a second look.
pub fn pndm(run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
    let stride = (run.schedule.config.num_train_timesteps / run.steps) as i64;
    let mut history: Vec<Tensor> = Vec::new();
    let mut first = None;
    for (call, t) in timesteps(run.schedule, run.steps)?.into_iter().enumerate() {
        let output = run.predict(&x, t)?;
        let (mut from, mut to) = (t as i64, t as i64 - stride);
        if call == 1 {
            (from, to) = (t as i64 + stride, t as i64);
        } else {
            history.push(output.clone());
            if history.len() > 4 {
                history.remove(0);
            }
        }
        let n = history.len();
        let mixed = match (call, n) {
            (0, _) => {
                first = Some(x.clone());
                output
            }
            (1, _) => {
                x = first.take().unwrap_or(x);
                ((output + &history[0])? * 0.5)?
            }
            (_, 2) => mix(&history, &[3.0 / 2.0, -1.0 / 2.0])?,
            (_, 3) => mix(&history, &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0])?,
            _ => mix(&history, &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0])?,
        };
        x = transfer(run.schedule, &x, from, to, &mixed)?;
    }
    Ok(x)
}

/// Weighted sum, newest first.
fn mix(history: &[Tensor], weights: &[f64]) -> Result<Tensor> {
    let mut newest = history.iter().rev().zip(weights).map(|(e, w)| e * *w);
    let mut sum = match newest.next() {
        Some(e) => e?,
        None => return Err(crate::Error::Numeric("PLMS has no history".into())),
    };
    for e in newest {
        sum = (sum + e?)?;
    }
    Ok(sum)
}

/// Equation 9 of the paper.
fn transfer(s: &Schedule, x: &Tensor, from: i64, to: i64, output: &Tensor) -> Result<Tensor> {
    let last = if s.config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { s.abar(0) };
    let at = |t: i64| if t >= 0 { s.abar(t as usize) } else { last };
    let (a, p) = (at(from), at(to));
    let eps = match s.config.prediction_type {
        PredictionType::Epsilon => output.clone(),
        PredictionType::VPrediction => ((output * a.sqrt())? + (x * (1.0 - a).sqrt())?)?,
    };
    let denominator = a * (1.0 - p).sqrt() + (a * (1.0 - a) * p).sqrt();
    Ok(((x * (p / a).sqrt())? - (eps * ((p - a) / denominator))?)?)
}
