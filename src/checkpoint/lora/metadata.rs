//! What a LoRA's file says of itself: ModelSpec 1.0.1, and the least of kohya's `ss_*` by which other programs know it.

use super::super::files::ModelFiles;
use super::super::modelspec::name_of;
use super::super::single_file::{Architecture, Networks, networks};
use super::{Options, Rank, Summary};
use crate::diffusion::{PredictionType, SchedulerConfig};
use crate::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What the base is.
pub(super) struct Base {
    pub networks: Networks,
    prediction: PredictionType,
}

impl Base {
    /// Reads it from the model's configs.
    ///
    /// # Errors
    /// If one is missing or makes no sense.
    pub(super) fn of(model: &ModelFiles) -> Result<Self> {
        let rel = "scheduler/scheduler_config.json";
        let scheduler = SchedulerConfig::from_json(&String::from_utf8_lossy(&model.read(rel)?));
        let scheduler = scheduler.map_err(|e| Error::file(model.describe(rel), e))?;
        Ok(Self { networks: networks(model)?, prediction: scheduler.prediction_type })
    }

    /// Width and height of the pictures that the model was made for, in pixels.
    fn pixels(&self) -> usize {
        let latents = self.networks.unet.sample_size.unwrap_or(64);
        latents << self.networks.vae.block_out_channels.len().saturating_sub(1)
    }

    /// The `__metadata__` of a LoRA for this base; `convolutions` says whether it has some with a kernel (what kohya calls LoCon).
    pub(super) fn metadata(
        &self,
        path: &Path,
        options: &Options,
        summary: &Summary,
        convolutions: bool,
    ) -> BTreeMap<String, String> {
        let v = self.prediction == PredictionType::VPrediction;
        let architecture = self.networks.architecture;
        let spec = name_of(architecture, v);
        let version = match (architecture, v) {
            (Architecture::Sd1, false) => "sd_v1",
            (Architecture::Sd1, true) => "sd_v1_v",
            (Architecture::Sd2, false) => "sd_v2",
            (Architecture::Sd2, true) => "sd_v2_v",
            (Architecture::Sdxl, _) => "sdxl_base_v1-0",
        };
        let implementation = match architecture {
            Architecture::Sdxl => "https://github.com/Stability-AI/generative-models",
            _ => "diffusers",
        };
        let title = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let pixels = self.pixels();
        // kohya's word for layers of several ranks
        let rank = match summary.ranks() {
            (low, high) if low == high => low.to_string(),
            _ => "Dynamic".into(),
        };
        let arguments = match (convolutions, options.rank) {
            (true, Rank::Fixed(_)) => json!({ "conv_dim": rank, "conv_alpha": format!("{:.1}", summary.alpha as f64) }),
            _ => json!({}),
        };
        let mut all = BTreeMap::from(
            [
                ("format", "pt".to_string()),
                ("modelspec.sai_model_spec", "1.0.1".into()),
                ("modelspec.architecture", format!("{spec}/lora")),
                ("modelspec.implementation", implementation.into()),
                ("modelspec.title", title),
                ("modelspec.resolution", format!("{pixels}x{pixels}")),
                ("modelspec.prediction_type", if v { "v" } else { "epsilon" }.into()),
                ("ss_base_model_version", version.into()),
                ("ss_v2", if architecture == Architecture::Sd2 { "True" } else { "False" }.into()),
                ("ss_network_module", "networks.lora".into()),
                ("ss_network_dim", rank),
                ("ss_network_alpha", format!("{:.1}", summary.alpha as f64)),
                ("ss_network_args", arguments.to_string()),
                ("erase.lora_rank", options.rank.to_string()),
                ("erase.lora_strength", options.strength.to_string()),
                ("erase.lora_residual", format!("{:.3e}", summary.residual)),
            ]
            .map(|(key, value)| (key.to_string(), value)),
        );
        if !summary.not_held.is_empty() {
            let names: Vec<&str> = summary.not_held.iter().map(|p| p.parameter.as_str()).collect();
            all.insert("erase.lora_not_held".into(), json!(names).to_string());
        }
        all
    }
}
