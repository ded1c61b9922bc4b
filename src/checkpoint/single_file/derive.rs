//! The configs of a model, from the shapes of its tensors; what shapes do not show is as in the models that everybody has.

use super::names::Architecture;
use super::vocabulary::TOKENS;
use crate::diffusion::PredictionType;
use crate::nn::Shapes;
use serde_json::{Value, json};

/// Channels of an attention head, in SD 2.x, SDXL and CLIP.
const HEAD: usize = 64;
/// Heads of every attention of SD 1.x, whatever its width.
const SD1_HEADS: usize = 8;
/// OpenCLIP's layer of this number is in SD 2.x's files, but what the UNet is given comes from the layer before it.
const SD2_LAYERS: usize = 23;

/// A config, or what is wrong in words without the file's name.
type Config = Result<Value, String>;

/// Shapes below a prefix.
struct Below<'a> {
    shapes: &'a Shapes,
    prefix: String,
}

impl Below<'_> {
    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(&format!("{}{name}", self.prefix))
    }

    fn shape(&self, name: &str) -> Result<&[usize], String> {
        let name = format!("{}{name}", self.prefix);
        let found = self.shapes.get(&name).map(Vec::as_slice);
        found.ok_or_else(|| format!("has no {name}; the file is incomplete, or of a kind that is not known"))
    }

    /// A dimension of a tensor.
    fn dim(&self, name: &str, i: usize) -> Result<usize, String> {
        let shape = self.shape(name)?;
        let what = || format!("{}{name} is {shape:?}, which no known model has", self.prefix);
        shape.get(i).copied().filter(|dim| *dim > 0).ok_or_else(what)
    }

    /// How many of `name(0)`, `name(1)`, ... there are.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|i| self.has(&name(*i))).count()
    }
}

/// `unet/config.json`.
pub(super) fn unet(shapes: &Shapes, architecture: Architecture, prediction: PredictionType) -> Config {
    let unet = Below { shapes, prefix: "model.diffusion_model.".into() };
    let depth = |block: String| unet.count(|k| format!("{block}.1.transformer_blocks.{k}.norm1.weight"));
    // levels are what lies between downsamplers: channels, resnets, transformer blocks
    let mut levels: Vec<(usize, usize, usize)> = Vec::new();
    let (mut index, mut fresh) = (1, true);
    loop {
        let resnet = format!("input_blocks.{index}.0.in_layers.2.weight");
        if unet.has(&resnet) {
            let channels = unet.dim(&resnet, 0)?;
            match levels.last_mut() {
                Some(level) if !fresh => level.1 += 1,
                _ => levels.push((channels, 1, depth(format!("input_blocks.{index}")))),
            }
            fresh = false;
        } else if unet.has(&format!("input_blocks.{index}.0.op.weight")) {
            fresh = true;
        } else {
            break;
        }
        index += 1;
    }
    let middle = depth("middle_block".into());
    let (Some(&(_, layers, _)), Some(last)) = (levels.first(), levels.len().checked_sub(1)) else {
        return Err("has a UNet without a resnet; the file is incomplete".into());
    };
    if levels.iter().any(|level| level.1 != layers) || fresh {
        return Err("has a UNet whose levels differ in their number of resnets; the file is incomplete".into());
    }
    let up = (0..=last).map(|i| depth(format!("output_blocks.{}", i * (layers + 1))) > 0);
    let up: Vec<_> = up.map(|cross| if cross { "CrossAttnUpBlock2D" } else { "UpBlock2D" }).collect();
    let down = levels.iter().map(|level| if level.2 > 0 { "CrossAttnDownBlock2D" } else { "DownBlock2D" });
    let channels: Vec<_> = levels.iter().map(|level| level.0).collect();
    let transformer = "middle_block.1";
    let heads = match architecture {
        Architecture::Sd1 => json!(SD1_HEADS),
        _ => json!(channels.iter().map(|c| heads(*c)).collect::<Result<Vec<_>, _>>()?),
    };
    // a level without attention says nothing; the lowest has the middle's
    let depths = levels.iter().enumerate().map(|(i, level)| if i == last { middle } else { level.2 }.max(1));
    let depths: Vec<_> = depths.collect();
    let depths = if depths.iter().all(|depth| *depth == depths[0]) { json!(depths[0]) } else { json!(depths) };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": unet.dim(&format!("{transformer}.transformer_blocks.0.attn2.to_k.weight"), 1)?,
        "down_block_types": down.collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": unet.dim("input_blocks.0.0.weight", 1)?,
        "layers_per_block": layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": unet.dim("out.2.weight", 0)?,
        "sample_size": sample_size(architecture, prediction),
        "transformer_layers_per_block": depths,
        "up_block_types": up,
        "use_linear_projection": unet.shape(&format!("{transformer}.proj_in.weight"))?.len() == 2,
    });
    if architecture == Architecture::Sdxl {
        let (all, pooled) = (unet.dim("label_emb.0.0.weight", 1)?, second_encoder(shapes).dim("text_projection", 1)?);
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(all.saturating_sub(pooled) / 6); // six sizes
        config["projection_class_embeddings_input_dim"] = json!(all);
    }
    Ok(config)
}

/// Heads of so many channels.
fn heads(channels: usize) -> Result<usize, String> {
    if channels > 0 && channels.is_multiple_of(HEAD) {
        return Ok(channels / HEAD);
    }
    Err(format!(
        "has {channels} channels, which are no whole number of heads of {HEAD}; it is of a kind that is not known"
    ))
}

/// Height and width of the latents that the model was trained on.
fn sample_size(architecture: Architecture, prediction: PredictionType) -> usize {
    match (architecture, prediction) {
        (Architecture::Sdxl, _) => 128,
        (Architecture::Sd2, PredictionType::VPrediction) => 96,
        _ => 64,
    }
}

/// `vae/config.json`.
pub(super) fn vae(shapes: &Shapes, architecture: Architecture, prediction: PredictionType) -> Config {
    let vae = Below { shapes, prefix: "first_stage_model.".into() };
    let levels = vae.count(|l| format!("encoder.down.{l}.block.0.conv1.weight"));
    let channels = (0..levels).map(|l| vae.dim(&format!("encoder.down.{l}.block.0.conv1.weight"), 0));
    let channels = channels.collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": vae.dim("encoder.conv_in.weight", 1)?,
        "latent_channels": vae.dim("decoder.conv_in.weight", 1)?,
        "layers_per_block": vae.count(|j| format!("encoder.down.0.block.{j}.conv1.weight")),
        "mid_block_add_attention": vae.has("encoder.mid.attn_1.q.weight"),
        "norm_num_groups": 32,
        "out_channels": vae.dim("decoder.conv_out.weight", 0)?,
        "sample_size": 8 * sample_size(architecture, prediction),
        "scaling_factor": if architecture == Architecture::Sdxl { 0.13025 } else { 0.18215 },
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": vae.has("post_quant_conv.weight"),
        "use_quant_conv": vae.has("quant_conv.weight"),
    }))
}

/// `text_encoder/config.json`.
pub(super) fn text_encoder(shapes: &Shapes, architecture: Architecture, original_text_model: bool) -> Config {
    let root = match architecture {
        Architecture::Sd1 => "cond_stage_model.transformer.",
        Architecture::Sd2 => {
            return open_clip(
                &Below { shapes, prefix: "cond_stage_model.model.".into() },
                SD2_LAYERS,
                Projection::Unused(512),
            );
        }
        Architecture::Sdxl => "conditioner.embedders.0.transformer.",
    };
    let text = Below { shapes, prefix: format!("{root}{}", if original_text_model { "text_model." } else { "" }) };
    let size = Size {
        vocabulary: text.dim("embeddings.token_embedding.weight", 0)?,
        width: text.dim("embeddings.token_embedding.weight", 1)?,
        positions: text.dim("embeddings.position_embedding.weight", 0)?,
        inner: text.dim("encoder.layers.0.mlp.fc1.weight", 0)?,
        layers: text.count(|i| format!("encoder.layers.{i}.layer_norm1.weight")),
    };
    size.config("quick_gelu", Projection::Unused(size.width))
}

/// `text_encoder_2/config.json`.
pub(super) fn text_encoder_2(shapes: &Shapes) -> Config {
    let text = second_encoder(shapes);
    open_clip(&text, usize::MAX, Projection::Used(text.dim("text_projection", 1)?))
}

fn second_encoder(shapes: &Shapes) -> Below<'_> {
    Below { shapes, prefix: "conditioner.embedders.1.model.".into() }
}

fn open_clip(text: &Below<'_>, most: usize, projection: Projection) -> Config {
    let size = Size {
        vocabulary: text.dim("token_embedding.weight", 0)?,
        width: text.dim("token_embedding.weight", 1)?,
        positions: text.dim("positional_embedding", 0)?,
        inner: text.dim("transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        layers: text.count(|i| format!("transformer.resblocks.{i}.ln_1.weight")).min(most),
    };
    size.config("gelu", projection)
}

/// Features of the pooled projection; the models on the Hub have a number also where there is none.
enum Projection {
    Used(usize),
    Unused(usize),
}

/// A text tower's size.
struct Size {
    vocabulary: usize,
    width: usize,
    positions: usize,
    inner: usize,
    layers: usize,
}

impl Size {
    fn config(&self, activation: &str, projection: Projection) -> Config {
        if self.vocabulary != TOKENS {
            let found = self.vocabulary;
            return Err(format!(
                "has a vocabulary of {found} tokens that it does not bring; only CLIP's, of {TOKENS}, is known"
            ));
        }
        let (class, projection) = match projection {
            Projection::Used(features) => ("CLIPTextModelWithProjection", features),
            Projection::Unused(features) => ("CLIPTextModel", features),
        };
        Ok(json!({
            "architectures": [class],
            "bos_token_id": TOKENS - 2,
            "eos_token_id": TOKENS - 1,
            "hidden_act": activation,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": self.positions,
            "model_type": "clip_text_model",
            "num_attention_heads": heads(self.width)?,
            "num_hidden_layers": self.layers,
            "pad_token_id": TOKENS - 1,
            "projection_dim": projection,
            "vocab_size": self.vocabulary,
        }))
    }
}

/// `scheduler/scheduler_config.json`, as the models on the Hub have it.
pub(super) fn scheduler(architecture: Architecture, prediction: PredictionType, zero_snr: bool) -> Value {
    let class = match (architecture, prediction) {
        (Architecture::Sdxl, _) => "EulerDiscreteScheduler",
        (_, PredictionType::VPrediction) => "DDIMScheduler",
        _ => "PNDMScheduler",
    };
    let mut config = json!({
        "_class_name": class,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": match prediction {
            PredictionType::Epsilon => "epsilon",
            PredictionType::VPrediction => "v_prediction",
        },
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    if architecture == Architecture::Sdxl {
        config["timestep_spacing"] = json!("leading");
    }
    if zero_snr {
        config["rescale_betas_zero_snr"] = json!(true);
    }
    config
}

/// `model_index.json`.
pub(super) fn index(architecture: Architecture, scheduler: &Value) -> Value {
    let scheduler = scheduler["_class_name"].clone();
    let mut index = match architecture {
        Architecture::Sdxl => json!({
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": true,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }),
        _ => json!({
            "_class_name": "StableDiffusionPipeline",
            "requires_safety_checker": false,
            "safety_checker": [null, null],
        }),
    };
    index["feature_extractor"] = json!([null, null]);
    index["image_encoder"] = json!([null, null]);
    index["scheduler"] = json!(["diffusers", scheduler]);
    index["text_encoder"] = json!(["transformers", "CLIPTextModel"]);
    index["tokenizer"] = json!(["transformers", "CLIPTokenizer"]);
    index["unet"] = json!(["diffusers", "UNet2DConditionModel"]);
    index["vae"] = json!(["diffusers", "AutoencoderKL"]);
    index
}
