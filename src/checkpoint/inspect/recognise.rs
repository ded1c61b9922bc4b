//! What a file of weights is, by the names and shapes of its tensors; never by its own name.

use std::collections::BTreeMap;

/// Names and shapes.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// What was recognised.
#[derive(Debug, Clone, PartialEq)]
pub struct Recognised {
    /// In words: `LoRA for Stable Diffusion 1.x`.
    pub what: String,
    /// Whether this program can erase from it: a whole model, or the part of one.
    pub known: bool,
}

/// Parts of a single-file checkpoint by what their names begin with, in the order in which they are tried.
pub(super) const PARTS: [(&str, &str); 7] = [
    ("model_ema.", "UNet, averaged copy (EMA)"),
    ("model.diffusion_model.", "UNet"),
    ("first_stage_model.", "VAE"),
    ("cond_stage_model.", "text encoder"),
    ("conditioner.embedders.0.", "text encoder"),
    ("conditioner.embedders.1.", "second text encoder"),
    ("control_model.", "ControlNet"),
];

/// Says what these tensors are.
pub fn recognise(shapes: &Shapes) -> Recognised {
    let any = |test: &dyn Fn(&str) -> bool| shapes.keys().any(|name| test(name));
    let starts = |prefix: &str| any(&|name| name.starts_with(prefix));
    let holds = |part: &str| any(&|name| name.contains(part));
    let found = |what: &str, known: bool| Recognised { what: what.to_string(), known };
    let family = family(shapes);
    let of = |what: &str, known: bool| match family {
        Some(family) => found(&format!("{what} of {family}"), known),
        None => found(what, known),
    };
    if holds(".lora_down.") || holds(".lora_up.") || holds(".lora_A.") || holds(".lora_B.") || holds("lora.down.") {
        return found(&format!("LoRA{}: changes to a model, not a model", lora(shapes)), false);
    }
    if holds("double_blocks.") || holds("single_transformer_blocks.") {
        return found("Flux, which is not supported yet", false);
    }
    if holds("joint_blocks.") || holds(".attn.add_q_proj.") {
        return found("Stable Diffusion 3, which is not supported yet", false);
    }
    if starts("emb_params") || starts("string_to_param") || (starts("clip_l") && shapes.len() <= 2) {
        return found("textual inversion: embeddings of a word, not a model", false);
    }
    if starts("control_model.") || holds("controlnet_cond_embedding.") {
        return found("ControlNet: an addition to a model, not a model", false);
    }
    match (starts("model.diffusion_model."), starts("first_stage_model.")) {
        (true, true) => return of("single-file checkpoint (UNet, VAE, text encoder)", true),
        (true, false) => return of("UNet in a single-file checkpoint's names", true),
        (false, true) => return found("VAE in a single-file checkpoint's names", false),
        _ => {}
    }
    if starts("down_blocks.") && starts("time_embedding.") {
        return of("UNet (diffusers' names)", true);
    }
    if (starts("decoder.") || starts("encoder.")) && (holds("conv_out.") || starts("quant_conv.")) {
        return found("VAE (diffusers' names)", false);
    }
    if holds("vision_model.") {
        return found("CLIP, or its image encoder", false);
    }
    if holds("embeddings.token_embedding.") {
        return found(&format!("text encoder (CLIP{})", width(shapes)), false);
    }
    if starts("classifier.") {
        return found("image classifier", false);
    }
    if holds("lm_head.") || holds("shared.weight") {
        return found("language model or T5 text encoder", false);
    }
    found("not recognised", false)
}

/// The model that a LoRA is for, its layers and ranks, as far as they show: ` for Stable Diffusion 1.x, 64 layers of rank 16`.
fn lora(shapes: &Shapes) -> String {
    let downs = ["lora_down.weight", "lora_A.weight", "lora.down.weight"];
    let down = |name: &str| downs.iter().any(|down| name.ends_with(down));
    let keys = ["attn2_to_k.lora_down.weight", "attn2.to_k.lora_A.weight", "attn2.processor.to_k_lora.down.weight"];
    let width = shapes.iter().find(|(name, _)| keys.iter().any(|key| name.ends_with(key)));
    let family = width.and_then(|(_, shape)| of_width(*shape.get(1)?, false));
    let of = family.map_or_else(String::new, |family| format!(" for {family}"));
    let ranks: Vec<usize> =
        shapes.iter().filter(|(name, _)| down(name)).filter_map(|(_, shape)| shape.first().copied()).collect();
    match (ranks.iter().min(), ranks.iter().max()) {
        (Some(low), Some(high)) if low == high => format!("{of}, {} of rank {low}", layers(ranks.len())),
        (Some(low), Some(high)) => format!("{of}, {} of ranks {low} to {high}", layers(ranks.len())),
        _ => of,
    }
}

fn layers(n: usize) -> String {
    format!("{n} layer{}", if n == 1 { "" } else { "s" })
}

/// The family, by the width of the text that cross-attention reads.
fn family(shapes: &Shapes) -> Option<&'static str> {
    let (_, shape) = shapes.iter().find(|(name, _)| name.ends_with("attn2.to_k.weight"))?;
    let inputs = ["conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"];
    let inpainting = inputs.iter().filter_map(|name| shapes.get(*name)).any(|shape| shape.get(1) == Some(&9));
    of_width(*shape.get(1)?, inpainting)
}

fn of_width(width: usize, inpainting: bool) -> Option<&'static str> {
    Some(match (width, inpainting) {
        (768, false) => "Stable Diffusion 1.x",
        (768, true) => "Stable Diffusion 1.x inpainting",
        (1024, false) => "Stable Diffusion 2.x",
        (1024, true) => "Stable Diffusion 2.x inpainting",
        (2048, false) => "SDXL",
        (2048, true) => "SDXL inpainting",
        (1280, _) => "SDXL refiner",
        _ => "a Stable Diffusion of another size",
    })
}

fn width(shapes: &Shapes) -> String {
    let table = shapes.iter().find(|(name, _)| name.ends_with("token_embedding.weight"));
    table.and_then(|(_, shape)| shape.get(1)).map_or_else(String::new, |width| format!(", {width} wide"))
}

/// The part of a single-file checkpoint that a tensor belongs to, if its name says so.
pub(super) fn part_of(name: &str) -> Option<&'static str> {
    PARTS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, part)| *part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and shapes.
    type Tensors<'a> = &'a [(&'a str, &'a [usize])];

    fn what(names: Tensors<'_>) -> Recognised {
        recognise(&names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect())
    }

    #[test]
    fn each_kind_is_told_from_the_others() {
        let to_k = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        let single = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
        let cases: [(Tensors<'_>, &str, bool); 15] = [
            (
                &[(to_k, &[320, 768]), ("time_embedding.linear_1.weight", &[1])],
                "UNet (diffusers' names) of Stable Diffusion 1.x",
                true,
            ),
            (
                &[(to_k, &[320, 2048]), ("time_embedding.linear_1.weight", &[1])],
                "UNet (diffusers' names) of SDXL",
                true,
            ),
            (
                &[(single, &[320, 1024]), ("first_stage_model.x", &[1])],
                "single-file checkpoint (UNet, VAE, text encoder) of Stable Diffusion 2.x",
                true,
            ),
            (&[(single, &[320, 768])], "UNet in a single-file checkpoint's names of Stable Diffusion 1.x", true),
            (
                &[("lora_unet_x.lora_down.weight", &[4, 4]), ("lora_unet_x.lora_up.weight", &[4, 4])],
                "LoRA, 1 layer of rank 4: changes to a model",
                false,
            ),
            (
                &[
                    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", &[8, 2048]),
                    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v.lora_down.weight", &[16, 2048]),
                ],
                "LoRA for SDXL, 2 layers of ranks 8 to 16: changes to a model",
                false,
            ),
            (&[("x.attn2.to_k.lora_A.weight", &[4, 768])], "LoRA for Stable Diffusion 1.x, 1 layer of rank 4:", false),
            (&[("x.attn1.processor.to_q_lora.down.weight", &[4, 768])], "LoRA, 1 layer of rank 4: changes", false),
            (&[("double_blocks.0.img_attn.qkv.weight", &[1])], "Flux, which is not supported yet", false),
            (
                &[("model.diffusion_model.joint_blocks.0.x", &[1])],
                "Stable Diffusion 3, which is not supported yet",
                false,
            ),
            (&[("decoder.conv_out.weight", &[3]), ("quant_conv.weight", &[1])], "VAE (diffusers' names)", false),
            (
                &[("text_model.embeddings.token_embedding.weight", &[49408, 768])],
                "text encoder (CLIP, 768 wide)",
                false,
            ),
            (&[("control_model.x", &[1])], "ControlNet", false),
            (&[("emb_params", &[2, 768])], "textual inversion", false),
            (&[("x", &[1])], "not recognised", false),
        ];
        for (names, expected, known) in cases {
            let found = what(names);
            assert!(found.what.starts_with(expected) && found.known == known, "{found:?} is not {expected}");
        }
        assert_eq!(part_of("model_ema.decay"), Some("UNet, averaged copy (EMA)"));
        assert_eq!(part_of("other"), None);
    }
}
