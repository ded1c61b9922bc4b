//! Sums over chunks of channels and the nine taps of a 3x3 kernel, of operands in `bf16`: the right operand is the same map for each
//! tap, shifted.

// What std's adaptors do not inline would be compiled for the baseline instruction set.
#![allow(clippy::needless_range_loop)]

use super::SIDE;
use super::split::Line;
use super::tile::{SQUARE, Sums, Tiles};
use std::arch::asm;
use std::arch::x86_64::*;

/// Channels of a chunk: channels `j` and `SIDE + j` lie side by side, as a pair.
pub const CHANNELS: usize = super::CHUNK;
/// Taps.
const TAPS: usize = 9;

/// Of the numbers of a line in tap `t` and in vector `v` of a chunk's weights: `BITS[t][v]` says which of them lie there, and
/// `PLACES[t]` where in their vector.
static PLACES: [[u16; 2 * SIDE]; TAPS] = {
    let mut places = [[0; 2 * SIDE]; TAPS];
    let mut i = 0;
    while i < TAPS * 2 * SIDE {
        places[i / (2 * SIDE)][i % (2 * SIDE)] = (source(i) % CHANNELS) as u16;
        i += 1;
    }
    places
};
static BITS: [[u32; TAPS]; TAPS] = {
    let mut bits = [[0; TAPS]; TAPS];
    let mut i = 0;
    while i < TAPS * 2 * SIDE {
        bits[i / (2 * SIDE)][source(i) / CHANNELS] |= 1 << (i % (2 * SIDE));
        i += 1;
    }
    bits
};

/// Which of a chunk's weights, nine of each channel, is number `i` of its lines, one line a tap.
const fn source(i: usize) -> usize {
    let (tap, place) = (i / (2 * SIDE), i % (2 * SIDE));
    (place / 2 + place % 2 * SIDE) * TAPS + tap
}

/// A chunk's weights of one output, to its lines, `SIDE` apart.
///
/// # Safety
/// There must be as many weights, and room for nine lines so far apart; the machine must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn spread(weights: *const u16, lines: *mut Line) {
    // SAFETY: the caller vouches for it.
    unsafe {
        let mut vectors = [_mm512_setzero_si512(); TAPS];
        for v in 0..TAPS {
            vectors[v] = _mm512_loadu_si512(weights.add(v * CHANNELS).cast());
        }
        for tap in 0..TAPS {
            let places = _mm512_loadu_si512(PLACES[tap].as_ptr().cast());
            let mut line = _mm512_setzero_si512();
            for v in 0..TAPS {
                line = _mm512_mask_permutexvar_epi16(line, BITS[tap][v], places, vectors[v]);
            }
            _mm512_store_si512(lines.add(tap * SIDE).cast(), line);
        }
    }
}

/// Three taps side by side.
macro_rules! taps {
    ($first:literal, $row:literal) => {
        concat!(taps!(@tap $first, "0", $row), taps!(@tap $first, "1", $row), taps!(@tap $first, "2", $row))
    };
    (@tap $first:literal, $x:literal, $row:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {row} + (", $first, " + ", $x, ") * 1024]\n",
            "tileloadd tmm6, [{", $row, "} + {plane} + ", $x, " * 4]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{", $row, "} + {plane} + 64 + ", $x, " * 4]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{b} + {row} + (", $first, " + ", $x, ") * 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// The weights of [`SQUARE`] outputs: of each chunk of channels and each tap, two tiles of `bf16`.
#[derive(Default)]
pub struct Weights {
    lines: Vec<Line>,
    chunks: usize,
}

impl Weights {
    /// Makes room for those between so many channels and so many outputs, all of which are to be set.
    pub fn begin(&mut self, channels: usize, outputs: usize) {
        self.chunks = channels.div_ceil(CHANNELS);
        let lines = super::split::grown(&mut self.lines, 2 * self.chunks * TAPS * SIDE);
        if !channels.is_multiple_of(CHANNELS) || outputs < SQUARE {
            lines.fill(Line::new([0; SIDE]));
        }
    }

    /// All weights of one of the outputs, nine of each channel: chunk by chunk, as long as they are whole.
    ///
    /// # Returns
    /// How many channels were set.
    pub fn set_output(&mut self, output: usize, taps: &[u16]) -> usize {
        let whole = taps.len() / (TAPS * CHANNELS);
        for chunk in 0..whole {
            let tile = (output / SIDE * self.chunks + chunk) * TAPS * SIDE + output % SIDE;
            let lines = &mut self.lines[tile..tile + (TAPS - 1) * SIDE + 1];
            // SAFETY: the chunk's weights are there, and so are its lines; whoever uses this has AMX, and thereby AVX-512.
            unsafe { spread(taps[chunk * TAPS * CHANNELS..][..TAPS * CHANNELS].as_ptr(), lines.as_mut_ptr()) };
        }
        whole * CHANNELS
    }

    /// The nine weights between a channel and one of the outputs.
    #[inline(always)]
    pub fn set(&mut self, output: usize, channel: usize, taps: [u16; TAPS]) {
        let (chunk, place) = (channel / CHANNELS, channel % SIDE * 2 + channel % CHANNELS / SIDE);
        let tile = (output / SIDE * self.chunks + chunk) * TAPS * SIDE + output % SIDE;
        for (tap, weight) in taps.into_iter().enumerate() {
            self.lines[tile + tap * SIDE].halves()[place] = weight;
        }
    }

    /// `sums[output][position]` of [`SQUARE`] positions: over chunks, channels and taps `(ky, kx)` of weight times
    /// `planes[(chunk SIDE + pair) plane + ky pitch + kx + position]`.
    pub fn sum(&self, _: &Tiles, planes: &[u32], (plane, pitch): (usize, usize), sums: &mut Sums) {
        let last = (self.chunks * SIDE - 1) * plane + 2 * pitch + 2 + SQUARE;
        assert!(self.chunks > 0 && last <= planes.len(), "the planes are too small");
        let a = self.lines.as_ptr();
        let c = planes.as_ptr();
        // SAFETY: the weights have as many tiles; of the planes nothing past `last` is read, which was checked.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                taps!("0", "c"), taps!("3", "d"), taps!("6", "e"),
                "add {a}, 9 * 1024", "add {b}, 9 * 1024",
                "add {c}, {next}", "add {d}, {next}", "add {e}, {next}",
                "dec {chunks}", "jnz 2b",
                "tilestored [{sums} + {row} * 2], tmm0",
                "tilestored [{sums} + {row} * 2 + 64], tmm1",
                "tilestored [{sums} + {row} * 2 + 2048], tmm2",
                "tilestored [{sums} + {row} * 2 + 2112], tmm3",
                a = inout(reg) a => _,
                b = inout(reg) a.add(self.chunks * TAPS * SIDE) => _,
                c = inout(reg) c => _,
                d = inout(reg) c.add(pitch) => _,
                e = inout(reg) c.add(2 * pitch) => _,
                plane = in(reg) 4 * plane,
                next = in(reg) 4 * SIDE * plane,
                chunks = inout(reg) self.chunks => _,
                row = in(reg) 64usize,
                sums = in(reg) sums.0.as_mut_ptr(),
                options(nostack),
            );
        }
    }
}
