//! The noise schedule: how much of the picture and of the noise there is at each timestep.

use super::scheduler_config::{PredictionType, SchedulerConfig, TimestepSpacing};
use crate::{Error, Result};
use candle_core::Tensor;

/// Tables over the training timesteps.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// `abar_t`, in f32 as diffusers keeps it.
    pub alphas_cumprod: Vec<f32>,
    /// What it was made from.
    pub config: SchedulerConfig,
}

impl Schedule {
    /// Betas in f32 and their cumulative product, as diffusers computes them.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        let root = |beta: f64| if config.beta_schedule == "scaled_linear" { beta.sqrt() as f32 } else { beta as f32 };
        let betas = linspace(root(config.beta_start), root(config.beta_end), n);
        let betas = betas.into_iter().map(|b| if config.beta_schedule == "scaled_linear" { b * b } else { b });
        let mut product = 1f64; // torch's cumprod of floats accumulates in f64 on the CPU
        let alphas_cumprod = betas.map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        });
        Ok(Self { alphas_cumprod: alphas_cumprod.collect(), config: config.clone() })
    }

    /// `abar_t` in f64.
    pub fn abar(&self, t: usize) -> f64 {
        f64::from(self.alphas_cumprod[t.min(self.alphas_cumprod.len() - 1)])
    }

    /// `sigma_t = sqrt((1 - abar_t) / abar_t)`, between timesteps by linear interpolation.
    pub fn sigma(&self, t: f64) -> f64 {
        let at = |i: usize| ((1.0 - self.abar(i)) / self.abar(i)).sqrt();
        let low = t.floor().max(0.0);
        let (a, b) = (at(low as usize), at(low as usize + 1));
        a + (b - a) * (t - low)
    }

    fn rows(&self, t: &[usize], like: &Tensor, f: impl Fn(f32) -> f32) -> Result<Tensor> {
        let last = self.alphas_cumprod.len() - 1;
        let values = t.iter().map(|t| self.alphas_cumprod.get(*t).map(|a| f(*a)));
        let values: Option<Vec<f32>> = values.collect();
        let values = values.ok_or_else(|| Error::usage(format!("timesteps must be at most {last}")))?;
        Ok(Tensor::from_vec(values, (t.len(), 1, 1, 1), like.device())?)
    }

    /// `sqrt(abar) x0 + sqrt(1 - abar) noise`, a timestep for each row.
    ///
    /// # Shape
    /// `x0` and `noise` `(B, C, h, w)`, `B` timesteps -> `(B, C, h, w)`.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, t: &[usize]) -> Result<Tensor> {
        let signal = x0.broadcast_mul(&self.rows(t, x0, f32::sqrt)?)?;
        Ok((signal + noise.broadcast_mul(&self.rows(t, x0, |a| (1.0 - a).sqrt())?)?)?)
    }

    /// `v = sqrt(abar) noise - sqrt(1 - abar) x0`; shapes as [`Schedule::add_noise`].
    pub fn velocity(&self, x0: &Tensor, noise: &Tensor, t: &[usize]) -> Result<Tensor> {
        let signal = noise.broadcast_mul(&self.rows(t, x0, f32::sqrt)?)?;
        Ok((signal - x0.broadcast_mul(&self.rows(t, x0, |a| (1.0 - a).sqrt())?)?)?)
    }

    /// What the model should predict: noise or v.
    pub fn target(&self, x0: &Tensor, noise: &Tensor, t: &[usize]) -> Result<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.clone()),
            PredictionType::VPrediction => self.velocity(x0, noise, t),
        }
    }

    /// Splits a model output at `x = alpha x0 + sigma eps` (with `alpha^2 + sigma^2 = 1`) into `(x0, eps)`.
    pub fn split(&self, x: &Tensor, output: &Tensor, alpha: f64, sigma: f64) -> Result<(Tensor, Tensor)> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok((((x - (output * sigma)?)? / alpha)?, output.clone())),
            PredictionType::VPrediction => {
                let x0 = ((x * alpha)? - (output * sigma)?)?;
                Ok((x0, ((output * alpha)? + (x * sigma)?)?))
            }
        }
    }

    /// The training timesteps that `steps` sampling steps visit, descending, before a sampler's own additions.
    ///
    /// # Errors
    /// If `steps` is 0 or more than the training timesteps.
    pub(super) fn spaced(&self, steps: usize, default: TimestepSpacing, extra: usize) -> Result<Vec<f64>> {
        let n = self.config.num_train_timesteps;
        if steps == 0 || steps + extra > n {
            return Err(Error::usage(format!("{steps} denoising steps: there may be 1 to {}", n - extra)));
        }
        let count = steps + extra; // DPM-Solver++ spaces one step more and drops the last
        let mut t: Vec<f64> = match self.config.timestep_spacing.unwrap_or(default) {
            TimestepSpacing::Leading => {
                (0..count).rev().map(|i| (i * (n / count) + self.config.steps_offset) as f64).collect()
            }
            TimestepSpacing::Linspace => {
                let step = if count > 1 { (n - 1) as f64 / (count - 1) as f64 } else { 0.0 };
                (0..count).rev().map(|i| i as f64 * step).collect()
            }
            TimestepSpacing::Trailing => {
                let ratio = n as f64 / steps as f64;
                return Ok((0..steps).map(|i| (n as f64 - i as f64 * ratio).round_ties_even() - 1.0).collect());
            }
        };
        t.truncate(steps);
        t.iter_mut().for_each(|t| *t = t.min((n - 1) as f64));
        Ok(t)
    }
}

/// As `torch.linspace` in f32: from both ends towards the middle.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sd1_values() {
        let config = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}"#;
        let schedule = Schedule::new(&SchedulerConfig::from_json(config).unwrap()).unwrap();
        for (t, abar) in [(0, 0.99915), (500, 0.276333), (981, 0.0057755), (999, 0.0046601)] {
            assert!((schedule.abar(t) - abar).abs() < 2e-6 * (1.0 + abar), "{t}: {}", schedule.abar(t));
        }
        assert!((schedule.sigma(999.0) - 14.6146).abs() < 1e-3);
        assert!(schedule.spaced(0, TimestepSpacing::Leading, 0).is_err());
        assert!(schedule.spaced(1001, TimestepSpacing::Leading, 0).is_err());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [("rescale_betas_zero_snr", "true"), ("beta_schedule", "\"squaredcos_cap_v2\"")] {
            let config = format!(r#"{{"_class_name": "DDIMScheduler", "{key}": {value}}}"#);
            assert!(SchedulerConfig::from_json(&config).unwrap_err().to_string().contains(key));
        }
    }
}
