//! 3x3 convolution of stride 1 and padding 1 straight from a zero-padded copy of the input (AVX-512).
//!
//! The copy is flat: rows of `P = W + 1` elements, the last of which is zero and pads both the end of its row and the
//! start of the next; a row of zeros before each sample and after the last. The value that tap `(ky, kx)` meets at flat
//! position `q` lies at `q + (ky - 1) P + (kx - 1)`, so a tap is an offset and 16 neighbouring positions are one vector.
//! Small maps stand side by side in one flat copy so that vectors are full. A tile of 8 output channels by 48 positions
//! stays in registers over all channels and taps of a block; its sums are in one order whatever the number of threads.

use super::Geometry;
use super::kernel::Kernel;
use crate::nn::kernels::gemm::pack_rows;
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{SharedMut, chunks, tasks, unwritten, zeros};

/// Output channels of a tile.
const TILE: usize = 8;
/// Floats of a vector.
const LANES: usize = 16;
/// Positions of a tile.
const SPAN: usize = 3 * LANES;
/// Input channels whose taps are summed before a tile is stored.
const BLOCK: usize = 128;
/// Flat positions that samples of small maps share at least.
const FLAT: usize = 288;

/// Whether this machine can.
pub(super) fn available() -> bool {
    Instructions::used() == Instructions::Avx512
}

/// The kernel in tiles: `(out / 8, in, 9, 8)`; outputs past the last are copies of it or zero.
fn pack(g: &Geometry, kernel: Kernel<'_>) -> Vec<f32> {
    let mut packed = unwritten(g.outputs.div_ceil(TILE) * g.inputs * 9 * TILE);
    chunks(&mut packed, g.inputs * 9 * TILE, |tile, packed| {
        let outputs = TILE.min(g.outputs - tile * TILE);
        match kernel {
            Kernel::Forward(w) => {
                pack_rows(View::new(w.from(tile * TILE * g.taps()), g.taps(), 1), outputs, packed, TILE)
            }
            Kernel::Backward(_) => {
                for (input, taps) in packed.chunks_exact_mut(9 * TILE).enumerate() {
                    for m in 0..TILE {
                        let weights = kernel.taps(g, tile * TILE + m.min(outputs - 1), input);
                        weights.iter().enumerate().for_each(|(t, weight)| taps[t * TILE + m] = *weight);
                    }
                }
            }
        }
    });
    packed
}

/// The flat padded copy of some samples.
struct Flat {
    /// Elements of a row, and of a sample.
    pitch: usize,
    sample: usize,
    /// Samples in one copy.
    group: usize,
    /// Elements of one channel.
    channel: usize,
}

impl Flat {
    fn new(g: &Geometry) -> Self {
        let pitch = g.width + 1;
        let sample = (g.height + 1) * pitch;
        let group = FLAT.div_ceil(sample).clamp(1, g.batch);
        // a row and an element before the first sample; room for the last tile and its taps behind the last
        let channel = (pitch + 1 + group * sample).next_multiple_of(LANES);
        Self { pitch, sample, group, channel }
    }

    /// Flat positions that are computed.
    fn positions(&self) -> usize {
        self.group * self.sample
    }

    /// Elements of the whole copy of a group, with room for the last channel's reads past its end.
    fn len(&self, g: &Geometry) -> usize {
        g.inputs * self.channel + SPAN + 2 * self.pitch + 2
    }

    /// Where row `y` of sample `s` of the group begins.
    fn row(&self, s: usize, y: usize) -> usize {
        s * self.sample + y * self.pitch
    }
}

/// `y = kernel * x + bias` with `x` `(B, in, H, W)` and `y` `(B, out, H, W)`.
pub(super) fn convolve(g: &Geometry, x: &[f32], kernel: Kernel<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    let flat = Flat::new(g);
    let groups = g.batch.div_ceil(flat.group);
    let packed = pack(g, kernel);
    let pixels = g.height * g.width;
    let fill = |group: usize, copy: &mut [f32]| {
        for s in 0..flat.group.min(g.batch - group * flat.group) {
            let sample = &x[(group * flat.group + s) * g.in_sample()..][..g.in_sample()];
            for (c, map) in sample.chunks_exact(pixels).enumerate() {
                for (row, line) in map.chunks_exact(g.width).enumerate() {
                    let start = c * flat.channel + flat.pitch + 1 + flat.row(s, row);
                    copy[start..start + g.width].copy_from_slice(line);
                }
            }
        }
    };
    let tiles = g.outputs.div_ceil(TILE);
    // with many groups, one task copies a group and makes all of its tiles while the copy is in its core's cache
    let together = if groups >= 8 { tiles } else { 1 };
    let cuts = tiles.div_ceil(together);
    let mut copies = zeros(if cuts > 1 { groups * flat.len(g) } else { 0 });
    if cuts > 1 {
        chunks(&mut copies, flat.len(g), fill);
    }
    let out = SharedMut::new(y);
    tasks(groups * cuts, |task| {
        let (group, first) = (task / cuts, task % cuts * together);
        let own;
        let copy = if cuts > 1 {
            &copies[group * flat.len(g)..][..flat.len(g)]
        } else {
            let mut copy = vec![0.0; flat.len(g)];
            fill(group, &mut copy);
            own = copy;
            &own[..]
        };
        let width = flat.positions().next_multiple_of(LANES);
        let mut sums = unwritten(TILE * width);
        for tile in first..(first + together).min(tiles) {
            let weights = &packed[tile * g.inputs * 9 * TILE..][..g.inputs * 9 * TILE];
            accumulate(&flat, copy, weights, &mut sums, width);
            for m in 0..TILE.min(g.outputs - tile * TILE) {
                let output = tile * TILE + m;
                let bias = bias.map_or(0.0, |bias| bias[output]);
                for s in 0..flat.group.min(g.batch - group * flat.group) {
                    let offset = ((group * flat.group + s) * g.outputs + output) * pixels;
                    // SAFETY: this map belongs to this task alone; `slice` checks the bounds.
                    let map = unsafe { out.slice(offset, pixels) };
                    for (row, line) in map.chunks_exact_mut(g.width).enumerate() {
                        let sums = &sums[m * width + flat.row(s, row)..];
                        line.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum + bias);
                    }
                }
            }
        }
    });
}

/// The sums of 8 output channels at every flat position, `(8, width)`.
fn accumulate(flat: &Flat, copy: &[f32], weights: &[f32], sums: &mut [f32], width: usize) {
    #[cfg(target_arch = "x86_64")]
    for (block, weights) in weights.chunks(BLOCK * 9 * TILE).enumerate() {
        let copy = &copy[block * BLOCK * flat.channel..];
        let channels = weights.len() / (9 * TILE);
        let mut q = 0;
        while q < width {
            let vectors = ((width - q) / LANES).min(3);
            let reach = (channels - 1) * flat.channel + q + vectors * LANES + 2 * flat.pitch + 2;
            assert!(reach <= copy.len() && (TILE - 1) * width + q + vectors * LANES <= sums.len());
            let (source, target) = (copy[q..].as_ptr(), sums[q..].as_mut_ptr());
            let sizes = Sizes { channels, channel: flat.channel, pitch: flat.pitch, width, add: block > 0 };
            // SAFETY: `available` found AVX-512; reads reach at most `reach` and writes the end of the last row's
            // vectors, both checked.
            unsafe {
                match vectors {
                    3 => tile::<3>(source, weights, target, sizes),
                    2 => tile::<2>(source, weights, target, sizes),
                    _ => tile::<1>(source, weights, target, sizes),
                }
            }
            q += vectors * LANES;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (flat, copy, weights, sums, width);
}

/// What a tile needs to know of its surroundings.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Sizes {
    channels: usize,
    channel: usize,
    pitch: usize,
    width: usize,
    add: bool,
}

/// `sums (8 rows, width apart, V vectors) (+)= weights (channels, 9, 8) * source`.
///
/// # Safety
/// Needs AVX-512; see `accumulate` for the bounds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile<const V: usize>(source: *const f32, weights: &[f32], sums: *mut f32, s: Sizes) {
    use std::arch::x86_64::*;
    let mut acc = [[_mm512_setzero_ps(); V]; TILE];
    let mut w = weights.as_ptr();
    // SAFETY: the caller vouches for every address below.
    unsafe {
        if s.add {
            for (m, row) in acc.iter_mut().enumerate() {
                for (v, acc) in row.iter_mut().enumerate() {
                    *acc = _mm512_loadu_ps(sums.add(m * s.width + v * LANES));
                }
            }
        }
        for c in 0..s.channels {
            let map = source.add(c * s.channel);
            for ky in 0..3 {
                for kx in 0..3 {
                    let at = map.add(ky * s.pitch + kx);
                    let mut x = [_mm512_setzero_ps(); V];
                    for (v, x) in x.iter_mut().enumerate() {
                        *x = _mm512_loadu_ps(at.add(v * LANES));
                    }
                    for (m, row) in acc.iter_mut().enumerate() {
                        let weight = _mm512_set1_ps(*w.add(m));
                        for (acc, x) in row.iter_mut().zip(&x) {
                            *acc = _mm512_fmadd_ps(weight, *x, *acc);
                        }
                    }
                    w = w.add(TILE);
                }
            }
        }
        for (m, row) in acc.iter().enumerate() {
            for (v, acc) in row.iter().enumerate() {
                _mm512_storeu_ps(sums.add(m * s.width + v * LANES), *acc);
            }
        }
    }
}
