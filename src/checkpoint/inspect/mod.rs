//! What a model or a file of weights is: nothing of it is loaded, files are mapped and read piece by piece.

mod compare;
mod hashes;
mod recognise;

pub use compare::{BlockChange, Change, Difference};
pub use hashes::Hashes;
pub use recognise::{Recognised, Shapes, recognise};

use super::files::{Bytes, ModelFiles};
use super::malformed::parse;
use super::patch;
use super::single_file::TensorFile;
use crate::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Some tensors, counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Count {
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Elements of each type.
    pub dtypes: BTreeMap<String, u64>,
}

impl Count {
    fn add(&mut self, view: &TensorView<'_>) {
        let elements = view.shape().iter().product::<usize>() as u64;
        self.tensors += 1;
        self.parameters += elements;
        *self.dtypes.entry(format!("{:?}", view.dtype())).or_default() += elements;
    }

    /// Adds another count to this one.
    pub fn and(mut self, other: &Self) -> Self {
        self.tensors += other.tensors;
        self.parameters += other.parameters;
        for (dtype, n) in &other.dtypes {
            *self.dtypes.entry(dtype.clone()).or_default() += n;
        }
        self
    }
}

/// One file of weights.
#[derive(Debug, Clone, Serialize)]
pub struct FileFacts {
    /// Its path; within the model if that is a folder.
    pub path: String,
    /// What it is, in words.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
    /// Its tensors; none for a pickle, which is not opened.
    pub count: Count,
    /// Parts of a single-file checkpoint.
    pub parts: BTreeMap<&'static str, Count>,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Its hashes.
    pub hashes: Hashes,
}

/// The mapped weight files of a model, or one file.
pub struct Weights {
    /// The folder or the file.
    pub path: PathBuf,
    /// For each file: its path within the folder (its name, if it is alone), what its tensors' names begin with, its content.
    files: Vec<(String, String, Bytes)>,
    /// Of a single-file checkpoint: what each component's names begin with, and its tensors by the names that a folder has.
    parts: Vec<(String, TensorFile)>,
}

impl Weights {
    /// Maps one file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn of_file(path: &Path) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| Error::file(path, "not the name of a file"))?;
        let files = ModelFiles::Folder(path.parent().unwrap_or(Path::new("")).to_path_buf());
        let bytes = files.map(&name)?;
        Ok(Self { path: path.to_path_buf(), files: vec![(name, String::new(), bytes)], parts: Vec::new() })
    }

    /// Maps the safetensors files of a model in diffusers' layout, but not those that are left out when it is saved.
    ///
    /// # Errors
    /// If a file is missing or cannot be opened.
    pub fn of_model(files: &ModelFiles) -> Result<Self> {
        let path = match files {
            ModelFiles::Folder(root) => root.clone(),
            ModelFiles::Single(file) => return Self::of_single(files, file.path()),
            ModelFiles::Embedded { name, .. } => PathBuf::from(name),
        };
        let weights = files.list()?.into_iter().filter(|rel| rel.ends_with(".safetensors"));
        let map = |rel: String| {
            let component = rel.split_once('/').map_or("", |(component, _)| component);
            Ok((rel.clone(), format!("{component}/"), files.map(&rel)?))
        };
        Ok(Self { path, files: weights.map(map).collect::<Result<_>>()?, parts: Vec::new() })
    }

    fn of_single(files: &ModelFiles, path: &Path) -> Result<Self> {
        let mut weights = Self::of_file(path)?;
        for rel in files.list()?.into_iter().filter(|rel| rel.ends_with(".safetensors")) {
            let component = rel.split_once('/').map_or("", |(component, _)| component);
            weights.parts.push((format!("{component}/"), TensorFile::open(files, &rel)?));
        }
        Ok(weights)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(.., bytes)| bytes.len() as u64).sum()
    }

    /// What is to be said of each file. `read` is called with the bytes of each piece that was hashed.
    ///
    /// # Errors
    /// If a file is not what it should be (as loading says it), or cannot be read.
    pub fn facts(&self, read: &mut dyn FnMut(u64)) -> Result<Vec<FileFacts>> {
        let alone = self.path.is_file();
        let path = |rel: &str| if alone { self.path.clone() } else { self.path.join(rel) };
        self.files.iter().map(|(rel, _, bytes)| facts(&path(rel), rel, bytes, read)).collect()
    }

    /// Which tensors differ from `base`.
    ///
    /// # Errors
    /// If a file is malformed, or no tensor has the same name.
    pub fn compare(&self, base: &Self) -> Result<Difference> {
        compare::compare(self, base)
    }

    /// Every tensor by name; of a single file, by the names that it has, or by those that a folder `as_folder` would have.
    fn tensors(&self, as_folder: bool) -> Result<BTreeMap<String, TensorView<'_>>> {
        let mut all = BTreeMap::new();
        if as_folder && !self.parts.is_empty() {
            for (prefix, part) in &self.parts {
                all.extend(part.tensors()?.into_iter().map(|(name, view)| (format!("{prefix}{name}"), view)));
            }
            return Ok(all);
        }
        for (rel, prefix, bytes) in &self.files {
            let parsed = parse(bytes).map_err(|what| Error::file(self.describe(rel), what))?;
            for (name, view) in parsed.tensors() {
                all.insert(format!("{prefix}{name}"), view);
            }
        }
        Ok(all)
    }

    fn describe(&self, rel: &str) -> PathBuf {
        if self.path.is_file() { self.path.clone() } else { self.path.join(rel) }
    }

    fn release(&self, part: &[u8]) {
        self.files.iter().for_each(|(.., bytes)| bytes.release(part));
        self.parts.iter().for_each(|(_, file)| file.release(part));
    }
}

fn facts(path: &Path, rel: &str, bytes: &Bytes, read: &mut dyn FnMut(u64)) -> Result<FileFacts> {
    let mut facts = FileFacts {
        path: rel.to_string(),
        what: String::new(),
        bytes: bytes.len() as u64,
        count: Count::default(),
        parts: BTreeMap::new(),
        metadata: BTreeMap::new(),
        hashes: Hashes::default(),
    };
    let mut data_start = None;
    if is_pickle(&bytes[..bytes.len().min(4)]) {
        facts.what = "PyTorch pickle (.ckpt, .pt, .bin): not opened, since such a file can hold programs".into();
    } else {
        let wrong = |what: String| Error::file(path, what);
        let parsed = parse(bytes).map_err(wrong)?;
        let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
        data_start = Some(8 + header as u64);
        facts.metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        let views = parsed.tensors();
        for (name, view) in &views {
            facts.count.add(view);
            if let Some(part) = recognise::part_of(name) {
                facts.parts.entry(part).or_default().add(view);
            }
        }
        let shapes = views.into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        facts.what = match patch::is_patch(&facts.metadata) {
            true => patch::info(bytes, path)?.describe(),
            false => recognise(&shapes).what,
        };
    }
    facts.hashes = match bytes {
        Bytes::Static(bytes) => hashes::of_bytes(bytes, data_start),
        Bytes::Mapped(_) => hashes::hashes(path, data_start, read)?,
    };
    Ok(facts)
}

/// What one file is, by its header alone, and the header's metadata.
///
/// # Errors
/// If it cannot be read, or is no safetensors file: the message says what it is instead.
pub fn recognise_file(path: &Path) -> Result<(Recognised, BTreeMap<String, String>)> {
    let (bytes, wrong) = (Bytes::open(path)?, |what: String| Error::file(path, what));
    let parsed = parse(&bytes).map_err(wrong)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
    let shapes = parsed.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec())).collect();
    Ok((recognise(&shapes), header.metadata().clone().unwrap_or_default().into_iter().collect()))
}

fn is_pickle(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02")
}
