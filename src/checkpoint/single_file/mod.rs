//! Single-file checkpoints with the original names (A1111, CompVis), as if they were a folder in diffusers' layout.
//!
//! What a file is shows in the names and shapes of its tensors ([`recognise`]), and so do the configs ([`derive`]); the
//! vocabulary is part of this program ([`vocabulary`]); each parameter is found by one table ([`NameTable`]). A file that this
//! program wrote brings its configs along, in the metadata `erase.configs`, so that models of any size survive the journey.

mod convert;
mod derive;
mod names;
mod pickle;
mod prediction;
mod recognise;
mod rewrite;
mod view;
mod vocabulary;
mod write;

pub use names::{Architecture, Entry, How, NameTable, Networks, Spelling};
pub(super) use view::TensorFile;
pub(super) use write::networks;
pub use write::{write_edited_single_file, write_single_file};

use super::files::Bytes;
use super::malformed::parse;
use crate::nn::Shapes;
use crate::sd::UnetConfig;
use crate::{Error, Result};
use pickle::Place;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The metadata in which a file brings its configs: a JSON object of files by their path in a folder, and `spelling`.
pub(super) const CONFIGS: &str = "erase.configs";

/// The key in [`CONFIGS`] under which the [`Spelling`] stands.
const SPELLING: &str = "spelling";

/// The components that a single file can hold: the folder of each, and what its weights are called there.
const COMPONENTS: [(&str, &str); 4] = [
    ("text_encoder", "text_encoder/model.safetensors"),
    ("text_encoder_2", "text_encoder_2/model.safetensors"),
    ("unet", super::UNET_WEIGHTS),
    ("vae", "vae/diffusion_pytorch_model.safetensors"),
];

/// The files that every model has besides its weights. With the tokenizers' and the second text encoder's, no others are taken
/// from [`CONFIGS`]: what it names is written to disk when the model is saved.
const NEEDED: [&str; 5] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
];

/// Parts of the names of tensors that belong to a network (and to no buffer or loss beside it).
const NETWORKS: [&str; 5] = [
    "model.diffusion_model.",
    "first_stage_model.encoder.",
    "first_stage_model.decoder.",
    ".encoder.layers.",
    ".transformer.resblocks.",
];

/// The files of a tokenizer's folder.
const TOKENIZER: [&str; 5] =
    ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"];

/// What is said of a pickle that was not allowed.
const NOT_ALLOWED: &str = "a PyTorch pickle, a format that can hold programs. Prefer the safetensors version of the model; or pass \
                           --allow-pickle: the tensors are then read without running anything";

/// A single-file checkpoint.
pub struct SingleFile {
    path: PathBuf,
    architecture: Architecture,
    /// What a folder has besides weights, by relative path.
    texts: BTreeMap<String, Cow<'static, [u8]>>,
    table: NameTable,
    spelling: Spelling,
    left_out: Vec<String>,
    notes: Vec<String>,
    /// A file beside this one decided something.
    beside: bool,
    /// Of a pickle: where its tensors lie.
    pickled: Option<BTreeMap<String, Place>>,
}

/// The tensors of a mapped file by their original names.
enum Tensors<'a> {
    Safetensors(SafeTensors<'a>),
    Pickled(&'a BTreeMap<String, Place>, &'a [u8]),
}

impl<'a> Tensors<'a> {
    fn get(&self, name: &str) -> std::result::Result<TensorView<'a>, String> {
        match self {
            Self::Safetensors(tensors) => tensors.tensor(name).map_err(|e| e.to_string()),
            Self::Pickled(places, bytes) => {
                let place = places.get(name).ok_or("is missing")?;
                let data = bytes.get(place.bytes.clone()).ok_or("is cut off; the file was changed meanwhile")?;
                TensorView::new(place.dtype, place.shape.clone(), data).map_err(|e| e.to_string())
            }
        }
    }
}

/// The number of tensors in a PyTorch checkpoint: all that is read of it without its numbers.
///
/// # Errors
/// In words: what is wrong with it.
pub fn read_pickle(bytes: &[u8]) -> std::result::Result<usize, String> {
    Ok(pickle::tensors(bytes)?.len())
}

/// As [`read_pickle`], for the `data.pkl` of such a checkpoint.
///
/// # Errors
/// In words: what is wrong with it.
pub fn read_pickle_alone(bytes: &[u8]) -> std::result::Result<(), String> {
    pickle::read(bytes)
}

impl SingleFile {
    /// Reads the header of a safetensors file.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is not a whole model of a known architecture: the message says what it is instead.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, false)
    }

    /// As [`SingleFile::open`]; a PyTorch checkpoint too if `allow_pickle`. Nothing in it is run.
    ///
    /// # Errors
    /// As [`SingleFile::open`].
    pub fn open_with(path: &Path, allow_pickle: bool) -> Result<Self> {
        let wrong = |what: String| Error::file(path, what);
        let bytes = Bytes::open(path)?;
        let (pickled, shapes, metadata): (_, Shapes, BTreeMap<_, _>) = if pickle::is_archive(&bytes) {
            if !allow_pickle {
                return Err(wrong(NOT_ALLOWED.to_string()));
            }
            let places = pickle::tensors(&bytes).map_err(wrong)?;
            let shapes = places.iter().map(|(name, place)| (name.clone(), place.shape.clone()));
            let shapes = shapes.collect();
            (Some(places), shapes, BTreeMap::new())
        } else {
            let parsed = parse(&bytes).map_err(wrong)?;
            let shapes = parsed.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec())).collect();
            let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
            (None, shapes, header.metadata().clone().unwrap_or_default().into_iter().collect())
        };
        let architecture = recognise::architecture(&shapes).map_err(wrong)?;
        let has = |name: &str| shapes.keys().any(|found| found.ends_with(name));
        let mut spelling = Spelling {
            original_text_model: !shapes.keys().any(|name| name.contains(".transformer.embeddings.")),
            position_ids: has(".embeddings.position_ids"),
            ..Spelling::default()
        };
        let mut file = Self {
            path: path.to_path_buf(),
            architecture,
            texts: BTreeMap::new(),
            table: NameTable::empty(),
            spelling,
            left_out: Vec::new(),
            notes: Vec::new(),
            beside: false,
            pickled,
        };
        match metadata.get(CONFIGS) {
            Some(text) => file.take_configs(text, &mut spelling)?,
            None => file.derive_configs(&shapes, &metadata, spelling)?,
        }
        file.add_vocabularies();
        file.spelling = spelling;
        file.table = NameTable::new(&file.networks()?, spelling);
        file.check_complete(&shapes)?;
        file.left_out = left_out(&shapes, &file.table);
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The names of its parameters in both layouts.
    pub fn table(&self) -> &NameTable {
        &self.table
    }

    /// What the user should be told about how it was read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tensors that are no part of the model.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Whether it is a PyTorch checkpoint, which has no metadata.
    pub(super) fn is_pickle(&self) -> bool {
        self.pickled.is_some()
    }

    /// Whether a file beside it decided how it is read.
    pub(super) fn depends_on_others(&self) -> bool {
        self.beside
    }

    /// The tensors of the file, which was mapped again.
    fn tensors<'a>(&'a self, bytes: &'a [u8]) -> std::result::Result<Tensors<'a>, String> {
        match &self.pickled {
            Some(places) => Ok(Tensors::Pickled(places, bytes)),
            None => Ok(Tensors::Safetensors(parse(bytes)?)),
        }
    }

    /// A file that is no weights, by its path in a folder.
    pub(super) fn text(&self, rel: &str) -> Option<&Cow<'static, [u8]>> {
        self.texts.get(rel)
    }

    /// The parameters in a file of weights, by its path in a folder.
    pub(super) fn weights(&self, rel: &str) -> Option<&[Entry]> {
        let (component, _) = COMPONENTS.iter().find(|(_, weights)| *weights == rel)?;
        Some(self.table.component(component)).filter(|entries| !entries.is_empty())
    }

    /// Every file that a folder would have, in order.
    pub(super) fn list(&self) -> Vec<String> {
        let weights = COMPONENTS.iter().filter(|(_, rel)| self.weights(rel).is_some()).map(|(_, rel)| rel.to_string());
        let mut all: Vec<_> = self.texts.keys().cloned().chain(weights).collect();
        all.sort();
        all
    }

    /// The configs that the file brings.
    fn take_configs(&mut self, text: &str, spelling: &mut Spelling) -> Result<()> {
        let wrong = |what: String| Error::file(&self.path, format!("its metadata {CONFIGS}: {what}"));
        let files: Map<String, Value> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let tokenizer = |rel: &str| {
            let name = rel.strip_prefix("tokenizer/").or_else(|| rel.strip_prefix("tokenizer_2/"));
            name.is_some_and(|name| TOKENIZER.contains(&name))
        };
        for (rel, content) in files {
            if rel == SPELLING {
                let told: Spelling = serde_json::from_value(content).map_err(|e| wrong(e.to_string()))?;
                let Spelling { original_text_model, .. } = *spelling;
                *spelling = Spelling { original_text_model, ..told };
            } else if NEEDED.contains(&rel.as_str()) || rel == "text_encoder_2/config.json" || tokenizer(&rel) {
                let bytes = match content {
                    Value::String(text) => text.into_bytes(),
                    other => json_bytes(&other),
                };
                self.texts.insert(rel, Cow::Owned(bytes));
            }
        }
        match NEEDED.iter().find(|rel| !self.texts.contains_key(**rel)) {
            Some(rel) => Err(wrong(format!("{rel} is missing"))),
            None => Ok(()),
        }
    }

    /// The configs that follow from the tensors.
    fn derive_configs(
        &mut self,
        shapes: &Shapes,
        metadata: &BTreeMap<String, String>,
        spelling: Spelling,
    ) -> Result<()> {
        let architecture = self.architecture;
        let found = prediction::find(&self.path, architecture, shapes, metadata)?;
        self.notes.extend(found.note);
        self.beside = found.beside;
        let scheduler = derive::scheduler(architecture, found.kind, found.zero_snr);
        let mut configs = vec![
            ("model_index.json", Ok(derive::index(architecture, &scheduler))),
            ("scheduler/scheduler_config.json", Ok(scheduler)),
            ("text_encoder/config.json", derive::text_encoder(shapes, architecture, spelling.original_text_model)),
            ("unet/config.json", derive::unet(shapes, architecture, found.kind)),
            ("vae/config.json", derive::vae(shapes, architecture, found.kind)),
        ];
        if architecture == Architecture::Sdxl {
            configs.push(("text_encoder_2/config.json", derive::text_encoder_2(shapes)));
        }
        for (rel, config) in configs {
            let config = config.map_err(|what| Error::file(&self.path, what))?;
            self.texts.insert(rel.to_string(), Cow::Owned(json_bytes(&config)));
        }
        Ok(())
    }

    /// CLIP's vocabulary for each text encoder without one.
    fn add_vocabularies(&mut self) {
        let first = ("tokenizer", self.architecture == Architecture::Sd2);
        let second = (self.architecture == Architecture::Sdxl).then_some(("tokenizer_2", true));
        for (folder, open_clip) in std::iter::once(first).chain(second) {
            let below = |name: &str| format!("{folder}/{name}");
            if ["tokenizer.json", "vocab.json"].iter().any(|name| self.texts.contains_key(&below(name))) {
                continue;
            }
            self.texts.insert(below("vocab.json"), Cow::Borrowed(vocabulary::vocab_json()));
            self.texts.insert(below("merges.txt"), Cow::Borrowed(vocabulary::MERGES));
            for (name, settings) in vocabulary::settings(vocabulary::padding(open_clip)) {
                self.texts.entry(below(name)).or_insert_with(|| Cow::Owned(json_bytes(&settings)));
            }
        }
    }

    /// The configs, read.
    fn networks(&self) -> Result<Networks> {
        let second = (self.architecture == Architecture::Sdxl).then(|| self.config("text_encoder_2/config.json"));
        let wrong = |e: Error| Error::file(&self.path, format!("its configs: {e}"));
        let networks = Networks {
            architecture: self.architecture,
            unet: UnetConfig::from_json(&String::from_utf8_lossy(self.bytes("unet/config.json"))).map_err(wrong)?,
            vae: self.config("vae/config.json")?,
            text_encoder: self.config("text_encoder/config.json")?,
            text_encoder_2: second.transpose()?,
        };
        networks.check().map_err(wrong)?;
        Ok(networks)
    }

    fn bytes(&self, rel: &str) -> &[u8] {
        self.texts.get(rel).map_or(&[], |text| text)
    }

    fn config<T: DeserializeOwned>(&self, rel: &str) -> Result<T> {
        serde_json::from_slice(self.bytes(rel)).map_err(|e| Error::file(&self.path, format!("its {rel}: {e}")))
    }

    /// Every parameter must be there, and in the networks no other: configs that follow from what is there would make a smaller
    /// model of one that lost a layer.
    fn check_complete(&self, shapes: &Shapes) -> Result<()> {
        let originals = self.table.originals();
        let missing: Vec<_> = originals.keys().copied().filter(|name| !shapes.contains_key(*name)).collect();
        let is_network = |name: &str| match name {
            name if name.contains(".transformer.resblocks.23.") => self.architecture != Architecture::Sd2,
            name => NETWORKS.iter().any(|part| name.contains(part)),
        };
        let others = shapes.keys().map(String::as_str).filter(|name| is_network(name) && !originals.contains_key(name));
        let others: Vec<_> = others.collect();
        let (names, what) = match (&missing[..], &others[..]) {
            ([], []) => return Ok(()),
            ([], others) => (others, "that belong to no such model"),
            (missing, _) => (missing, "missing"),
        };
        let (number, name) = (names.len(), self.architecture.name());
        let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        let (more, s) = (if number > 3 { ", ..." } else { "" }, if number == 1 { "" } else { "s" });
        let problem = format!("{number} tensor{s} {what} ({shown}{more})");
        let what = format!("{name}, but incomplete or of a kind that is not known: {problem}");
        Err(Error::file(&self.path, what))
    }
}

impl std::fmt::Debug for SingleFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SingleFile({}, {})", self.path.display(), self.architecture.name())
    }
}

impl PartialEq for SingleFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// JSON as a file of a model's folder has it.
fn json_bytes(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The tensors that the table has no place for, in groups.
fn left_out(shapes: &Shapes, table: &NameTable) -> Vec<String> {
    let known: BTreeSet<_> = table.originals().into_keys().collect();
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in shapes.keys().filter(|name| !known.contains(name.as_str())) {
        groups.entry(name.split('.').next().unwrap_or(name)).or_default().push(name);
    }
    let line = |(group, names): (&str, Vec<&str>)| match names[..] {
        [name] => name.to_string(),
        _ if group == "model_ema" => {
            format!("model_ema.* ({} tensors: averaged weights, which would still hold the concept)", names.len())
        }
        [first, ..] => format!("{} tensors of {group} that diffusers has no place for ({first}, ...)", names.len()),
        [] => group.to_string(),
    };
    groups.into_iter().map(line).collect()
}
