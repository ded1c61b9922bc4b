//! Where the trimmed weights lie: the UNet's blocks in the order in which data flow through them.

use serde::Serialize;
use std::collections::BTreeMap;

/// What one block of the UNet lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockTrim {
    /// `input`, `down_blocks.0`, ..., `mid_block`, `up_blocks.0`, ..., `output`.
    pub block: String,
    /// Its parameters' entries.
    pub entries: usize,
    /// Those that were scored.
    pub scored: usize,
    /// Those that were trimmed.
    pub trimmed: usize,
}

/// The block of a UNet parameter; embeddings and the first convolution are `input`, the last norm and convolution `output`.
pub fn block_of(name: &str) -> String {
    let mut parts = name.split('.');
    match (parts.next(), parts.next()) {
        (Some(list @ ("down_blocks" | "up_blocks")), Some(i)) => format!("{list}.{i}"),
        (Some("mid_block"), _) => "mid_block".into(),
        (Some("conv_norm_out" | "conv_out"), _) => "output".into(),
        _ => "input".into(),
    }
}

/// Place of a block in the order of the data.
pub(super) fn place(block: &str) -> (usize, usize) {
    let (list, i) = block.split_once('.').unwrap_or((block, "0"));
    let lists = ["input", "down_blocks", "mid_block", "up_blocks", "output"];
    (lists.iter().position(|known| *known == list).unwrap_or(0), i.parse().unwrap_or(0))
}

/// Sums over blocks. `tensors` holds each parameter's name, its entries and whether it was scored.
pub fn by_block<'a>(
    tensors: impl Iterator<Item = (&'a str, usize, bool)>,
    trimmed: &BTreeMap<String, usize>,
) -> Vec<BlockTrim> {
    let mut blocks: Vec<BlockTrim> = Vec::new();
    for (name, entries, scored) in tensors {
        let block = block_of(name);
        let i = blocks.iter().position(|known| known.block == block).unwrap_or_else(|| {
            blocks.push(BlockTrim { block, entries: 0, scored: 0, trimmed: 0 });
            blocks.len() - 1
        });
        blocks[i].entries += entries;
        blocks[i].scored += if scored { entries } else { 0 };
        blocks[i].trimmed += trimmed.get(name).copied().unwrap_or(0);
    }
    blocks.sort_by_key(|block| place(&block.block));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_in_the_order_of_the_data_and_add_up() {
        let tensors = [
            ("conv_in.weight", 10, false),
            ("conv_out.weight", 11, false),
            ("down_blocks.10.resnets.0.conv1.weight", 3, false),
            ("down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight", 40, true),
            ("down_blocks.2.resnets.0.conv1.weight", 5, false),
            ("mid_block.attentions.0.proj_in.weight", 6, true),
            ("time_embedding.linear_1.weight", 7, false),
            ("up_blocks.0.resnets.0.conv1.weight", 8, true),
        ];
        let trimmed = BTreeMap::from([(tensors[3].0.to_string(), 9), (tensors[7].0.to_string(), 1)]);
        let found = by_block(tensors.into_iter(), &trimmed);
        let found: Vec<_> = found.iter().map(|b| (b.block.as_str(), b.entries, b.scored, b.trimmed)).collect();
        let expected = [
            ("input", 17, 0, 0),
            ("down_blocks.2", 45, 40, 9),
            ("down_blocks.10", 3, 0, 0),
            ("mid_block", 6, 6, 0),
            ("up_blocks.0", 8, 8, 1),
            ("output", 11, 0, 0),
        ];
        assert_eq!(found, expected);
    }
}
