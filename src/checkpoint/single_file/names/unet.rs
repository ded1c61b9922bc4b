//! The UNet: `model.diffusion_model.` (CompVis' `openaimodel.py`) beside diffusers' `UNet2DConditionModel`.

use super::{Entry, How, Module, Names};
use crate::sd::UnetConfig;

/// Every parameter of the UNet. In the original, `input_blocks` counts all levels' resnets and downsamplers through, after the
/// first convolution, and `output_blocks` all resnets; what follows a resnet has the next index below it.
pub(super) fn names(c: &UnetConfig) -> Vec<Entry> {
    let mut names = Names::default();
    let root = Module::root("", "model.diffusion_model");
    names.layers(
        &root,
        &[
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ],
    );
    if c.addition_embed_type.is_some() {
        names
            .layers(&root, &[("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2")]);
    }
    let levels = c.levels();
    let mut index = 1;
    for level in 0..levels {
        let cross = c.down_block_types[level] == "CrossAttnDownBlock2D";
        for j in 0..c.layers_per_block {
            let block = |module: &str, place: usize| {
                root.pp(format!("down_blocks.{level}.{module}.{j}"), format!("input_blocks.{index}.{place}"))
            };
            let widens = j == 0 && level > 0 && c.block_out_channels[level - 1] != c.block_out_channels[level];
            resnet(&mut names, &block("resnets", 0), widens);
            if cross {
                transformer(&mut names, &block("attentions", 1), c.transformer_layers_per_block.at(level));
            }
            index += 1;
        }
        if level + 1 < levels {
            let (ours, theirs) =
                (format!("down_blocks.{level}.downsamplers.0.conv"), format!("input_blocks.{index}.0.op"));
            names.layer(&root.pp(ours, theirs));
            index += 1;
        }
    }
    resnet(&mut names, &root.pp("mid_block.resnets.0", "middle_block.0"), false);
    let middle = root.pp("mid_block.attentions.0", "middle_block.1");
    transformer(&mut names, &middle, c.transformer_layers_per_block.at(levels - 1));
    resnet(&mut names, &root.pp("mid_block.resnets.1", "middle_block.2"), false);
    let mut index = 0;
    for up in 0..levels {
        let level = levels - 1 - up;
        let cross = c.up_block_types[up] == "CrossAttnUpBlock2D";
        for j in 0..=c.layers_per_block {
            let block = |module: &str, place: usize| {
                root.pp(format!("up_blocks.{up}.{module}"), format!("output_blocks.{index}.{place}"))
            };
            resnet(&mut names, &block(&format!("resnets.{j}"), 0), true); // a skip is always concatenated
            if cross {
                let attention = block(&format!("attentions.{j}"), 1);
                transformer(&mut names, &attention, c.transformer_layers_per_block.at(level));
            }
            if j == c.layers_per_block && up + 1 < levels {
                // after the attention, or where there is none in its place
                names.layer(&block("upsamplers.0", if cross { 2 } else { 1 }).pp("conv", "conv"));
            }
            index += 1;
        }
    }
    names.0
}

fn resnet(names: &mut Names, module: &Module, shortcut: bool) {
    names.layers(
        module,
        &[
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
        ],
    );
    if shortcut {
        names.layer(&module.pp("conv_shortcut", "skip_connection"));
    }
}

/// The two layouts call everything inside alike.
fn transformer(names: &mut Names, module: &Module, layers: usize) {
    let mut same = |module: &Module, layer: &str| names.layer(&module.pp(layer, layer));
    ["norm", "proj_in", "proj_out"].iter().for_each(|layer| same(module, layer));
    for i in 0..layers {
        let path = format!("transformer_blocks.{i}");
        let block = module.pp(&path, &path);
        for layer in ["norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"] {
            same(&block, layer);
        }
    }
    for i in 0..layers {
        for layer in ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"] {
            let path = format!("transformer_blocks.{i}.{layer}");
            names.one(&module.pp(&path, &path), "weight", How::Same);
        }
    }
}
