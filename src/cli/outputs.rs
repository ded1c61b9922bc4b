//! What the erase job writes the erased model as.

use super::checks::model_name;
use super::options::EraseOptions;
use crate::Result;
use crate::checkpoint::{
    About, Format, License, LoadedModel, ModelFiles, SingleFile, modelspec, save_edited_as, write_edited_single_file,
};
use crate::progress::{Event, Progress};
use candle_core::Tensor;
use serde_json::json;
use std::collections::BTreeMap;
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

impl Outputs<'_> {
    /// Writes the model into `folder`; returns what was written, to be looked at.
    ///
    /// # Errors
    /// As [`save_edited_as`] and [`write_edited_single_file`], and if the base is no longer what was loaded.
    pub fn write(&self, folder: &Path, progress: &mut dyn Progress) -> Result<ModelFiles> {
        self.loaded.check_unchanged(self.files)?;
        let metadata = self.metadata();
        let mut written = None;
        let mut left_out = Vec::new();
        progress.event(Event::Stage { name: "writing the model", steps: self.formats.len() });
        for format in self.formats {
            match format {
                Format::Diffusers => {
                    left_out = save_edited_as(self.files, self.changed, folder, &metadata, self.options.copying)?;
                    written = Some(ModelFiles::Folder(folder.to_path_buf()));
                }
                Format::SingleFile => {
                    let path = folder.join(format.file().unwrap_or_default());
                    let mut metadata = metadata.clone();
                    metadata.extend(modelspec(self.files, &About::new("", &metadata, self.license))?);
                    let left = write_edited_single_file(self.files, self.changed, &path, &metadata)?;
                    if written.is_none() {
                        written = Some(ModelFiles::Single(Arc::new(SingleFile::open(&path)?)));
                        left_out = left;
                    }
                }
            }
            progress.event(Event::Step { loss: None });
        }
        if self.formats.contains(&Format::Diffusers) {
            for name in self.files.inventory()?.absent {
                let note = format!(
                    "{name} was not there (nothing here needs it): the saved model_index.json has null in its place, so that \
                     diffusers opens the model without it"
                );
                progress.event(Event::Note(&note));
            }
        }
        for name in left_out {
            progress.event(Event::Note(&format!("not copied, as no part of the model: {name}")));
        }
        Ok(written.unwrap_or_else(|| self.files.clone()))
    }

    /// What each of them is, for the model card.
    pub fn list(&self) -> Vec<(String, &'static str)> {
        let model = self.formats.iter().map(|format| match format {
            Format::Diffusers => ("model_index.json", "the model in diffusers' layout, with its folders"),
            Format::SingleFile => ("erased.safetensors", "the model as one file (A1111, ComfyUI, Forge)"),
        });
        let evidence = [
            ("report.html", "before and after, counted and shown"),
            ("grid.png", "before and after, at a glance"),
            ("report.json", "the report for programs"),
            ("run.json", "times and memory of the run"),
        ];
        model.chain(evidence).map(|(file, what)| (file.to_string(), what)).collect()
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
