//! `--keep-images`: the training latents as pictures. Without the flag they are never decoded.

use super::checks::model_name;
use crate::audit::{Infotext, encode_png, to_images};
use crate::checkpoint::{LoadedModel, write_file};
use crate::erase::{Data, Settings};
use crate::progress::{Event, Progress};
use crate::sd::Replica;
use crate::{Error, Result};
use std::path::Path;

/// Latents decoded at a time.
const BATCH: usize = 32;

/// Writes `images/training/forget-00000.png` and so on; `model` is the name that the pictures carry.
pub fn write(
    folder: &Path,
    loaded: &LoadedModel,
    model: &str,
    data: &Data,
    settings: &Settings,
    progress: &mut dyn Progress,
) -> Result<()> {
    let images = folder.join("images/training");
    std::fs::create_dir_all(&images).map_err(Error::io(&images))?;
    progress.event(Event::Stage { name: "decoding training latents", steps: data.forget.len() + data.retain.len() });
    let replicas = loaded.model.replicas()?;
    for (group, latents) in [("forget", &data.forget), ("retain", &data.retain)] {
        let decode = |replica: &Replica<'_>, i: usize| {
            let start = i * BATCH;
            let rows = latents.latents.narrow(0, start, BATCH.min(latents.len() - start))?;
            to_images(&replica.model.decode_latents(&rows)?)
        };
        replicas.deal(latents.len().div_ceil(BATCH), decode, |batch, decoded| {
            for (i, image) in (batch * BATCH..).zip(decoded) {
                let text = Infotext {
                    prompt: &latents.prompts[latents.of_prompt[i]],
                    negative_prompt: "",
                    steps: settings.data.steps,
                    sampler: &settings.data.sampler.to_string(),
                    guidance_scale: settings.data.guidance_scale,
                    seed: latents.first_seed.wrapping_add(i as u64),
                    size: image.dimensions(),
                    model_hash: &loaded.base_sha256,
                    model: &model_name(model),
                };
                let path = images.join(format!("{group}-{i:05}.png"));
                write_file(&path, &encode_png(&image, &[("parameters", &text.to_string())])?)?;
                progress.event(Event::Step { loss: None });
            }
            Ok(())
        })?;
    }
    Ok(())
}
