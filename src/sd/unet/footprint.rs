//! How many numbers a training pass through the network keeps, counted from its config.

use super::UnetConfig;

/// Numbers kept for each row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Of each piece of the network: what its operations keep.
    pieces: Vec<u64>,
    /// What goes into all pieces, skips included.
    boundaries: u64,
    /// What all pieces keep where what is cheap to make again is not kept.
    lean: u64,
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
    ///
    /// Where what is cheap to make again is not kept (`nn::forget`), a resnet keeps two or three maps, and an attention one or two around
    /// its blocks, each of which keeps its input and self-attention's result (more, to be safe, if everything is trained).
    pub fn new(c: &UnetConfig, size: (usize, usize), only_cross_attention: bool) -> Self {
        let (resnet, attention) = if only_cross_attention { ((0, 2), (2, 18, 1)) } else { ((1, 6), (6, 30, 2)) };
        let (lean_resnet, lean_attention) =
            if only_cross_attention { ((0, 2), (1, 2, 1)) } else { ((1, 3), (2, 3, 1)) };
        let (pieces, boundaries) = Self::counted(c, size, resnet, attention);
        let lean = Self::counted(c, size, lean_resnet, lean_attention).0.iter().sum();
        Self { pieces, boundaries, lean }
    }

    /// Each piece, and what goes into all of them. A resnet keeps `(inputs, outputs)` maps of its input's and output's size; an attention
    /// so many maps around its blocks, in each block, and of a map that is enlarged.
    fn counted(
        c: &UnetConfig,
        (height, width): (usize, usize),
        resnet_maps: (usize, usize),
        (around, block, upsampled): (usize, usize, usize),
    ) -> (Vec<u64>, u64) {
        let pixels = |level: usize| (height >> level).max(1) * (width >> level).max(1);
        let resnet = |inputs: usize, outputs: usize, level: usize| {
            (resnet_maps.0 * inputs + resnet_maps.1 * outputs) * pixels(level)
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
        (pieces.into_iter().map(|piece| piece as u64).collect(), boundaries as u64)
    }

    /// With the whole graph.
    pub fn dense(&self) -> u64 {
        self.pieces.iter().sum()
    }

    /// Without what is cheap to make again, but for one piece at a time.
    pub fn lean(&self) -> u64 {
        self.lean + self.pieces.iter().max().copied().unwrap_or_default()
    }

    /// With checkpoints: all boundaries, and the largest piece with half as much again, which its backward pass takes at first.
    pub fn checkpointed(&self) -> u64 {
        self.boundaries + self.pieces.iter().max().map_or(0, |largest| largest / 2 * 3)
    }
}
