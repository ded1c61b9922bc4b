//! A base and a LoRA to the weights that they make together.

use super::super::files::{Bytes, ModelFiles};
use super::super::malformed::parse;
use super::super::single_file::networks;
use super::check_strength;
use super::factor::add_product;
use super::names::unet_modules;
use super::tensors::{UnetFiles, Views, floats};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// Signs of adapters of another make: what stands in a tensor's name, and what they are.
const OTHERS: [(&str, &str); 7] = [
    ("hada_w", "a LoHa (Hadamard products)"),
    ("lokr_w", "a LoKr (Kronecker products)"),
    ("dora_scale", "a DoRA (rescaled weights)"),
    ("lora_mid.", "a LoCon in Tucker's form"),
    ("lora_A.", "a LoRA in PEFT's names"),
    ("lora.down.", "a LoRA in diffusers' names"),
    ("_lora.", "a LoRA in diffusers' names"),
];

/// One layer's tensors.
#[derive(Default)]
struct Parts<'a> {
    up: Option<TensorView<'a>>,
    down: Option<TensorView<'a>>,
    alpha: Option<TensorView<'a>>,
}

/// The UNet's changed tensors, by diffusers' names and in `f32`, with a LoRA added to the base `strength` times; what
/// [`super::super::save_edited`] takes.
///
/// LoRAs in kohya's names are read, of this program and of others, for the UNet alone: whatever rank, `alpha` and type each layer
/// has, and with diffusers' or the original's paths.
///
/// # Errors
/// If the LoRA cannot be read, is of another make, is incomplete, has a value that is NaN or infinite, or does not fit the base:
/// the message names the file, the layer and what to do.
pub fn apply(base: &ModelFiles, lora: &Path, strength: f64) -> Result<BTreeMap<String, Tensor>> {
    check_strength(strength)?;
    let wrong = |what: String| Error::file(lora, what);
    if lora.is_dir() {
        return Err(wrong("a folder, not a LoRA; name the file (.safetensors) in it".into()));
    }
    let bytes = Bytes::open(lora)?;
    let parsed = parse(&bytes).map_err(wrong)?;
    let mut views = parsed.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0)); // so that which error comes first does not depend on a hash map
    let layers = layers(&views).map_err(wrong)?;

    let modules = unet_modules(&networks(base)?.unet);
    let unet = UnetFiles::open(base)?;
    let tensors = unet.views()?;
    let unknown: Vec<&str> = layers.keys().filter(|name| !modules.contains_key(**name)).copied().collect();
    if let [first, rest @ ..] = &unknown[..] {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let what = format!("has a layer {first}{more}, which is not in the UNet of {}", unet.described());
        return Err(wrong(format!("{what}; name the model that the LoRA was made for")));
    }
    let mut found: BTreeMap<String, &str> = BTreeMap::new();
    for name in layers.keys() {
        if let Some(twice) = found.insert(format!("{}.weight", modules[*name]), name) {
            return Err(wrong(format!("has one layer under two names, {twice} and {name}; export it again")));
        }
    }
    let add = |(parameter, name): (&String, &&str)| {
        check_interrupted()?;
        let changed = changed(&unet, &tensors, parameter, &layers[*name], strength)?;
        Ok((parameter.clone(), changed.map_err(|what| wrong(format!("{name} {what}")))?))
    };
    found.par_iter().map(add).collect::<Result<BTreeMap<_, _>>>()
}

/// The layers of a LoRA by name.
fn layers<'a>(views: &'a [(String, TensorView<'a>)]) -> std::result::Result<BTreeMap<&'a str, Parts<'a>>, String> {
    let mut layers: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
    for (name, view) in views {
        let (layer, part) = name.split_once('.').unwrap_or((name, ""));
        if let Some((_, what)) = OTHERS.iter().find(|(sign, _)| name.contains(sign)) {
            let what =
                format!("{what}, as {name} shows; only LoRAs in kohya's names are read (lora_unet_....lora_up.weight)");
            return Err(format!("{what}: convert it"));
        }
        if layer.starts_with("lora_te") {
            let what = format!("changes a text encoder too ({layer}), and only UNets are changed here");
            return Err(format!("{what}; load it in a program that takes both"));
        }
        let parts = layers.entry(layer).or_default();
        let place = match part {
            _ if !layer.starts_with("lora_unet_") => None,
            "lora_up.weight" => Some(&mut parts.up),
            "lora_down.weight" => Some(&mut parts.down),
            "alpha" => Some(&mut parts.alpha),
            _ => None,
        };
        *place.ok_or_else(|| format!("{name} is no part of a LoRA; check that this is the file meant"))? =
            Some(view.clone());
    }
    for (name, parts) in &layers {
        let missing = match parts {
            Parts { up: None, .. } => "lora_up.weight",
            Parts { down: None, .. } => "lora_down.weight",
            _ => continue,
        };
        return Err(format!("{name} has no {missing}; the file is incomplete, download or export it again"));
    }
    if layers.is_empty() {
        return Err("holds no tensor; download or export it again".into());
    }
    Ok(layers)
}

/// A parameter of the base with a layer added; the inner error is about the layer, in words without its name.
fn changed(
    unet: &UnetFiles,
    tensors: &Views<'_>,
    parameter: &str,
    parts: &Parts<'_>,
    strength: f64,
) -> Result<std::result::Result<Tensor, String>> {
    let missing =
        || Error::file(unet.described(), format!("has no tensor named {parameter}; it does not fit its config"));
    let tensor = tensors.get(parameter).ok_or_else(missing)?;
    let shape = tensor.0.shape();
    let (up, down, scale) = match factors(shape, parts) {
        Ok(found) => found,
        Err(what) => return Ok(Err(what)),
    };
    let mut weights: Vec<f64> = unet.floats(parameter, tensor)?.into_iter().map(f64::from).collect();
    let (rows, columns) = (shape[0], shape[1..].iter().product());
    add_product(&mut weights, (rows, columns), &up, &down, strength * scale);
    let weights: Vec<f32> = weights.into_iter().map(|x| x as f32).collect();
    if !weights.iter().all(|x| x.is_finite()) {
        let what = format!(
            "makes {parameter} too large for f32; lower --strength, or check that the LoRA belongs to the model"
        );
        return Ok(Err(what));
    }
    Ok(Ok(Tensor::from_vec(weights, shape, &Device::Cpu)?))
}

/// The factors of a layer for a parameter of this shape, and what their product is multiplied by.
fn factors(shape: &[usize], parts: &Parts<'_>) -> std::result::Result<(Vec<f32>, Vec<f32>, f64), String> {
    let (Some(up), Some(down)) = (&parts.up, &parts.down) else { return Err("is incomplete".into()) };
    let rank = down.shape().first().copied().unwrap_or(0);
    // a 1x1 convolution and a linear layer stand for each other
    let plain = |shape: &[usize]| shape.iter().rposition(|dim| *dim != 1).map_or(2, |last| 2.max(last + 1));
    let same = |a: &[usize], b: &[usize]| {
        a.len() >= 2 && b.len() >= 2 && a[..plain(a)] == b[..plain(b)] && a.len().max(b.len()) <= 4
    };
    let fits =
        shape.len() >= 2 && same(down.shape(), &[&[rank], &shape[1..]].concat()) && same(up.shape(), &[shape[0], rank]);
    if !fits || rank == 0 {
        let (up, down) = (up.shape(), down.shape());
        let what = format!("has an up of {up:?} and a down of {down:?}, which do not make a matrix of {shape:?}");
        return Err(format!("{what}; the LoRA was made for another model, or is damaged"));
    }
    let named = |part: &'static str| move |what: String| format!("cannot be used: its {part} {what}");
    let alpha = match &parts.alpha {
        None => rank as f64,
        Some(view) => match floats(view).map_err(named("alpha"))?[..] {
            [alpha] => f64::from(alpha),
            ref other => return Err(format!("has an alpha of {} numbers; it must be one", other.len())),
        },
    };
    let up = floats(up).map_err(named("lora_up.weight"))?;
    let down = floats(down).map_err(named("lora_down.weight"))?;
    Ok((up, down, alpha / rank as f64))
}
