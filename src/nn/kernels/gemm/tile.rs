//! The innermost loops: a tile of the result stays in registers over a block of the inner dimension.
//!
//! `A` comes packed in tiles of [`Instructions::height`] rows, `(tile, k, rows of the tile)`, `B` in panels of [`WIDE`] vectors of
//! columns, `(panel, k, columns)`; a last panel that has no more than one vector of columns is one vector wide. Each element of
//! the result is one chain of multiply-adds in order of `k`, so that it does not matter how a product is cut.

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::simd::prefetch;

/// Vectors of a panel.
const WIDE: usize = 2;

impl Instructions {
    /// Floats of a vector.
    pub fn lanes(self) -> usize {
        match self {
            Self::Amx | Self::Avx512 => 16,
            Self::Avx2 => 8,
            Self::Portable => Portable::LANES,
        }
    }

    /// Columns of a panel.
    pub fn columns(self) -> usize {
        WIDE * self.lanes()
    }

    /// Rows of the tiles of `m` rows, but for the last: about alike, as one of few rows takes as long as one of more.
    pub(super) fn height(self, m: usize) -> usize {
        height(m, self.rows())
    }

    /// Rows of a tile at most: as many as the registers hold.
    pub fn rows(self) -> usize {
        match self {
            Self::Amx | Self::Avx512 => 14,
            _ => 6,
        }
    }
}

#[inline(always)]
fn height(m: usize, most: usize) -> usize {
    m.div_ceil(m.div_ceil(most).max(1))
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Onto<'a> {
    /// Nothing.
    Nothing,
    /// What lies there already.
    Before,
    /// The same row everywhere.
    Row(&'a [f32]),
}

impl Onto<'_> {
    /// A row must have an element for each of `n` columns.
    pub(super) fn check(self, n: usize) {
        if let Self::Row(row) = self {
            assert!(row.len() >= n, "the row to add is too short");
        }
    }

    /// Where the rows of a tile are read, and how far they are apart.
    #[inline(always)]
    pub(super) fn place(&self, dst: *const f32, stride: usize) -> (*const f32, usize) {
        static ZEROS: [f32; WIDE * 16] = [0.0; WIDE * 16];
        match self {
            Self::Nothing => (ZEROS.as_ptr(), 0),
            Self::Before => (dst, stride),
            Self::Row(row) => (row.as_ptr(), 0),
        }
    }

    /// The same from column `j` on.
    pub fn from(self, j: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[j..]),
            other => other,
        }
    }

    /// The same for the first part of the inner dimension; the others come onto what lies there.
    pub(super) fn part(self, first: bool) -> Self {
        if first { self } else { Onto::Before }
    }
}

/// Where a left operand lies.
#[derive(Clone, Copy)]
pub(super) enum Left {
    /// Packed in tiles.
    Tiles(*const f32),
    /// Rows, so far apart, whose elements are neighbours.
    Rows(*const f32, usize),
    /// From a row on, panels of [`Instructions::columns`] of the inner dimension, one after the other, each so many rows of whole
    /// vectors.
    Panels { at: *const f32, rows: usize, row: usize },
}

impl Left {
    /// The same from row `i` on, where tiles begin, of `k` columns.
    #[inline(always)]
    unsafe fn from(self, i: usize, k: usize) -> Self {
        // SAFETY: the caller knows that there are so many rows.
        unsafe {
            match self {
                Self::Tiles(at) => Self::Tiles(at.add(i * k)),
                Self::Rows(at, apart) => Self::Rows(at.add(i * apart), apart),
                Self::Panels { at, rows, row } => Self::Panels { at, rows, row: row + i },
            }
        }
    }
}

/// A block of a product: `dst = scale a b + onto` over `k` of the inner dimension.
#[derive(Clone, Copy)]
pub(super) struct Block<'o> {
    /// Rows and columns.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The operands; the right one is packed.
    pub a: Left,
    pub b: *const f32,
    /// Where the result goes, its rows `stride` apart.
    pub dst: *mut f32,
    pub stride: usize,
    pub onto: Onto<'o>,
    pub scale: f32,
}

impl Block<'_> {
    /// Computes it.
    ///
    /// # Safety
    /// The machine must have the path's instructions, and the pointers be valid for the sizes.
    pub(super) unsafe fn run(self, path: Instructions) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match path {
                #[cfg(target_arch = "x86_64")]
                Instructions::Amx | Instructions::Avx512 => avx512(self),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => avx2(self),
                _ => portable(self),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(block: Block<'_>) {
    // SAFETY: see `Block::run`.
    unsafe { panels::<Avx512, 14>(block) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(block: Block<'_>) {
    // SAFETY: see `Block::run`.
    unsafe { panels::<Avx2, 6>(block) }
}

unsafe fn portable(block: Block<'_>) {
    // SAFETY: see `Block::run`.
    unsafe { panels::<Portable, 6>(block) }
}

/// All tiles of a block, panel by panel.
#[inline(always)]
unsafe fn panels<T: Vector, const ROWS: usize>(block: Block<'_>) {
    let wide = WIDE * T::LANES;
    let mut j = 0;
    while j < block.n {
        let columns = wide.min(block.n - j);
        // SAFETY: panel and tile lie within the packed operands, the block's columns within `dst`.
        unsafe {
            let onto = block.onto.from(j);
            let at = Block { b: block.b.add(j * block.k), dst: block.dst.add(j), n: columns, onto, ..block };
            if columns > T::LANES { column::<T, WIDE, ROWS>(at) } else { column::<T, 1, ROWS>(at) }
        }
        j += wide;
    }
}

/// All tiles of one panel of `V` vectors.
#[inline(always)]
unsafe fn column<T: Vector, const V: usize, const ROWS: usize>(panel: Block<'_>) {
    let (mut i, height) = (0, height(panel.m, ROWS));
    while i < panel.m {
        let rows = height.min(panel.m - i);
        // SAFETY: as above.
        unsafe {
            let at = Block { a: panel.a.from(i, panel.k), dst: panel.dst.add(i * panel.stride), m: rows, ..panel };
            match rows {
                1 => tile::<T, V, 1>(at),
                2 => tile::<T, V, 2>(at),
                3 => tile::<T, V, 3>(at),
                4 => tile::<T, V, 4>(at),
                5 => tile::<T, V, 5>(at),
                6 => tile::<T, V, 6>(at),
                7 if ROWS > 6 => tile::<T, V, 7>(at),
                8 if ROWS > 6 => tile::<T, V, 8>(at),
                9 if ROWS > 6 => tile::<T, V, 9>(at),
                10 if ROWS > 6 => tile::<T, V, 10>(at),
                11 if ROWS > 6 => tile::<T, V, 11>(at),
                12 if ROWS > 6 => tile::<T, V, 12>(at),
                13 if ROWS > 6 => tile::<T, V, 13>(at),
                _ => tile::<T, V, ROWS>(at),
            }
        }
        i += rows;
    }
}

/// The body once for each row or vector below a constant, its number a constant too: an index that is one keeps the sums in
/// registers, where a loop that the compiler may or may not unroll does not.
macro_rules! each {
    ($i:ident < $end:ident, $body:block) => {
        each!($i < $end, $body, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    };
    ($i:ident < $end:ident, $body:block, $($value:literal),*) => {
        $(if $value < $end {
            const $i: usize = $value;
            $body
        })*
    };
}

/// `R` rows by `V` vectors.
#[inline(always)]
#[allow(non_upper_case_globals)]
unsafe fn tile<T: Vector, const V: usize, const R: usize>(at: Block<'_>) {
    // SAFETY: the caller vouches for the operands and `dst`.
    unsafe {
        let mut sums = [[T::zero(); V]; R];
        let mut b = at.b;
        // one element of each row, `apart` from row to row
        macro_rules! step {
            ($a:ident, $apart:expr) => {
                let mut row = [T::zero(); V];
                each!(v < V, { row[v] = T::load(b.add(v * T::LANES)) }, 0, 1);
                each!(r < R, {
                    let value = T::splat(*$a.add(r * $apart));
                    each!(v < V, { sums[r][v] = value.mul_add(row[v], sums[r][v]) }, 0, 1);
                });
                b = b.add(V * T::LANES);
            };
        }
        match at.a {
            Left::Tiles(mut a) => {
                for _ in 0..at.k {
                    step!(a, 1);
                    a = a.add(R);
                }
            }
            Left::Rows(mut a, apart) => {
                for _ in 0..at.k {
                    step!(a, apart);
                    a = a.add(1);
                }
            }
            Left::Panels { at: panels, rows, row } => {
                let wide = WIDE * T::LANES;
                let mut p = 0;
                while p + wide <= at.k {
                    let mut a = panels.add(p * rows + row * wide);
                    let next = a.wrapping_add(rows * wide);
                    each!(r < R, { prefetch(next.wrapping_add(r * wide)) });
                    for _ in 0..wide {
                        step!(a, WIDE * T::LANES);
                        a = a.add(1);
                    }
                    p += wide;
                }
                let apart = (at.k - p).next_multiple_of(T::LANES);
                let mut a = panels.add(p * rows + row * apart);
                for _ in p..at.k {
                    step!(a, apart);
                    a = a.add(1);
                }
            }
        }
        let scale = T::splat(at.scale);
        if at.n == V * T::LANES {
            let (before, apart) = at.onto.place(at.dst, at.stride);
            each!(r < R, {
                each!(
                    v < V,
                    {
                        let before = T::load(before.add(r * apart + v * T::LANES));
                        sums[r][v].mul_add(scale, before).store(at.dst.add(r * at.stride + v * T::LANES));
                    },
                    0,
                    1
                );
            });
            return;
        }
        // the last columns, by way of rows of whole vectors
        let mut whole = [0.0; 14 * WIDE * 16];
        each!(r < R, {
            each!(v < V, { sums[r][v].store(whole.as_mut_ptr().add((r * V + v) * T::LANES)) }, 0, 1);
        });
        let (before, apart) = at.onto.place(at.dst, at.stride);
        for r in 0..R {
            for j in 0..at.n {
                let to = at.dst.add(r * at.stride + j);
                *to = T::fused(whole[r * V * T::LANES + j], at.scale, *before.add(r * apart + j));
            }
        }
    }
}
