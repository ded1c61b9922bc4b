//! `scheduler/scheduler_config.json` of a diffusers folder.

use super::Sampler;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// What the UNet predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `v = sqrt(abar) eps - sqrt(1 - abar) x0` (Salimans & Ho 2022).
    VPrediction,
}

/// Which of the training timesteps are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `1000 / steps`, plus `steps_offset`.
    Leading,
    /// Evenly from 0 to 999.
    Linspace,
    /// Multiples of `1000 / steps` counted from the end.
    Trailing,
}

/// The noise schedule and defaults, with diffusers' own defaults for what the file leaves out.
#[derive(Debug, Clone, Deserialize)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    /// Timesteps in training.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// First beta.
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    /// Last beta.
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    /// `linear` or `scaled_linear`.
    #[serde(default = "linear")]
    pub beta_schedule: String,
    /// What the UNet predicts.
    #[serde(default = "epsilon")]
    pub prediction_type: PredictionType,
    /// Absent: each sampler's own default.
    #[serde(default)]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps under `leading`.
    #[serde(default)]
    pub steps_offset: usize,
    /// The step after the last has no noise at all (DDIM's default), rather than that of timestep 0.
    #[serde(default)]
    pub set_alpha_to_one: Option<bool>,
}

fn thousand() -> usize {
    1000
}
fn beta_start() -> f64 {
    1e-4
}
fn beta_end() -> f64 {
    0.02
}
fn linear() -> String {
    "linear".into()
}
fn epsilon() -> PredictionType {
    PredictionType::Epsilon
}

/// Options that change the mathematics, with the values under which they do not.
const FIXED: [(&str, &[&str]); 9] = [
    ("trained_betas", &["null"]),
    ("rescale_betas_zero_snr", &["false"]),
    ("thresholding", &["false"]),
    ("use_karras_sigmas", &["false", "null"]),
    ("use_exponential_sigmas", &["false", "null"]),
    ("use_beta_sigmas", &["false", "null"]),
    ("use_flow_sigmas", &["false", "null"]),
    ("final_sigmas_type", &["\"zero\""]),
    ("interpolation_type", &["\"linear\""]),
];

impl SchedulerConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// If it is not JSON, or asks for something that this program does not do; the message names the key.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::usage(format!("not valid JSON: {e}")))?;
        for (key, known) in FIXED {
            if let Some(found) = value.get(key).map(Value::to_string).filter(|v| !known.contains(&v.as_str())) {
                return Err(Error::usage(format!("{key} is {found}; this program supports {}", known[0])));
            }
        }
        let config: Self = serde_json::from_value(value).map_err(Error::usage)?;
        if !["linear", "scaled_linear"].contains(&config.beta_schedule.as_str()) {
            return Err(Error::usage(format!(
                "beta_schedule is {}; this program supports linear and scaled_linear",
                config.beta_schedule
            )));
        }
        let betas = 0.0 < config.beta_start && config.beta_start <= config.beta_end && config.beta_end < 1.0;
        if !betas || !(2..=100_000).contains(&config.num_train_timesteps) {
            return Err(Error::usage("beta_start, beta_end and num_train_timesteps do not make a noise schedule"));
        }
        Ok(config)
    }

    /// The sampler that the file names; an unknown class falls back to DDIM, which suits every model of these kinds.
    pub fn sampler(&self) -> Sampler {
        match self.class_name.as_str() {
            "PNDMScheduler" => Sampler::Pndm,
            "DPMSolverMultistepScheduler" => Sampler::DpmSolverPlusPlus2M,
            "EulerDiscreteScheduler" => Sampler::Euler,
            "LMSDiscreteScheduler" => Sampler::Lms,
            _ => Sampler::Ddim,
        }
    }
}
