//! What a file is, from the names and shapes of its tensors; never from its own name.

use super::names::Architecture;
use crate::nn::Shapes;

const SUPPORTED: &str = "this program edits whole text-to-image models of Stable Diffusion 1.x, 2.x and XL (base)";

/// Names (any part of them) by which other things are known, in the order in which they are looked for.
const OTHERS: [(&[&str], &str); 15] = [
    (
        &["lora_down.", "lora_up.", "lora_A.", "lora_B.", "lora.down.", "lora.up.", "hada_w1", "lokr_w"],
        "a LoRA (small changes to a model), not a model; merge it into the model that it was made for, and pass that",
    ),
    (&["control_model.", "controlnet_cond_embedding.", "input_hint_block.", "controlnet_down_blocks."], "a ControlNet"),
    (&["motion_modules.", "temporal_transformer."], "an AnimateDiff motion module, or a model with one inside"),
    (&["time_stack.", "time_mixer."], "Stable Video Diffusion"),
    (&["ip_adapter.", "image_proj."], "an IP-Adapter"),
    (&["distilled_guidance_layer."], "a Chroma model"),
    (&["individual_token_refiner."], "a HunyuanVideo model"),
    (&["double_blocks."], "a Flux model"),
    (&["joint_blocks."], "a Stable Diffusion 3 model"),
    (&["double_layers."], "an AuraFlow model"),
    (&["clip_txt_mapper.", ".channelwise."], "a Stable Cascade model"),
    (
        &["adaln_single.", "caption_projection.", "cap_embedder.", "adaLN_modulation"],
        "a diffusion transformer (PixArt, Lumina or the like)",
    ),
    (&["add_k_proj."], "a diffusion transformer (Stable Diffusion 3 or Flux, diffusers' names)"),
    (&["string_to_param", "emb_params"], "an embedding (textual inversion)"),
    (&["edm_mean"], "a Playground 2.5 model"),
];

/// The architecture of a whole model.
///
/// # Errors
/// In words without the file's name: what it is instead, as far as one can tell, and what to do.
pub(super) fn architecture(shapes: &Shapes) -> Result<Architecture, String> {
    for (signs, what) in OTHERS {
        if shapes.keys().any(|name| signs.iter().any(|sign| name.contains(sign))) {
            return Err(if what.contains(';') { what.to_string() } else { unsupported(what) });
        }
    }
    let is = |name: &str| shapes.contains_key(name);
    let has =
        |prefix: &str| shapes.range(prefix.to_string()..).next().is_some_and(|(name, _)| name.starts_with(prefix));
    if shapes.len() <= 4 && (is("clip_l") || is("clip_g")) {
        return Err(unsupported("an embedding (textual inversion)"));
    }
    let unet = "model.diffusion_model.";
    let encoder = ["cond_stage_model.", "conditioner."].into_iter().any(has);
    let Some(conv_in) = shapes.get(&format!("{unet}input_blocks.0.0.weight")) else {
        return Err(part_of_a_model(shapes, &has, encoder));
    };
    if has("conditioner.embedders.0.model.") {
        return Err(unsupported("the Stable Diffusion XL refiner"));
    }
    let adapted = match conv_in.get(1) {
        _ if has("depth_model.") => "a depth-to-image model",
        _ if has("embedder.") || has("noise_augmentor.") => "a Stable Diffusion unCLIP model",
        _ if is(&format!("{unet}label_emb.weight")) => "the x4 upscaler",
        Some(9) => "an inpainting model (its UNet takes 9 channels)",
        Some(8) => "an InstructPix2Pix model (its UNet takes 8 channels)",
        Some(7) => "an upscaler (its UNet takes 7 channels)",
        Some(5) => "a depth-to-image model (its UNet takes 5 channels)",
        _ => "",
    };
    if !adapted.is_empty() {
        return Err(unsupported(adapted));
    }
    let (clip, open_clip) = ("transformer.", "model.token_embedding.weight");
    let found = if has("conditioner.embedders.0.transformer.") && is(&format!("conditioner.embedders.1.{open_clip}")) {
        Architecture::Sdxl
    } else if has(&format!("cond_stage_model.{clip}")) {
        Architecture::Sd1
    } else if is(&format!("cond_stage_model.{open_clip}")) {
        Architecture::Sd2
    } else if encoder {
        return Err(unsupported("a model with a text encoder that is not known"));
    } else {
        return Err(
            "a UNet alone, without a text encoder and a VAE; pass the whole checkpoint that it was taken from".into()
        );
    };
    if !has("first_stage_model.") {
        return Err(
            "a model without its VAE (no tensor begins with first_stage_model.); pass a checkpoint that has one".into(),
        );
    }
    Ok(found)
}

fn unsupported(what: &str) -> String {
    format!("{what}, which is not supported yet; {SUPPORTED}")
}

/// What a file without the original UNet's first layer is.
fn part_of_a_model(shapes: &Shapes, has: &dyn Fn(&str) -> bool, encoder: bool) -> String {
    let alone = |what: &str, remedy: &str| format!("{what} alone, not a whole model; {remedy}");
    if has("model.diffusion_model.") {
        let first = "model.diffusion_model.input_blocks.0.0.weight";
        format!(
            "a model without the first layer of its UNet ({first}); it is incomplete, or of a kind that is not known"
        )
    } else if has("down_blocks.") && has("up_blocks.") {
        alone("a UNet in diffusers' layout", "pass the model's folder, in which unet/ lies")
    } else if has("input_blocks.") && has("output_blocks.") {
        alone("a UNet", "pass the whole checkpoint that it was taken from")
    } else if has("first_stage_model.") || (has("encoder.") && has("decoder.")) {
        alone("a VAE", "pass the model that it belongs to")
    } else if encoder
        || ["text_model.", "embeddings.token_embedding.", "token_embedding.", "transformer.resblocks."]
            .into_iter()
            .any(has)
    {
        alone("a text encoder", "pass the model that it belongs to")
    } else if shapes.is_empty() {
        "a safetensors file without a tensor; download it again".into()
    } else {
        let names: Vec<_> = shapes.keys().take(3).map(String::as_str).collect();
        let more = if shapes.len() > 3 { ", ..." } else { "" };
        format!("of a kind that is not known (its tensors: {}{more}); {SUPPORTED}", names.join(", "))
    }
}
