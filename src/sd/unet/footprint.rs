//! How many numbers a training pass through the network keeps, counted from its config.

use super::UnetConfig;

/// Numbers kept for each row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Of each piece of the network: what its operations keep.
    pieces: Vec<u64>,
    /// What goes into all pieces, skips included.
    boundaries: u64,
}

impl Footprint {
    /// For latents of `(height, width)`.
    ///
    /// A resnet keeps its input normed, and six maps of its output's size (convolution, plus timestep, norm, convolution,
    /// shortcut, sum); an attention four maps around its blocks, and each block 30: three norms, self-attention's three
    /// projections, result, output and sum, cross-attention's four, the feed-forward's 8 + 4 + 1 + 1, and rounding up.
    ///
    /// If only cross-attention is trained, what frozen layers read goes at once (`nn::release`): a resnet keeps two maps (after the
    /// timestep, and the sum), an attention two around its blocks, and each block 18: self-attention's projections, result and sum,
    /// cross-attention's norm, queries, result and sum, the feed-forward's 8 and sum.
    pub fn new(c: &UnetConfig, (height, width): (usize, usize), only_cross_attention: bool) -> Self {
        let pixels = |level: usize| (height >> level).max(1) * (width >> level).max(1);
        let (around, block, upsampled) = if only_cross_attention { (2, 18, 1) } else { (6, 30, 2) };
        let resnet = |inputs: usize, outputs: usize, level: usize| {
            (if only_cross_attention { 2 * outputs } else { inputs + 6 * outputs }) * pixels(level)
        };
        let attention = |level: usize| {
            let blocks = c.transformer_layers_per_block.at(level);
            (around + block * blocks) * c.block_out_channels[level] * pixels(level)
        };
        let channels = |level: usize| c.block_out_channels[level];
        let top = c.levels() - 1;
        let mut pieces = vec![channels(0) * pixels(0)];
        let mut boundaries = c.in_channels * pixels(0) + channels(0) * pixels(0);
        for level in 0..c.levels() {
            let cross = c.down_block_types[level] == "CrossAttnDownBlock2D";
            for j in 0..c.layers_per_block {
                let inputs = if j == 0 { channels(level.saturating_sub(1)) } else { channels(level) };
                pieces.push(resnet(inputs, channels(level), level) + if cross { attention(level) } else { 0 });
                boundaries += channels(level) * pixels(level);
            }
            if level < top {
                pieces.push(channels(level) * pixels(level + 1));
                boundaries += channels(level) * pixels(level + 1);
            }
        }
        pieces.push(2 * resnet(channels(top), channels(top), top) + attention(top));
        boundaries += channels(top) * pixels(top);
        for i in 0..c.levels() {
            let level = top - i;
            let cross = c.up_block_types[i] == "CrossAttnUpBlock2D";
            for j in 0..=c.layers_per_block {
                let skip = if j == c.layers_per_block { channels(level.saturating_sub(1)) } else { channels(level) };
                let below = if j == 0 { channels((level + 1).min(top)) } else { channels(level) };
                // the joined input, and the same normed
                let piece = (below + skip) * pixels(level) + resnet(below + skip, channels(level), level);
                pieces.push(piece + if cross { attention(level) } else { 0 });
                boundaries += channels(level) * pixels(level);
            }
            if level > 0 {
                pieces.push(upsampled * channels(level) * pixels(level - 1));
                boundaries += channels(level) * pixels(level - 1);
            }
        }
        pieces.push((channels(0) + c.out_channels) * pixels(0));
        Self { pieces: pieces.into_iter().map(|piece| piece as u64).collect(), boundaries: boundaries as u64 }
    }

    /// With the whole graph.
    pub fn dense(&self) -> u64 {
        self.pieces.iter().sum()
    }

    /// With checkpoints: all boundaries, and the largest piece with half as much again, which its backward pass takes at first.
    pub fn checkpointed(&self) -> u64 {
        self.boundaries + self.pieces.iter().max().map_or(0, |largest| largest / 2 * 3)
    }
}
