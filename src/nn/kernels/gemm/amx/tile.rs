//! The innermost loops: up to two by two tiles of the result stay in tile registers over a part of the inner dimension, while vectors do
//! what else there is to do ([`Shadow`]).
//!
//! Tiles multiply for sixteen cycles or more at each instruction, and need little else of the core; vector instructions that stand
//! between them cost next to nothing.

use super::SIDE;
use super::shadow::Shadow;
use std::arch::asm;
use std::marker::PhantomData;

/// Rows and columns of four tiles.
pub const SQUARE: usize = 2 * SIDE;

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

/// The product of `DOWN` by `ACROSS` tiles, of so many chunks of the inner dimension.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Where the first and the second rows of tiles begin, and the columns.
    pub operands: [*const u8; 4],
    pub chunks: usize,
}

/// Loads the tiles of a part of the left operand.
#[inline(always)]
unsafe fn left<const DOWN: usize>([a, b, ..]: [*const u8; 4], part: usize) {
    // SAFETY: the caller vouches for the tiles.
    unsafe {
        asm!("tileloadd tmm4, [{} + {}]", in(reg) a.add(part * 1024), in(reg) 64usize, options(nostack, readonly));
        if DOWN == 2 {
            asm!("tileloadd tmm5, [{} + {}]", in(reg) b.add(part * 1024), in(reg) 64usize, options(nostack, readonly));
        }
    }
}

/// Loads those of the right one.
#[inline(always)]
unsafe fn right<const ACROSS: usize>([.., c, d]: [*const u8; 4], part: usize) {
    // SAFETY: the caller vouches for the tiles.
    unsafe {
        asm!("tileloadd tmm6, [{} + {}]", in(reg) c.add(part * 1024), in(reg) 64usize, options(nostack, readonly));
        if ACROSS == 2 {
            asm!("tileloadd tmm7, [{} + {}]", in(reg) d.add(part * 1024), in(reg) 64usize, options(nostack, readonly));
        }
    }
}

/// All products of these, and something meanwhile.
#[inline(always)]
unsafe fn times<const LEFT: usize, const DOWN: usize, const ACROSS: usize>(shadow: &mut Shadow<'_>) {
    // SAFETY: reads and writes tile registers alone; the caller vouches for what is done meanwhile.
    unsafe {
        asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem));
        if ACROSS == 2 {
            asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem));
        }
        if DOWN == 2 {
            asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem));
        }
        if DOWN == 2 && ACROSS == 2 {
            asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem));
        }
        if LEFT == 1 { shadow.step::<1>() } else { shadow.step::<3>() }
    }
}

/// So many products of a chunk's parts.
pub(super) fn steps(left_parts: usize, right_parts: usize) -> usize {
    match (left_parts, right_parts) {
        (3, 3) => 6,
        (3, 2) | (2, 3) => 5,
        (2, 2) => 4,
        _ => 1,
    }
}

impl Kernel {
    /// The product of operands of so many parts, of `down` by `across` tiles.
    ///
    /// # Safety
    /// All operands must have `chunks` tiles of each part; what `shadow` is to do must be valid.
    pub unsafe fn run(
        self,
        (left_parts, right_parts): (usize, usize),
        (down, across): (usize, usize),
        sums: *mut Sums,
        shadow: &mut Shadow<'_>,
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match (left_parts, right_parts) {
                (3, 3) => self.of::<3, 3>((down, across), sums, shadow),
                (3, 2) => self.of::<3, 2>((down, across), sums, shadow),
                (2, 3) => self.of::<2, 3>((down, across), sums, shadow),
                (2, 2) => self.of::<2, 2>((down, across), sums, shadow),
                _ => self.of::<1, 1>((down, across), sums, shadow),
            }
        }
    }

    #[inline(always)]
    unsafe fn of<const LEFT: usize, const RIGHT: usize>(
        self,
        size: (usize, usize),
        sums: *mut Sums,
        shadow: &mut Shadow<'_>,
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match size {
                (2, 2) => self.multiply::<LEFT, RIGHT, 2, 2>(sums, shadow),
                (2, _) => self.multiply::<LEFT, RIGHT, 2, 1>(sums, shadow),
                (_, 2) => self.multiply::<LEFT, RIGHT, 1, 2>(sums, shadow),
                _ => self.multiply::<LEFT, RIGHT, 1, 1>(sums, shadow),
            }
        }
    }

    /// Of each chunk the small products first, the largest last; the order is that of three parts by three, without what a missing part
    /// would give.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply<const LEFT: usize, const RIGHT: usize, const DOWN: usize, const ACROSS: usize>(
        self,
        sums: *mut Sums,
        shadow: &mut Shadow<'_>,
    ) {
        let mut operands = self.operands;
        // SAFETY: reads what the caller vouches for, and writes `sums`. Nothing but this module touches tile registers, so that they keep
        // what they hold from one instruction to the next.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            for _ in 0..self.chunks {
                let at = operands;
                if LEFT > 2 {
                    left::<DOWN>(at, 2);
                    right::<ACROSS>(at, 0);
                    times::<LEFT, DOWN, ACROSS>(shadow);
                }
                if LEFT > 1 {
                    left::<DOWN>(at, 1);
                    if LEFT == 2 {
                        right::<ACROSS>(at, 0);
                    }
                    times::<LEFT, DOWN, ACROSS>(shadow);
                    right::<ACROSS>(at, 1);
                    times::<LEFT, DOWN, ACROSS>(shadow);
                }
                left::<DOWN>(at, 0);
                if RIGHT > 1 {
                    times::<LEFT, DOWN, ACROSS>(shadow);
                }
                if RIGHT > 2 {
                    right::<ACROSS>(at, 2);
                    times::<LEFT, DOWN, ACROSS>(shadow);
                }
                right::<ACROSS>(at, 0);
                times::<LEFT, DOWN, ACROSS>(shadow);
                let [a, b, c, d] = at;
                let (l, r) = (LEFT * 1024, RIGHT * 1024);
                operands = [a.wrapping_add(l), b.wrapping_add(l), c.wrapping_add(r), d.wrapping_add(r)];
            }
            let (sums, wide) = (sums.cast::<f32>(), 4 * SQUARE);
            asm!("tilestored [{} + {}], tmm0", in(reg) sums, in(reg) wide, options(nostack));
            if ACROSS == 2 {
                asm!("tilestored [{} + {}], tmm1", in(reg) sums.add(SIDE), in(reg) wide, options(nostack));
            }
            let sums = sums.add(SIDE * SQUARE);
            if DOWN == 2 {
                asm!("tilestored [{} + {}], tmm2", in(reg) sums, in(reg) wide, options(nostack));
            }
            if DOWN == 2 && ACROSS == 2 {
                asm!("tilestored [{} + {}], tmm3", in(reg) sums.add(SIDE), in(reg) wide, options(nostack));
            }
        }
    }
}
