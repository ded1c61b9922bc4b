//! `--cache DIR`: latents kept between runs, found again only if everything that they depend on is the same.

use crate::checkpoint::{LoadedModel, write_safetensors};
use crate::concept::Concept;
use crate::erase::{Data, Latents, Settings};
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The data of a run: from `cache` if it is there, sampled otherwise (and then kept in `cache`).
pub fn data(
    cache: Option<&Path>,
    loaded: &LoadedModel,
    concept: &Concept,
    settings: &Settings,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<Data> {
    let model = &loaded.model;
    let Some(folder) = cache else { return Data::sample(model, concept, settings, seed, progress) };
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = folder.join(format!("latents-{}.safetensors", key(&loaded.base_sha256, concept, settings, seed)));
    if file.exists() {
        progress.event(Event::Note(&format!("latents from {}", file.display())));
        return read(&file, concept);
    }
    let data = Data::sample(model, concept, settings, seed, progress)?;
    let bytes = |latents: &Tensor| -> Result<(Dtype, Vec<usize>, Vec<u8>)> {
        let values: Vec<f32> = latents.flatten_all()?.to_vec1()?;
        Ok((Dtype::F32, latents.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect()))
    };
    let tensors = BTreeMap::from([
        ("forget".to_string(), bytes(&data.forget.latents)?),
        ("retain".to_string(), bytes(&data.retain.latents)?),
    ]);
    let prompts = serde_json::to_string(&data.retain.prompts).map_err(|e| Error::file(&file, e))?;
    write_safetensors(&file, &tensors, &BTreeMap::from([("retain_prompts".to_string(), prompts)]))?;
    Ok(data)
}

fn read(file: &Path, concept: &Concept) -> Result<Data> {
    let damaged = || Error::file(file, "not a cache of this program, or damaged; delete it and run again");
    let bytes = std::fs::read(file).map_err(Error::io(file))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|_| damaged())?;
    let prompts = header.metadata().as_ref().and_then(|m| m.get("retain_prompts")).ok_or_else(damaged)?;
    let retain_prompts: Vec<String> = serde_json::from_str(prompts).map_err(|_| damaged())?;
    let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|_| damaged())?;
    let mut take = |name: &str, prompts: &[String]| -> Result<Latents> {
        let latents: Tensor = tensors.remove(name).ok_or_else(damaged)?;
        let count = latents.dims4().map_err(|_| damaged())?.0;
        if prompts.is_empty() {
            return Err(damaged());
        }
        Ok(Latents { prompts: prompts.to_vec(), of_prompt: (0..count).map(|i| i % prompts.len()).collect(), latents })
    };
    Ok(Data { forget: take("forget", &concept.forget)?, retain: take("retain", &retain_prompts)? })
}

/// A name for everything that the latents depend on.
fn key(base_sha256: &str, concept: &Concept, settings: &Settings, seed: u64) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(env!("CARGO_PKG_VERSION"));
    add(base_sha256);
    add(&seed.to_string());
    add(&serde_json::to_string(&settings.data).unwrap_or_default());
    for prompts in [&concept.forget, &concept.anchors, &concept.retain] {
        add(&prompts.len().to_string());
        prompts.iter().for_each(|prompt| add(prompt));
    }
    hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}
