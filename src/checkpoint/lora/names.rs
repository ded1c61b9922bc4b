//! What LoRAs call the layers of a model: kohya's names, which A1111, ComfyUI and diffusers read.
//!
//! A layer is called by the path of its module, with `_` in place of `.`, behind a word for the network. The path is diffusers',
//! also in files for programs that know a model by its original names; but in those for SDXL the UNet's is the original's
//! (`sgm`). kohya's own scripts load those layers that they can train (attentions, resnets, samplers), the other programs all.

use super::super::single_file::{Architecture, NameTable};
use crate::sd::UnetConfig;
use std::collections::BTreeMap;

/// The word for the UNet.
const UNET: &str = "lora_unet";
/// What stands before a parameter of the UNet in the original layout.
const ORIGINAL: &str = "model.diffusion_model.";

/// The name of each of the UNet's layers, by its module's path in diffusers.
///
/// Modules of all kinds are here, also norms, which no LoRA changes.
pub fn unet_names(architecture: Architecture, config: &UnetConfig) -> BTreeMap<String, String> {
    paths(config)
        .map(|(diffusers, original)| {
            let path = if architecture == Architecture::Sdxl { &original } else { &diffusers };
            let name = join(UNET, path);
            (diffusers, name)
        })
        .collect()
}

/// The name of a text encoder's layer; `module` is its path in transformers, with or without `text_model.`.
pub fn text_encoder_name(architecture: Architecture, second: bool, module: &str) -> String {
    let network = match (architecture, second) {
        (Architecture::Sdxl, false) => "lora_te1",
        (Architecture::Sdxl, true) => "lora_te2",
        _ => "lora_te",
    };
    // transformers 5 leaves it out, kohya's names do not
    let path = module.strip_prefix("text_model.").unwrap_or(module);
    join(network, &format!("text_model.{path}"))
}

/// The path of the UNet's module in diffusers, by each of the names that a LoRA may have for it.
pub(super) fn unet_modules(config: &UnetConfig) -> BTreeMap<String, String> {
    paths(config)
        .flat_map(|(diffusers, original)| {
            [(join(UNET, &original), diffusers.clone()), (join(UNET, &diffusers), diffusers)]
        })
        .collect()
}

/// The paths of the UNet's modules, in diffusers and in the original.
fn paths(config: &UnetConfig) -> impl Iterator<Item = (String, String)> {
    NameTable::unet(config).into_iter().filter_map(|entry| {
        let original = entry.original.strip_prefix(ORIGINAL)?.strip_suffix(".weight")?;
        Some((entry.diffusers.strip_suffix(".weight")?.to_string(), original.to_string()))
    })
}

fn join(network: &str, path: &str) -> String {
    format!("{network}_{}", path.replace('.', "_"))
}
