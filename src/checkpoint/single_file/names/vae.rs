//! The VAE: `first_stage_model.` (CompVis' `model.py`) beside diffusers' `AutoencoderKL`.

use super::{Entry, How, Module, Names};
use crate::sd::VaeConfig;

/// Every parameter of the VAE. The original counts the decoder's levels as the encoder's, so that `decoder.up.0` is the last.
pub(super) fn names(c: &VaeConfig, old_attention: bool) -> Vec<Entry> {
    let mut names = Names::default();
    let root = Module::root("", "first_stage_model");
    if c.use_quant_conv {
        names.layer(&root.pp("quant_conv", "quant_conv"));
    }
    if c.use_post_quant_conv {
        names.layer(&root.pp("post_quant_conv", "post_quant_conv"));
    }
    let widths = &c.block_out_channels;
    let levels = widths.len();
    for half in ["encoder", "decoder"] {
        let half = root.pp(half, half);
        names.layers(&half, &[("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")]);
        resnet(&mut names, &half.pp("mid_block.resnets.0", "mid.block_1"), false);
        resnet(&mut names, &half.pp("mid_block.resnets.1", "mid.block_2"), false);
        if c.mid_block_add_attention {
            attention(&mut names, &half.pp("mid_block.attentions.0", "mid.attn_1"), old_attention);
        }
    }
    let encoder = root.pp("encoder", "encoder");
    for level in 0..levels {
        let block = encoder.pp(format!("down_blocks.{level}"), format!("down.{level}"));
        let widens = level > 0 && widths[level - 1] != widths[level];
        for j in 0..c.layers_per_block {
            resnet(&mut names, &block.pp(format!("resnets.{j}"), format!("block.{j}")), j == 0 && widens);
        }
        if level + 1 < levels {
            names.layer(&block.pp("downsamplers.0.conv", "downsample.conv"));
        }
    }
    let decoder = root.pp("decoder", "decoder");
    for up in 0..levels {
        let level = levels - 1 - up;
        let block = decoder.pp(format!("up_blocks.{up}"), format!("up.{level}"));
        let narrows = up > 0 && widths[level + 1] != widths[level];
        for j in 0..=c.layers_per_block {
            resnet(&mut names, &block.pp(format!("resnets.{j}"), format!("block.{j}")), j == 0 && narrows);
        }
        if up + 1 < levels {
            names.layer(&block.pp("upsamplers.0.conv", "upsample.conv"));
        }
    }
    names.0
}

fn resnet(names: &mut Names, module: &Module, shortcut: bool) {
    names.layers(module, &[("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2")]);
    if shortcut {
        names.layer(&module.pp("conv_shortcut", "nin_shortcut"));
    }
}

/// Linear layers in diffusers, 1x1 convolutions in the original.
fn attention(names: &mut Names, module: &Module, old: bool) {
    names.layer(&module.pp("group_norm", "norm"));
    let ours = if old { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
    for (ours, theirs) in ours.into_iter().zip(["q", "k", "v", "proj_out"]) {
        let layer = module.pp(ours, theirs);
        names.one(&layer, "weight", How::Squeezed);
        names.one(&layer, "bias", How::Same);
    }
}
