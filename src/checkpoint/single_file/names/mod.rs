//! Which parameter is called what in the two layouts: diffusers' and the original one (CompVis, OpenCLIP) of single files.
//!
//! The table is generated from the configs, by walking both module trees side by side. It is a bijection between diffusers'
//! parameters and (original tensor, part of it), so that it serves reading and writing alike.

mod text;
mod unet;
mod vae;

use crate::Result;
use crate::nn::ParamStore;
use crate::sd::{TextEncoder, TextEncoderConfig, UnetConfig, Vae, VaeConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The architectures whose single files are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Stable Diffusion 1.x: CLIP ViT-L's text tower, as transformers names it.
    Sd1,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H's text tower.
    Sd2,
    /// Stable Diffusion XL (base): both kinds of text tower.
    Sdxl,
}

impl Architecture {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Sdxl => "Stable Diffusion XL",
        }
    }
}

/// How diffusers' parameter lies in the original tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It is the same tensor.
    Same,
    /// `(C, C)`; in the original a 1x1 convolution, `(C, C, 1, 1)`.
    Squeezed,
    /// This third of the rows: 0 for queries, 1 for keys, 2 for values.
    Third(usize),
    /// Rows and columns change places.
    Transposed,
}

/// One parameter in both layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in diffusers' file of the component.
    pub diffusers: String,
    /// The name of the original tensor.
    pub original: String,
    /// How the one lies in the other.
    pub how: How,
}

/// What the configs leave open: the same model is spelt in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spelling {
    /// Names of the text encoder (of SDXL: the first) begin with `text_model.` in diffusers' file (transformers 4), or not (5).
    pub text_model: bool,
    /// As `text_model`, for SDXL's second text encoder.
    pub text_model_2: bool,
    /// In diffusers' file the VAE's attentions have `query`, `key`, `value`, `proj_attn` (before 2023), not `to_q`...
    pub old_vae_attention: bool,
    /// CLIP's names begin with `text_model.` in the original, or (the first files of SD 1.x) not.
    pub original_text_model: bool,
    /// CLIP has its buffer of positions in the file (transformers before 4.31).
    pub position_ids: bool,
}

impl Default for Spelling {
    /// As models on the Hub are spelt.
    fn default() -> Self {
        Self {
            text_model: true,
            text_model_2: true,
            old_vae_attention: false,
            original_text_model: true,
            position_ids: false,
        }
    }
}

/// The configs that a table is generated from.
pub struct Networks {
    /// The architecture: it decides where the text towers lie and how they are laid out.
    pub architecture: Architecture,
    /// `unet/config.json`.
    pub unet: UnetConfig,
    /// `vae/config.json`.
    pub vae: VaeConfig,
    /// `text_encoder/config.json`.
    pub text_encoder: TextEncoderConfig,
    /// `text_encoder_2/config.json`, of SDXL.
    pub text_encoder_2: Option<TextEncoderConfig>,
}

impl Networks {
    /// Refuses configs that make no sense, before anything is made of them: they may come from strangers.
    pub(super) fn check(&self) -> Result<()> {
        Vae::new(&self.vae, &ParamStore::recorder())?;
        for config in std::iter::once(&self.text_encoder).chain(&self.text_encoder_2) {
            TextEncoder::new(config, &ParamStore::recorder())?;
        }
        Ok(())
    }
}

/// The table of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct NameTable {
    components: BTreeMap<&'static str, Vec<Entry>>,
}

impl NameTable {
    /// The table of a model without parameters.
    pub(super) fn empty() -> Self {
        Self { components: BTreeMap::new() }
    }

    /// Generates the table of a model.
    pub fn new(networks: &Networks, spelling: Spelling) -> Self {
        let mut components = BTreeMap::new();
        components.insert("unet", unet::names(&networks.unet));
        components.insert("vae", vae::names(&networks.vae, spelling.old_vae_attention));
        let roots = |text_model: bool| if text_model { "text_model" } else { "" };
        let (first, second) = (roots(spelling.text_model), roots(spelling.text_model_2));
        let clip =
            |root: &str| if spelling.original_text_model { format!("{root}.text_model") } else { root.to_string() };
        let encoder = &networks.text_encoder;
        let names = match networks.architecture {
            Architecture::Sd1 => {
                text::clip(encoder, first, &clip("cond_stage_model.transformer"), spelling.position_ids)
            }
            Architecture::Sd2 => text::open_clip(encoder, first, "cond_stage_model.model", false),
            Architecture::Sdxl => {
                text::clip(encoder, first, &clip("conditioner.embedders.0.transformer"), spelling.position_ids)
            }
        };
        components.insert("text_encoder", names);
        if let Some(encoder) = networks.text_encoder_2.as_ref().filter(|_| networks.architecture == Architecture::Sdxl)
        {
            components
                .insert("text_encoder_2", text::open_clip(encoder, second, "conditioner.embedders.1.model", true));
        }
        Self { components }
    }

    /// The parameters of a UNet alone.
    pub fn unet(config: &UnetConfig) -> Vec<Entry> {
        unet::names(config)
    }

    /// The parameters of a component (`unet`, `vae`, `text_encoder`, `text_encoder_2`); empty if the model has none.
    pub fn component(&self, component: &str) -> &[Entry] {
        self.components.get(component).map_or(&[], Vec::as_slice)
    }

    /// Every component that the model has.
    pub fn components(&self) -> impl Iterator<Item = (&'static str, &[Entry])> {
        self.components.iter().map(|(name, entries)| (*name, entries.as_slice()))
    }

    /// For each original tensor the parameters that lie in it, in order of their place; one, or three.
    pub fn originals(&self) -> BTreeMap<&str, Vec<(&'static str, &Entry)>> {
        let mut originals: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (component, entries) in self.components() {
            for entry in entries {
                originals.entry(&entry.original).or_default().push((component, entry));
            }
        }
        originals.values_mut().for_each(|parts| parts.sort_by_key(|(_, entry)| entry.how));
        originals
    }
}

/// Collects the parameters of one component.
#[derive(Default)]
struct Names(Vec<Entry>);

impl Names {
    /// One parameter.
    fn one(&mut self, module: &Module, parameter: &str, how: How) {
        let (diffusers, original) = (join(&module.diffusers, parameter), join(&module.original, parameter));
        self.0.push(Entry { diffusers, original, how });
    }

    /// `weight` and `bias` of a layer, a convolution or a norm.
    fn layer(&mut self, module: &Module) {
        self.one(module, "weight", How::Same);
        self.one(module, "bias", How::Same);
    }

    /// [`Names::layer`] for the layers of a module, by their two names.
    fn layers(&mut self, module: &Module, layers: &[(&str, &str)]) {
        layers.iter().for_each(|(diffusers, original)| self.layer(&module.pp(diffusers, original)));
    }
}

/// A module's path in both layouts.
struct Module {
    diffusers: String,
    original: String,
}

impl Module {
    fn root(diffusers: &str, original: &str) -> Self {
        Self { diffusers: diffusers.to_string(), original: original.to_string() }
    }

    /// A module further down.
    fn pp(&self, diffusers: impl AsRef<str>, original: impl AsRef<str>) -> Self {
        Self { diffusers: join(&self.diffusers, diffusers.as_ref()), original: join(&self.original, original.as_ref()) }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}
