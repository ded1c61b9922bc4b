//! `--cache DIR`: what finished stages gave, kept between runs and found again only if everything that it depends on is the
//! same: program, processor, model, concept, settings, seed.
//!
//! An entry is one safetensors file, written whole or not at all, with a checksum over all that is in it. A damaged entry is
//! made anew. Two processes may use one folder: both write the same bytes.

use super::options::EraseOptions;
use crate::checkpoint::{LoadedModel, sha256_file, sweep_files, write_safetensors};
use crate::erase::{self, Data, Latents, Outcome, Plan, Settings};
use crate::nn::{ComputeDevice, Instructions};
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Key of the checksum among an entry's metadata.
const CHECKSUM: &str = "sha256";

/// Named tensors and texts.
type Entry = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// The finished stages of one job.
pub struct Cache<'a> {
    folder: Option<&'a Path>,
    /// Which program on which processor: other builds may round differently, as do other devices.
    program: String,
    loaded: &'a LoadedModel,
    options: &'a EraseOptions,
    compute: &'a ComputeDevice,
    settings: &'a Settings,
    plan: Plan,
}

impl<'a> Cache<'a> {
    /// Opens the folder, if there is one to be used, and removes what killed runs left there.
    pub fn open(
        options: &'a EraseOptions,
        compute: &'a ComputeDevice,
        loaded: &'a LoadedModel,
        settings: &'a Settings,
        plan: Plan,
    ) -> Result<Self> {
        let folder = options.cache.as_deref();
        let mut program = String::new();
        if let Some(folder) = folder {
            let unusable = |e| Error::file(folder, format!("cannot be used: {e}; choose another --cache"));
            std::fs::create_dir_all(folder).map_err(unusable)?;
            sweep_files(folder)?;
            program = this_program();
        }
        Ok(Self { folder, program, loaded, options, compute, settings, plan })
    }

    /// The data of the job.
    pub fn data(&self, progress: &mut dyn Progress) -> Result<Data> {
        let (model, settings) = (&self.loaded.model, self.settings);
        let (concept, seed) = (&self.options.concept, self.options.seed);
        let forget = self.latents("forget", progress, |p| Data::sample_forget(model, concept, settings, seed, p))?;
        let retain = self.latents("retain", progress, |p| Data::sample_retain(model, concept, settings, seed, p))?;
        Ok(Data { forget, retain })
    }

    /// What scoring, trimming and repair gave.
    pub fn outcome(&self, data: &Data, progress: &mut dyn Progress) -> Result<Outcome> {
        let read = |(changed, texts): Entry| {
            let base = self.loaded.model.unet_params.tensors();
            let fits = |(name, t): (&String, &Tensor)| base.get(name).is_some_and(|base| base.dims() == t.dims());
            let part = |name: &str| texts.get(name).cloned();
            changed.iter().all(fits).then_some(())?;
            let trim = serde_json::from_str(&part("trim")?).ok()?;
            let other_words = serde_json::from_str(&part("other_words")?).ok()?;
            Some(Outcome { changed, other_words, trim, losses: serde_json::from_str(&part("losses")?).ok()? })
        };
        let write = |outcome: &Outcome| {
            let text = |value: serde_json::Result<String>| value.map_err(Error::usage);
            let trim = ("trim".to_string(), text(serde_json::to_string(&outcome.trim))?);
            let losses = ("losses".to_string(), text(serde_json::to_string(&outcome.losses))?);
            let words = ("other_words".to_string(), text(serde_json::to_string(&outcome.other_words))?);
            Ok((outcome.changed.clone(), BTreeMap::from([trim, losses, words])))
        };
        let c = &self.options.concept;
        let names: Vec<&str> = c.each().iter().map(|part| part.name.as_str()).collect();
        let depends_on = json!([self.settings, names, c.forget, c.anchors, c.retain, self.plan.thrift]);
        self.stage("repaired", &depends_on, read, write, progress, |progress| {
            erase::scissorhands(&self.loaded.model, c, data, self.settings, self.options.seed, self.plan, progress)
        })
    }

    fn latents(
        &self,
        name: &str,
        progress: &mut dyn Progress,
        make: impl FnOnce(&mut dyn Progress) -> Result<Latents>,
    ) -> Result<Latents> {
        let read = |(mut tensors, texts): Entry| {
            let prompts: Vec<String> = serde_json::from_str(texts.get("prompts")?).ok()?;
            let latents = tensors.remove("latents")?.to_device(self.compute.device()).ok()?;
            let count = latents.dims4().ok()?.0;
            (!prompts.is_empty()).then_some(())?;
            let of_prompt = (0..count).map(|i| i % prompts.len()).collect();
            Some(Latents { of_prompt, prompts, latents, first_seed: texts.get("first_seed")?.parse().ok()? })
        };
        let write = |made: &Latents| {
            let prompts = serde_json::to_string(&made.prompts).map_err(Error::usage)?;
            let first_seed = ("first_seed".to_string(), made.first_seed.to_string());
            let texts = BTreeMap::from([("prompts".to_string(), prompts), first_seed]);
            Ok((BTreeMap::from([("latents".to_string(), made.latents.clone())]), texts))
        };
        let c = &self.options.concept;
        let depends_on = json!([self.settings.data, c.forget, c.anchors, c.retain]);
        self.stage(&format!("{name}-latents"), &depends_on, read, write, progress, make)
    }

    /// A stage's result: read if it is there and whole, made (and kept) otherwise.
    fn stage<T>(
        &self,
        name: &str,
        depends_on: &Value,
        read: impl FnOnce(Entry) -> Option<T>,
        write: impl FnOnce(&T) -> Result<Entry>,
        progress: &mut dyn Progress,
        make: impl FnOnce(&mut dyn Progress) -> Result<T>,
    ) -> Result<T> {
        let Some(folder) = self.folder else { return make(progress) };
        let path = folder.join(format!("{name}-{}.safetensors", self.key(name, depends_on)));
        if path.exists() {
            match load(&path).and_then(read) {
                Some(kept) => {
                    progress.event(Event::Note(&format!("{name} from {}", path.display())));
                    return Ok(kept);
                }
                None => progress.event(Event::Note(&format!("{}: damaged, and made anew", path.display()))),
            }
        }
        let made = make(progress)?;
        let (tensors, texts) = write(&made)?;
        save(&path, &tensors, texts)?;
        Ok(made)
    }

    /// A hash of everything that a stage depends on.
    fn key(&self, name: &str, depends_on: &Value) -> String {
        let (seed, precision) = (self.options.seed, self.options.precision.name());
        let device = [self.compute.name(), if self.compute.tf32() { "tf32" } else { "" }];
        let all = json!([self.program, device, self.loaded.base_sha256, precision, seed, name, depends_on]);
        Sha256::digest(all.to_string()).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The hash of this program's file, and what the processor can do.
fn this_program() -> String {
    let own = if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() };
    let hash = own.ok().and_then(|path| sha256_file(path).ok());
    let instructions = [Instructions::used().name(), Instructions::best().name(), std::env::consts::ARCH].join(" ");
    format!("{} {} {instructions}", env!("CARGO_PKG_VERSION"), hash.unwrap_or_default())
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, mut texts: BTreeMap<String, String>) -> Result<()> {
    let mut raw = BTreeMap::new();
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        raw.insert(name.clone(), (Dtype::F32, tensor.dims().to_vec(), bytes));
    }
    let parts = raw.iter().map(|(name, (dtype, shape, bytes))| (name.as_str(), *dtype, &**shape, &**bytes));
    texts.insert(CHECKSUM.into(), checksum(parts, &texts));
    write_safetensors(path, &raw, &texts)
}

/// Reads an entry; `None` if it is not whole.
fn load(path: &Path) -> Option<Entry> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    let mut texts: BTreeMap<String, String> = header.metadata().clone()?.into_iter().collect();
    let promised = texts.remove(CHECKSUM)?;
    let mut views = SafeTensors::deserialize(&bytes).ok()?.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0));
    let parts = views.iter().map(|(name, view)| (name.as_str(), view.dtype(), view.shape(), view.data()));
    if checksum(parts, &texts) != promised {
        return None;
    }
    let tensor = |view: &safetensors::tensor::TensorView<'_>| {
        let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Tensor::from_vec(values, view.shape(), &Device::Cpu).ok()
    };
    let tensors = views.iter().map(|(name, view)| Some((name.clone(), tensor(view)?))).collect::<Option<_>>()?;
    Some((tensors, texts))
}

/// A hash of names, types, shapes, values (in order of name) and texts.
fn checksum<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
    texts: &BTreeMap<String, String>,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (key, value) in texts {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    for (name, dtype, shape, bytes) in tensors {
        add(format!("{name} {dtype:?} {shape:?}").as_bytes());
        add(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_as_it_was_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entry");
        let tensor = Tensor::new(&[[0.1f32, -2.5, 1e-40], [3.0, 4.0, 5.0]], &Device::Cpu).unwrap();
        let texts = BTreeMap::from([("losses".to_string(), "[0.1, \"ü\"]".to_string())]);
        save(&path, &BTreeMap::from([("w".to_string(), tensor.clone())]), texts.clone()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let (found, found_texts) = load(&path).unwrap();
        assert_eq!(found["w"].to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
        assert_eq!(found_texts, texts);
        // no single byte can change unnoticed, but for the header's padding
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let padding = whole[..header].iter().rev().take_while(|byte| **byte == b' ').count();
        for i in (0..whole.len()).filter(|i| !(header - padding..header).contains(i)) {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(load(&path).is_none(), "byte {i}");
        }
        for length in [0, 7, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(load(&path).is_none(), "{length} bytes");
        }
    }
}
