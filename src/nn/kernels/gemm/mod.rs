//! Products of matrices in `f32`, made for many shapes with a short side and for operands that are used again.
//!
//! Blocked as in Goto & van de Geijn, «Anatomy of High-Performance Matrix Multiplication» (2008): `B` is packed in panels that
//! one pass of a tile reads from end to end, `A` in tiles, and a tile of the result stays in registers ([`tile`]). The sum over
//! the inner dimension is cut by its length alone, and each part is one chain in order: a product gives the same bits however
//! its rows and columns are cut among tasks.

mod pack;
mod tile;
mod vector;

use super::instructions::Instructions;
use super::matmul::View;
use super::parallel::{SharedMut, tasks, unwritten};
pub use pack::pack_rows;
use pack::{SLACK, pack};
use std::cell::RefCell;
use tile::Block;
pub use tile::Onto;

/// Elements of the inner dimension that are summed in registers at most.
const DEPTH: usize = 384;
/// Tiles of `A` that are packed together: they stay in the core's cache while the panels of `B` pass.
const TILES: usize = 8;
/// Panels of `B` that [`product`] packs together.
const PANELS: usize = 16;

thread_local! {
    /// Packed tiles and panels of this thread, kept from product to product.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// The first `n` elements of a buffer that grows as needed.
fn grown(buffer: &mut Vec<f32>, n: usize) -> *mut f32 {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    buffer.as_mut_ptr()
}

/// How the inner dimension is cut: parts of this many, the last shorter.
fn depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1)
}

/// The order of a packed right operand, `k x n`.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    path: Instructions,
    k: usize,
    n: usize,
}

impl Order {
    /// For this machine.
    pub fn new(k: usize, n: usize) -> Self {
        Self { path: Instructions::used(), k, n }
    }

    /// Columns that lie in each row of the parts: `n`, the last panel rounded up to whole vectors.
    pub fn width(self) -> usize {
        self.n.next_multiple_of(self.path.lanes())
    }

    /// Elements of the packed operand, with room to write past the end.
    pub fn len(self) -> usize {
        self.k * self.width() + SLACK
    }

    /// Columns that lie side by side, from a multiple of so many on.
    pub fn columns(self) -> usize {
        self.path.columns()
    }

    /// Where element `(p, j)` lies; the columns after it in its panel follow it.
    pub fn at(self, p: usize, j: usize) -> usize {
        let (depth, columns) = (depth(self.k), self.columns());
        let (part, panel) = (p / depth * depth, j / columns * columns);
        let rows = depth.min(self.k - part);
        let pitch = columns.min(self.width() - panel);
        part * self.width() + panel * rows + (p - part) * pitch + j - panel
    }

    /// Packs columns `from.. to` (`from` a multiple of [`Order::columns`]) of part `part` of the inner dimension.
    ///
    /// # Safety
    /// `b` must be `k x n`, and the packed panels this task's alone.
    unsafe fn fill(self, b: View<'_>, part: usize, (from, to): (usize, usize), packed: SharedMut) {
        let depth = depth(self.k);
        let rows = depth.min(self.k - part * depth);
        for j in (from..to).step_by(self.columns()) {
            let count = self.columns().min(self.n - j);
            let pitch = count.next_multiple_of(self.path.lanes());
            let place = packed.at(self.at(part * depth, j), rows * pitch);
            // SAFETY: the caller vouches for `b`; as `pitch` is whole vectors, nothing past the panel is written.
            unsafe { pack(self.path, b.from(part * depth, j).t(), (count, rows), place, pitch) };
        }
    }
}

/// A right operand, packed once for many products.
pub struct Packed {
    order: Order,
    values: Vec<f32>,
}

impl Packed {
    /// Packs `b`, `k x n`, by all threads.
    pub fn new(k: usize, n: usize, b: View<'_>) -> Self {
        let order = Order::new(k, n);
        assert!(b.has(k, n), "the right matrix is too small");
        let mut values = unwritten(order.len());
        let (parts, across) = (k.div_ceil(depth(k)), n.div_ceil(PANELS * order.columns()));
        let shared = SharedMut::new(&mut values);
        tasks(parts * across, |task| {
            let from = task % across * PANELS * order.columns();
            let to = n.min(from + PANELS * order.columns());
            // SAFETY: just checked; each task has its own panels.
            unsafe { order.fill(b, task / across, (from, to), shared) };
        });
        Self { order, values }
    }

    /// What is needed to multiply by it.
    pub fn panels(&self) -> Panels<'_> {
        Panels { order: self.order, values: &self.values }
    }
}

/// A packed right operand that lies somewhere.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    order: Order,
    values: &'a [f32],
}

impl<'a> Panels<'a> {
    /// Values in this order, [`Order::len`] of them (the last sixteen are never read).
    pub fn new(order: Order, values: &'a [f32]) -> Self {
        assert!(values.len() + SLACK >= order.len(), "the packed matrix is too small");
        Self { order, values }
    }

    /// Packs `b` into `values`, [`Order::len`] of them, on this thread.
    pub fn pack(order: Order, b: View<'_>, values: &'a mut [f32]) -> Self {
        assert!(b.has(order.k, order.n) && values.len() >= order.len(), "the right matrix is too small");
        let shared = SharedMut::new(values);
        for part in 0..order.k.div_ceil(depth(order.k)) {
            // SAFETY: just checked; nobody else has `values`.
            unsafe { order.fill(b, part, (0, order.n), shared) };
        }
        Self { order, values }
    }

    /// Columns of a panel: what a cut must be a multiple of.
    pub fn columns(&self) -> usize {
        self.order.columns()
    }

    /// `dst = scale a b[.., from..from + n] + onto` on this thread; `a` is `m x k`, `dst` has rows `stride` apart.
    ///
    /// # Safety
    /// `dst` must be valid for `m` rows of `n` elements, which no other thread touches.
    pub unsafe fn multiply(
        self,
        (m, from, n): (usize, usize, usize),
        a: View<'_>,
        dst: *mut f32,
        stride: usize,
        onto: Onto<'_>,
        scale: f32,
    ) {
        let Order { path, k, .. } = self.order;
        SCRATCH.with_borrow_mut(|(tiles, _)| {
            let rows = TILES * path.rows();
            for i in (0..m).step_by(rows) {
                let tiles = Tiles::pack(a.from(i, 0), rows.min(m - i), k, tiles);
                // SAFETY: the caller vouches for `dst`.
                unsafe { self.times((from, n), tiles, dst.wrapping_add(i * stride), stride, onto, scale) };
            }
        });
    }

    /// `dst = scale a b[.., from..from + n] + onto` on this thread, with a left operand that is packed too.
    ///
    /// # Safety
    /// As for [`Panels::multiply`].
    pub unsafe fn times(
        self,
        (from, n): (usize, usize),
        a: Tiles<'_>,
        dst: *mut f32,
        stride: usize,
        onto: Onto<'_>,
        scale: f32,
    ) {
        let Order { path, k, .. } = self.order;
        assert!(from % self.columns() == 0 && from + n <= self.order.n, "panels are not cut");
        assert!(a.k == k && a.path == path, "the operands do not fit");
        onto.check(n);
        for p in (0..k).step_by(depth(k)) {
            let block = Block {
                m: a.m,
                n,
                k: depth(k).min(k - p),
                a: a.values[p * a.m..].as_ptr(),
                b: self.values[self.order.at(p, from)..].as_ptr(),
                dst,
                stride,
                onto: onto.part(p == 0),
                scale,
            };
            // SAFETY: the operands are as large as their sizes say; the caller vouches for `dst`.
            unsafe { block.run(path) };
        }
    }
}

/// A left operand, packed in tiles, part after part of the inner dimension.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    path: Instructions,
    m: usize,
    k: usize,
    values: &'a [f32],
}

impl<'a> Tiles<'a> {
    /// Packs `a`, `m x k`, into a buffer that grows as needed, on this thread.
    pub fn pack(a: View<'_>, m: usize, k: usize, buffer: &'a mut Vec<f32>) -> Self {
        assert!(a.has(m, k), "the left matrix is too small");
        let path = Instructions::used();
        let values = grown(buffer, m * k + SLACK);
        for p in (0..k).step_by(depth(k)) {
            let depth = depth(k).min(k - p);
            // SAFETY: just checked; the buffer is as long as asked for, and parts are written in order.
            unsafe { left(path, a.from(0, p), (m, depth), values.add(p * m)) };
        }
        Self { path, m, k, values: buffer }
    }
}

/// Packs the tiles of a left operand, `m x k`.
///
/// # Safety
/// `a` must be as large as that, and `to` have room for it and `SLACK`.
unsafe fn left(path: Instructions, a: View<'_>, (m, k): (usize, usize), to: *mut f32) {
    for i in (0..m).step_by(path.rows()) {
        let rows = path.rows().min(m - i);
        // SAFETY: the caller vouches for both; a tile's overhang is overwritten by the next tile.
        unsafe { pack(path, a.from(i, 0), (rows, k), to.add(i * k), rows) };
    }
}

/// `dst = scale a b + onto` on this thread, with operands that are used once.
///
/// # Safety
/// `dst` must be valid for `m` rows of `n` elements, `stride` apart, which no other thread touches.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    path: Instructions,
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    stride: usize,
    onto: Onto<'_>,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.has(m, k), "the left matrix is too small");
    assert!(b.has(k, n), "the right matrix is too small");
    onto.check(n);
    if k == 0 {
        for i in 0..m {
            // SAFETY: the caller vouches for `dst`.
            let row = unsafe { std::slice::from_raw_parts_mut(dst.add(i * stride), n) };
            match onto {
                Onto::Nothing => row.fill(0.0),
                Onto::Before => {}
                Onto::Row(values) => row.copy_from_slice(&values[..n]),
            }
        }
        return;
    }
    let (rows, columns, depth) = (TILES * path.rows(), PANELS * path.columns(), depth(k));
    SCRATCH.with_borrow_mut(|(tiles, panels)| {
        for j in (0..n).step_by(columns) {
            let width = columns.min(n - j);
            for p in (0..k).step_by(depth) {
                let order = Order { path, k: depth.min(k - p), n: width };
                let packed = grown(panels, order.len());
                // SAFETY: the buffer is as long as just asked for, and this thread's.
                let shared = SharedMut::new(unsafe { std::slice::from_raw_parts_mut(packed, order.len()) });
                // SAFETY: checked above.
                unsafe { order.fill(b.from(p, j), 0, (0, width), shared) };
                for i in (0..m).step_by(rows) {
                    let height = rows.min(m - i);
                    let block = Block {
                        m: height,
                        n: width,
                        k: order.k,
                        a: grown(tiles, height * order.k + SLACK),
                        b: packed,
                        dst: dst.wrapping_add(i * stride + j),
                        stride,
                        onto: onto.from(j).part(p == 0),
                        scale,
                    };
                    // SAFETY: as above; the caller vouches for `dst`.
                    unsafe {
                        left(path, a.from(i, p), (height, order.k), block.a.cast_mut());
                        block.run(path);
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        crate::diffusion::Generator::new(seed).randn(n)
    }

    /// Rows apart by more than their length, and the transposed of such.
    fn stored(rows: usize, columns: usize, seed: u64) -> [(Vec<f32>, usize, usize); 3] {
        let (wide, tall) = (columns + 3, rows + 5);
        [
            (values(rows * wide, seed), wide, 1),
            (values(columns * tall, seed + 1), 1, tall),
            (values(2 * rows * wide, seed + 2), 2 * wide, 2),
        ]
    }

    #[test]
    fn every_path_multiplies_every_shape_and_layout() {
        let shapes =
            [(1, 1, 1), (2, 3, 5), (14, 32, 16), (15, 33, 17), (29, 40, 70), (113, 50, 385), (5, 600, 40), (3, 7, 0)];
        for path in Instructions::ALL.into_iter().filter(|path| *path <= Instructions::best()) {
            for (m, n, k) in shapes {
                for (at, a) in stored(m, k, 1).iter().enumerate() {
                    for (bt, b) in stored(k, n, 7).iter().enumerate() {
                        let (va, vb) = (View::new(&a.0, a.1, a.2), View::new(&b.0, b.1, b.2));
                        let row = values(n, 4);
                        for onto in [Onto::Nothing, Onto::Before, Onto::Row(&row)] {
                            let stride = n + 2;
                            let before = values(m * stride, 3);
                            let mut dst = before.clone();
                            // SAFETY: `dst` has `m` rows of `n`, `stride` apart.
                            unsafe { product(path, (m, n, k), dst.as_mut_ptr(), stride, onto, va, vb, 0.5) };
                            for (at_dst, (found, before)) in dst.iter().zip(&before).enumerate() {
                                let (i, j) = (at_dst / stride, at_dst % stride);
                                if j >= n {
                                    assert_eq!(found, before, "{path:?} writes past a row");
                                    continue;
                                }
                                let term = |p| f64::from(a.0[i * a.1 + p * a.2]) * f64::from(b.0[p * b.1 + j * b.2]);
                                let sum = 0.5 * (0..k).map(term).sum::<f64>();
                                let onto = match onto {
                                    Onto::Nothing => 0.0,
                                    Onto::Before => f64::from(*before),
                                    Onto::Row(row) => f64::from(row[j]),
                                };
                                let size = 0.5 * (0..k).map(|p| term(p).abs()).sum::<f64>() + onto.abs();
                                let expected = sum + onto;
                                let off = (f64::from(*found) - expected).abs();
                                assert!(
                                    off <= 1e-6 * size + 1e-12,
                                    "{path:?}, {m} x {n} x {k}, layouts {at} and {bt}, onto {onto}, ({i}, {j}): {found}, not {expected}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_of_rows_and_columns_do_not_change_a_bit() {
        let (m, n, k) = (61, 150, 900);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (a, b) = (View::new(&a, k, 1), View::new(&b, 1, k));
        let mut whole = vec![f32::NAN; m * n];
        // SAFETY: as large as needed, here and below.
        unsafe { product(Instructions::used(), (m, n, k), whole.as_mut_ptr(), n, Onto::Nothing, a, b, 1.0) };
        let packed = Packed::new(k, n, b);
        let mut cut = vec![f32::NAN; m * n];
        for (i, height) in [(0, 17), (17, 1), (18, 43)] {
            for (j, width) in
                [(0, packed.panels().columns()), (packed.panels().columns(), n - packed.panels().columns())]
            {
                let dst = cut[i * n + j..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { packed.panels().multiply((height, j, width), a.from(i, 0), dst, n, Onto::Nothing, 1.0) };
            }
        }
        assert_eq!(whole, cut);
    }

    #[test]
    fn every_element_of_a_packed_matrix_lies_where_its_order_says() {
        let (k, n) = (800, 75);
        let b = values(k * n, 5);
        let packed = Packed::new(k, n, View::new(&b, n, 1));
        for p in 0..k {
            for j in 0..n {
                assert_eq!(packed.values[packed.order.at(p, j)], b[p * n + j], "({p}, {j})");
            }
        }
    }
}
