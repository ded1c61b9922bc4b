//! Which models can be erased from on this machine, from their configs alone.

use crate::Result;
use crate::checkpoint::Precision;
use crate::erase::Settings;
use crate::erase::memory::{Budget, Need};
use crate::nn::ParamStore;
use crate::sd::{Unet, UnetConfig};
use serde::Serialize;
use serde_json::{Value, json};

/// A family of models: name, the UNet's config, parameters of the text encoders and the VAE.
struct Family {
    name: &'static str,
    unet: Value,
    /// Parameters beside the UNet: transformers' and diffusers' `num_parameters()`.
    others: u64,
}

/// What an erasure with one precision takes.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// Bytes at full speed.
    pub fastest_bytes: u64,
    /// Bytes with all that saves memory.
    pub least_bytes: u64,
    /// Whether it can run within the memory that the program plans with.
    pub fits: bool,
}

/// What an erasure from a model takes.
#[derive(Debug, Serialize)]
pub struct Fit {
    /// The models.
    pub name: &'static str,
    /// Side of its pictures, in pixels.
    pub pixels: usize,
    /// Parameters of all its networks.
    pub parameters: u64,
    /// With all weights in f32.
    pub f32: Memory,
    /// With frozen matrices in f16 (`--dtype f16`).
    pub f16: Memory,
    /// With frozen matrices in bf16 (`--dtype bf16`).
    pub bf16: Memory,
}

/// CLIP ViT-L/14's text encoder.
const VIT_L: u64 = 123_060_480;
/// OpenCLIP ViT-H/14's (23 layers).
const VIT_H: u64 = 340_387_840;
/// OpenCLIP ViT-bigG/14's, with its projection.
const VIT_G: u64 = 694_659_840;
/// The VAE.
const VAE: u64 = 83_653_863;

/// The UNet's configs are those of the Hub's `unet/config.json`.
fn families() -> [Family; 3] {
    let with = |changes: Value| {
        let mut config = json!({
            "in_channels": 4, "out_channels": 4, "sample_size": 64, "layers_per_block": 2, "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    };
    let sd2 = json!({ "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true });
    let xl = json!({
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": true,
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    });
    [
        Family { name: "Stable Diffusion 1.4, 1.5", unet: with(json!({})), others: VIT_L + VAE },
        Family { name: "Stable Diffusion 2.1", unet: with(sd2), others: VIT_H + VAE },
        Family { name: "SDXL base", unet: with(xl), others: VIT_L + VIT_G + VAE },
    ]
}

/// What the default erasure takes for each family that this program knows, and whether it fits in `limit` bytes (of a GPU's memory
/// if `gpu`).
///
/// # Errors
/// If the default settings make no sense.
pub(super) fn fits(limit: u64, gpu: bool) -> Result<Vec<Fit>> {
    let settings = Settings::preset("balanced")?;
    Ok(families().iter().filter_map(|family| fit(family, &settings, limit, gpu).ok()).collect())
}

fn fit(family: &Family, settings: &Settings, limit: u64, gpu: bool) -> Result<Fit> {
    let config = UnetConfig::from_json(&family.unet.to_string())?;
    let recorder = ParamStore::recorder();
    Unet::new(&config, &recorder)?;
    let shapes = recorder.recorded();
    let sizes = || shapes.iter().map(|(name, shape)| (name, shape, shape.iter().product::<usize>() as u64));
    let count = |part: &dyn Fn(&str) -> bool| sizes().filter(|(name, ..)| part(name)).map(|(.., n)| n).sum::<u64>();
    let scope =
        (count(&|name| settings.score_scope.contains(name)), count(&|name| settings.train_scope.contains(name)));
    let halved = |name: &str, shape: &[usize]| Precision::Bf16.halves(shape) && !settings.changes(name);
    let halves: u64 = sizes().map(|(name, shape, n)| if halved(name, shape) { 2 * n } else { 4 * n }).sum();
    let side = config.sample_size.unwrap_or(64);
    let memory = |weights: u64| {
        let need = Need::of(weights, &config, settings, scope, (side, side), gpu);
        let (fastest_bytes, least_bytes) = need.range();
        Memory { fastest_bytes, least_bytes, fits: need.within(Budget { limit: Some(limit), gpu: None }).is_ok() }
    };
    let unet = count(&|_| true);
    let beside = if gpu { 0 } else { family.others }; // they leave a GPU while weights are trained
    let half = memory(halves + 2 * beside);
    Ok(Fit {
        name: family.name,
        pixels: 8 * side,
        parameters: unet + family.others,
        f32: memory(4 * (unet + beside)),
        f16: half.clone(),
        bf16: half,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_real_models() {
        let fits = fits(9 << 30, false).unwrap();
        let known = [
            ("Stable Diffusion 1.4, 1.5", 859_520_964 + VIT_L + VAE),
            ("Stable Diffusion 2.1", 865_910_724 + VIT_H + VAE),
            ("SDXL base", 2_567_463_684 + VIT_L + VIT_G + VAE),
        ];
        assert!(fits.len() >= 2, "{fits:?}");
        for (fit, (name, parameters)) in fits.iter().zip(known) {
            assert_eq!((fit.name, fit.parameters), (name, parameters));
            assert!(
                fit.f32.least_bytes < fit.f32.fastest_bytes && fit.bf16.least_bytes < fit.f32.least_bytes,
                "{fit:?}"
            );
            assert_eq!(fit.f32.fits, fit.f32.least_bytes <= 9 << 30, "{fit:?}");
        }
        // a GPU takes more rows together, and less where memory is short: text encoder and VAE leave it
        let on_gpu = super::fits(9 << 30, true).unwrap();
        assert!(on_gpu[0].f32.fastest_bytes > fits[0].f32.fastest_bytes, "{on_gpu:?}");
        assert!(on_gpu[0].f32.least_bytes < fits[0].f32.least_bytes, "{on_gpu:?}");
        // README's measured figure for a job of this size, about
        assert!((5 << 30..12 << 30).contains(&fits[0].f32.least_bytes), "{fits:?}");
    }
}
