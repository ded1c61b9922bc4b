//! The innermost loops: two by two tiles of the result stay in tile registers over a part of the inner dimension.

use super::SIDE;
use super::split::{Line, Split};
use crate::nn::kernels::gemm::Onto;
use crate::nn::kernels::simd::mul_add;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Rows and columns of four tiles.
const SQUARE: usize = 2 * SIDE;

/// A right operand of `n` columns, split in so many parts, and what its product with rows becomes.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub n: usize,
    pub stride: usize,
    pub scale: f32,
    pub onto: Onto<'a>,
    pub right: &'a [Line],
    pub parts: usize,
}

impl Block<'_> {
    /// The columns from `j` on, at most so many.
    pub fn columns(self, j: usize, most: usize, of: Split) -> Self {
        let right = &self.right[j / SIDE * self.panel(of)..];
        Self { n: most.min(self.n - j), onto: self.onto.from(j), right, ..self }
    }

    /// Lines of sixteen columns.
    fn panel(self, of: Split) -> usize {
        Split { parts: self.parts, ..of }.group()
    }
}

/// This thread's tile registers, set up; they are given back in the end, as the system has to keep what they hold.
pub struct Tiles(PhantomData<*mut ()>);

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Needs AMX, for which [`super::Instructions::best`] has asked.
    pub fn begin() -> Self {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill((SIDE * 4) as u16);
        config.rows[..8].fill(SIDE as u8);
        // SAFETY: reads the configuration, which is valid: eight tiles of 16 rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// `dst = scale left right + onto` over one part of the inner dimension.
    ///
    /// # Safety
    /// The operands must be split as said, and `dst` be valid for `of.count` rows of `block.n`, `block.stride` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn run(&self, block: Block<'_>, of: Split, left: &[Line], dst: *mut f32) {
        let (group, panel) = (of.group(), block.panel(of));
        let (groups, panels) = (of.count.div_ceil(SIDE), block.n.div_ceil(SIDE));
        assert!(of.chunks() > 0 && left.len() >= groups * group, "the left operand is too small");
        assert!(block.right.len() >= panels * panel, "the right operand is too small");
        let kernel = match (of.parts, block.parts) {
            (3, 3) => three_by_three,
            (3, 2) => three_by_two,
            (2, 3) => two_by_three,
            (2, 2) => two_by_two,
            _ => one_by_one,
        };
        // of an odd number of tiles the last is multiplied twice
        let pair = |lines: &[Line], at: usize, of: usize, size: usize| {
            let first = lines[at * size..].as_ptr();
            [first, if at + 1 < of { first.wrapping_add(size) } else { first }].map(|lines| lines.cast::<u8>())
        };
        let mut sums = Sums::default();
        for i in (0..of.count).step_by(SQUARE) {
            let [a, b] = pair(left, i / SIDE, groups, group);
            for j in (0..block.n).step_by(SQUARE) {
                let [c, d] = pair(block.right, j / SIDE, panels, panel);
                let size = (SQUARE.min(of.count - i), SQUARE.min(block.n - j));
                let dst = dst.wrapping_add(i * block.stride + j);
                // SAFETY: just checked; the caller vouches for `dst`.
                unsafe {
                    kernel([a, b, c, d], of.chunks(), &mut sums);
                    store(&sums, size, block.scale, block.onto.from(j), dst, block.stride);
                }
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: nothing is read from tiles after this.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Two by two tiles of sums.
#[repr(C, align(64))]
pub struct Sums(pub [f32; SQUARE * SQUARE]);

impl Default for Sums {
    fn default() -> Self {
        Self([0.0; SQUARE * SQUARE])
    }
}

/// Rows and columns of the sums, to where they belong.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(sums: &Sums, (m, n): (usize, usize), scale: f32, onto: Onto<'_>, dst: *mut f32, stride: usize) {
    let (before, apart) = onto.place(dst, stride);
    // SAFETY: the caller vouches for `dst`, and `onto` has as many columns.
    unsafe {
        if n == SQUARE {
            let scale = _mm512_set1_ps(scale);
            for i in 0..m {
                for j in [0, SIDE] {
                    let sum = _mm512_load_ps(sums.0.as_ptr().add(i * SQUARE + j));
                    let before = _mm512_loadu_ps(before.add(i * apart + j));
                    _mm512_storeu_ps(dst.add(i * stride + j), _mm512_fmadd_ps(sum, scale, before));
                }
            }
            return;
        }
        for i in 0..m {
            for j in 0..n {
                *dst.add(i * stride + j) = mul_add::<true>(sums.0[i * SQUARE + j], scale, *before.add(i * apart + j));
            }
        }
    }
}

/// The tiles of a part of the left operand, and of the right one.
macro_rules! left {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {row} + ",
            $at,
            " * 1024]\n",
            "tileloadd tmm5, [{b} + {row} + ",
            $at,
            " * 1024]\n"
        )
    };
}
macro_rules! right {
    ($at:literal) => {
        concat!(
            "tileloadd tmm6, [{c} + {row} + ",
            $at,
            " * 1024]\n",
            "tileloadd tmm7, [{d} + {row} + ",
            $at,
            " * 1024]\n"
        )
    };
}
/// All four products of these.
macro_rules! times {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n"
    };
}

/// Declares the product of operands of so many parts, in the order given: of each chunk the small products first.
macro_rules! kernel {
    ($name:ident, $left:tt, $right:tt, $($step:expr),+) => {
        /// # Safety
        /// All operands must have `chunks` tiles of each part, at least one.
        unsafe fn $name([a, b, c, d]: [*const u8; 4], chunks: usize, sums: &mut Sums) {
            // SAFETY: reads what the caller vouches for, and writes `sums`.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    concat!($($step,)+),
                    concat!("add {a}, ", $left, " * 1024"), concat!("add {b}, ", $left, " * 1024"),
                    concat!("add {c}, ", $right, " * 1024"), concat!("add {d}, ", $right, " * 1024"),
                    "dec {chunks}", "jnz 2b",
                    "tilestored [{sums} + {wide}], tmm0",
                    "tilestored [{sums} + {wide} + 64], tmm1",
                    "tilestored [{sums} + {wide} + 2048], tmm2",
                    "tilestored [{sums} + {wide} + 2112], tmm3",
                    a = inout(reg) a => _, b = inout(reg) b => _, c = inout(reg) c => _, d = inout(reg) d => _,
                    chunks = inout(reg) chunks => _,
                    row = in(reg) 64usize,
                    wide = in(reg) 4 * SQUARE,
                    sums = in(reg) sums.0.as_mut_ptr(),
                    options(nostack),
                );
            }
        }
    };
}

// The order is that of three by three, without what a missing part would give.
kernel!(
    three_by_three,
    3,
    3,
    left!(2),
    right!(0),
    times!(),
    left!(1),
    times!(),
    right!(1),
    times!(),
    left!(0),
    times!(),
    right!(2),
    times!(),
    right!(0),
    times!()
);
kernel!(
    three_by_two,
    3,
    2,
    left!(2),
    right!(0),
    times!(),
    left!(1),
    times!(),
    right!(1),
    times!(),
    left!(0),
    times!(),
    right!(0),
    times!()
);
kernel!(
    two_by_three,
    2,
    3,
    left!(1),
    right!(0),
    times!(),
    right!(1),
    times!(),
    left!(0),
    times!(),
    right!(2),
    times!(),
    right!(0),
    times!()
);
kernel!(two_by_two, 2, 2, left!(1), right!(0), times!(), right!(1), times!(), left!(0), times!(), right!(0), times!());
kernel!(one_by_one, 1, 1, left!(0), right!(0), times!());
