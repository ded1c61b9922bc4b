//! The text encoders: CLIP as transformers names it (SD 1.x, SDXL's first), and OpenCLIP's tower (SD 2.x, SDXL's second).

use super::{Entry, How, Module, Names, join};
use crate::sd::TextEncoderConfig;

/// transformers' own names; `ours` and `theirs` are what stands before `embeddings` and `encoder`.
pub(super) fn clip(c: &TextEncoderConfig, ours: &str, theirs: &str, position_ids: bool) -> Vec<Entry> {
    let mut names = Names::default();
    let root = Module::root(ours, theirs);
    if position_ids {
        names.one(&root.pp("embeddings", "embeddings"), "position_ids", How::Same);
    }
    for table in ["embeddings.token_embedding", "embeddings.position_embedding"] {
        names.one(&root.pp(table, table), "weight", How::Same);
    }
    names.layer(&root.pp("final_layer_norm", "final_layer_norm"));
    for i in 0..c.num_hidden_layers {
        let path = format!("encoder.layers.{i}");
        let layer = root.pp(&path, &path);
        for name in ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"] {
            names.layer(&layer.pp(name, name));
        }
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"] {
            names.layer(&layer.pp(name, name));
        }
    }
    names.0
}

/// OpenCLIP's names below `theirs`: queries, keys and values in one tensor, the projection the other way round.
pub(super) fn open_clip(c: &TextEncoderConfig, ours: &str, theirs: &str, projection: bool) -> Vec<Entry> {
    let mut names = Names::default();
    let root = Module::root(ours, theirs);
    let mut odd = |diffusers: String, original: String, how: How| names.0.push(Entry { diffusers, original, how });
    let (position, below) = (join(ours, "embeddings.position_embedding.weight"), |name: &str| join(theirs, name));
    odd(position, below("positional_embedding"), How::Same);
    if projection {
        odd("text_projection.weight".into(), below("text_projection"), How::Transposed);
    }
    for i in 0..c.num_hidden_layers {
        for (third, layer) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            for parameter in ["weight", "bias"] {
                odd(
                    join(ours, &format!("encoder.layers.{i}.self_attn.{layer}.{parameter}")),
                    below(&format!("transformer.resblocks.{i}.attn.in_proj_{parameter}")),
                    How::Third(third),
                );
            }
        }
    }
    names.one(&root.pp("embeddings.token_embedding", "token_embedding"), "weight", How::Same);
    names.layer(&root.pp("final_layer_norm", "ln_final"));
    for i in 0..c.num_hidden_layers {
        let layer = root.pp(format!("encoder.layers.{i}"), format!("transformer.resblocks.{i}"));
        names.layers(
            &layer,
            &[
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
                ("self_attn.out_proj", "attn.out_proj"),
            ],
        );
    }
    names.0
}
