//! Linear multistep of order 4 over the noise level (Katherine Crowson's LMS), as diffusers' `LMSDiscreteScheduler`.

use super::{Run, Schedule, euler};
use crate::Result;
use candle_core::Tensor;

const ORDER: usize = 4;

/// As Euler's.
pub fn timesteps(schedule: &Schedule, steps: usize) -> Result<Vec<f32>> {
    euler::timesteps(schedule, steps)
}

/// Integrates the polynomial through the last derivatives from one noise level to the next.
pub fn lms(run: &mut Run<'_>, x: Tensor) -> Result<Tensor> {
    let ts = timesteps(run.schedule, run.steps)?;
    let sigmas = euler::sigmas(run.schedule, &ts);
    let mut x = (x * euler::start_scale(run.schedule, &sigmas))?;
    let mut history: Vec<Tensor> = Vec::new(); // newest first
    for (i, t) in ts.iter().enumerate() {
        history.insert(0, euler::derivative(run, &x, *t, sigmas[i])?);
        history.truncate(ORDER);
        for (k, d) in history.iter().enumerate() {
            x = (x + (d * coefficient(&sigmas, i, k, history.len()))?)?;
        }
    }
    Ok(x)
}

/// The integral of the k-th Lagrange polynomial over `[sigma_i, sigma_{i+1}]`. It is a cubic at most: two Gauss-Legendre
/// points are exact.
fn coefficient(sigmas: &[f64], i: usize, k: usize, order: usize) -> f64 {
    let basis = |tau: f64| {
        let others = (0..order).filter(|j| *j != k);
        others.map(|j| (tau - sigmas[i - j]) / (sigmas[i - k] - sigmas[i - j])).product::<f64>()
    };
    let (middle, half) = ((sigmas[i + 1] + sigmas[i]) / 2.0, (sigmas[i + 1] - sigmas[i]) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (basis(middle - offset) + basis(middle + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_of_one_step_sum_to_its_length() {
        let sigmas = [14.6, 9.0, 5.0, 2.0, 0.5, 0.0];
        for i in 0..5 {
            let order = (i + 1).min(ORDER);
            let sum: f64 = (0..order).map(|k| coefficient(&sigmas, i, k, order)).sum();
            assert!((sum - (sigmas[i + 1] - sigmas[i])).abs() < 1e-12);
        }
        // order 2 at equal distances is Adams-Bashforth: 3/2 and -1/2
        assert!((coefficient(&[3.0, 2.0, 1.0], 1, 0, 2) + 1.5).abs() < 1e-12);
    }
}
