//! What the erase job writes the erased model as.

use super::checks::model_name;
use super::options::EraseOptions;
use crate::checkpoint::{
    About, Copying, Format, License, LoadedModel, ModelFiles, SingleFile, lora, modelspec, patch, save_edited_as,
    write_edited_single_file, write_file,
};
use crate::progress::{Event, Progress};
use crate::{Error, Result};
use candle_core::Tensor;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The formats of a job: those that were asked for, or that of the base.
pub fn formats(options: &EraseOptions, files: &ModelFiles) -> Vec<Format> {
    let mut formats = options.formats.clone();
    if formats.is_empty() {
        formats.push(if files.is_single() { Format::SingleFile } else { Format::Diffusers });
    }
    formats.sort();
    formats.dedup();
    formats
}

/// `diffusers folder, erased.safetensors`.
pub fn in_words(formats: &[Format]) -> String {
    let words: Vec<&str> = formats.iter().map(|format| format.file().unwrap_or("diffusers folder")).collect();
    words.join(", ")
}

/// The base and what became of it.
pub struct Outputs<'a> {
    /// The job.
    pub options: &'a EraseOptions,
    /// The base's files.
    pub files: &'a ModelFiles,
    /// What they were loaded as.
    pub loaded: &'a LoadedModel,
    /// The base's terms.
    pub license: Option<&'a License>,
    /// The UNet's tensors that changed.
    pub changed: &'a BTreeMap<String, Tensor>,
    /// What is written.
    pub formats: &'a [Format],
}

/// What was written.
pub struct Written {
    /// The model that is looked at: the first of the formats that was asked for.
    pub shown: ModelFiles,
    /// The model as the base lies on disk, where a patch is wanted.
    same_layout: Option<ModelFiles>,
    /// What the LoRA holds.
    pub lora: Option<lora::Summary>,
}

/// A model in the folder that is not among the formats, and goes before the result is there.
const SCRATCH: &str = ".erased";

impl Outputs<'_> {
    /// Writes everything but the patch into `folder`.
    ///
    /// # Errors
    /// As [`save_edited_as`], [`write_edited_single_file`] and [`lora::create`], and if the base is no longer what was loaded.
    pub fn write(&self, folder: &Path, progress: &mut dyn Progress) -> Result<Written> {
        self.loaded.check_unchanged(self.files)?;
        let models: Vec<Format> = self.formats.iter().copied().filter(|format| format.is_model()).collect();
        let (mut as_folder, mut as_file, mut left_out) = (None, None, Vec::new());
        progress.event(Event::Stage { name: "writing the model", steps: models.len().max(1) });
        for format in &models {
            let left = match format {
                Format::Diffusers => {
                    let (files, left) = self.folder(folder, self.changed, self.options.copying)?;
                    as_folder = Some(files);
                    left
                }
                _ => {
                    let (files, left) =
                        self.single_file(&folder.join(format.file().unwrap_or_default()), self.changed)?;
                    as_file = Some(files);
                    left
                }
            };
            if left_out.is_empty() {
                left_out = left;
            }
            progress.event(Event::Step { loss: None });
        }
        let mut same_layout = if self.files.is_single() { as_file.clone() } else { as_folder.clone() };
        let patch = self.formats.contains(&Format::Patch);
        if models.is_empty() || (patch && same_layout.is_none()) {
            let (scratch, left) = self.scratch(folder, self.changed)?;
            (same_layout, left_out) = (Some(scratch), if models.is_empty() { left } else { left_out });
        }
        if models.is_empty() {
            progress.event(Event::Step { loss: None });
        }
        self.say(left_out, as_folder.is_some(), progress)?;
        let model = as_folder.or(as_file);
        let exact = model.clone().or(same_layout.clone()).unwrap_or_else(|| self.files.clone());
        let mut shown = exact.clone();
        let mut summary = None;
        if self.formats.contains(&Format::Lora) {
            let path = folder.join(Format::Lora.file().unwrap_or_default());
            let found = lora::create(self.files, &exact, &path, &self.options.lora, &self.metadata(), progress)?;
            if model.is_none() && !patch {
                // what is looked at is what the LoRA makes of the base
                (shown, _) = self.scratch(folder, &lora::apply(self.files, &path, 1.0)?)?;
            }
            summary = Some(found);
        }
        Ok(Written { shown, same_layout: same_layout.filter(|_| patch), lora: summary })
    }

    /// Writes the patch, once everything is there that it holds, and removes what is no part of the result.
    ///
    /// # Errors
    /// As [`patch::create`].
    pub fn finish(
        &self,
        written: Written,
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Option<patch::Summary>> {
        let mut summary = None;
        let scratch = folder.join(SCRATCH);
        if let Some(model) = &written.same_layout {
            progress.event(Event::Stage { name: "writing the patch", steps: 1 });
            if scratch.is_dir() {
                // not copied over: the file there may be a link to the base's own
                let card = folder.join("README.md");
                write_file(&scratch.join("README.md"), &fs::read(&card).map_err(Error::io(&card))?)?;
            }
            let path = folder.join(Format::Patch.file().unwrap_or_default());
            summary = Some(patch::create(self.files, model, &path, &self.metadata())?);
            progress.event(Event::Step { loss: None });
        }
        drop(written);
        if scratch.is_dir() {
            fs::remove_dir_all(&scratch).map_err(Error::io(&scratch))?;
        } else if scratch.exists() {
            fs::remove_file(&scratch).map_err(Error::io(&scratch))?;
        }
        Ok(summary)
    }

    /// What there is, for the model card.
    pub fn list(&self, lora: Option<&lora::Summary>) -> Vec<(&'static str, String)> {
        let model = self.formats.iter().map(|format| {
            let what = match format {
                Format::Diffusers => "the model in diffusers' layout, with its folders".to_string(),
                Format::SingleFile => "the model as one file (A1111, ComfyUI, Forge)".to_string(),
                Format::Patch => format!(
                    "what changed alone: `erase-concept apply BASE {} --output OUT`, and back with `--reverse`",
                    format.file().unwrap_or_default()
                ),
                Format::Lora => format!(
                    "a LoRA, to be loaded beside the base with weight 1: {}",
                    lora.map_or_else(String::new, lora::Summary::line)
                ),
            };
            (format.file().unwrap_or("model_index.json"), what)
        });
        let evidence = [
            ("report.html", "before and after, counted and shown"),
            ("grid.png", "before and after, at a glance"),
            ("report.json", "the report for programs"),
            ("run.json", "times and memory of the run"),
        ];
        model.chain(evidence.map(|(file, what)| (file, what.to_string()))).collect()
    }

    fn folder(
        &self,
        into: &Path,
        changed: &BTreeMap<String, Tensor>,
        copying: Copying,
    ) -> Result<(ModelFiles, Vec<String>)> {
        let left = save_edited_as(self.files, changed, into, &self.metadata(), copying)?;
        Ok((ModelFiles::Folder(into.to_path_buf()), left))
    }

    fn single_file(&self, path: &Path, changed: &BTreeMap<String, Tensor>) -> Result<(ModelFiles, Vec<String>)> {
        let mut metadata = self.metadata();
        metadata.extend(modelspec(self.files, &About::new("", &metadata, self.license))?);
        let left = write_edited_single_file(self.files, changed, path, &metadata)?;
        Ok((ModelFiles::Single(Arc::new(SingleFile::open(path)?)), left))
    }

    /// The model as the base lies on disk, for a while; in place of another such.
    fn scratch(&self, folder: &Path, changed: &BTreeMap<String, Tensor>) -> Result<(ModelFiles, Vec<String>)> {
        let path = folder.join(SCRATCH);
        if self.files.is_single() {
            return self.single_file(&path, changed);
        }
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        fs::create_dir(&path).map_err(Error::io(&path))?;
        self.folder(&path, changed, Copying::Link)
    }

    fn say(&self, left_out: Vec<String>, folder: bool, progress: &mut dyn Progress) -> Result<()> {
        let absent = if folder { self.files.inventory()?.absent } else { Vec::new() };
        for name in absent {
            let note = format!(
                "{name} was not there (nothing here needs it): the saved model_index.json has null in its place, so that diffusers \
                 opens the model without it"
            );
            progress.event(Event::Note(&note));
        }
        for name in left_out {
            progress.event(Event::Note(&format!("not copied, as no part of the model: {name}")));
        }
        Ok(())
    }

    /// What the written weights say about themselves.
    fn metadata(&self) -> BTreeMap<String, String> {
        let options = self.options;
        let list = |names: &[&String]| json!(names).to_string();
        let (several, preserve) = (&options.concept.parts, &options.concept.preserve);
        let entries = [
            ("erase.method", Some("scissorhands".to_string())),
            ("erase.preset", Some(options.preset.clone())),
            ("erase.concept", Some(options.concept.name.clone())),
            (
                "erase.concepts",
                (!several.is_empty()).then(|| list(&several.iter().map(|part| &part.name).collect::<Vec<_>>())),
            ),
            ("erase.preserve", (!preserve.is_empty()).then(|| list(&preserve.iter().collect::<Vec<_>>()))),
            ("erase.seed", Some(options.seed.to_string())),
            ("erase.version", Some(env!("CARGO_PKG_VERSION").to_string())),
            ("erase.base", Some(model_name(&options.model))),
            ("erase.base_sha256", Some(self.loaded.base_sha256.clone())),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
    }
}
