//! Packed operands: where their elements lie, and products of them.

use super::amx;
use super::pack::{SLACK, pack};
use super::tile::{Block, Left, Onto};
use super::{PANELS, SCRATCH, TILES, depth};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::parallel::{self, SharedMut, grown, unwritten};
use crate::nn::kernels::values::Values;

/// The order of a packed right operand, `k x n`.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    path: Instructions,
    k: usize,
    n: usize,
    /// Columns of a panel.
    columns: usize,
}

impl Order {
    /// For this machine.
    pub fn new(k: usize, n: usize) -> Self {
        Self::on(Instructions::used(), k, n)
    }

    pub(super) fn on(path: Instructions, k: usize, n: usize) -> Self {
        Self { path, k, n, columns: path.columns() }
    }

    /// One panel of whole rows: what is not packed yet.
    pub fn rows(k: usize, n: usize) -> Self {
        let order = Self::new(k, n);
        Self { columns: order.width(), ..order }
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
        self.columns
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
    pub(super) unsafe fn fill(self, b: View<'_>, part: usize, (from, to): (usize, usize), packed: SharedMut) {
        let depth = depth(self.k);
        let rows = depth.min(self.k - part * depth);
        let mut from = from;
        if b.parts().2 == 1 {
            // neighbours go to one panel after the other
            let count = (to.min(self.n) - from) / self.columns() * self.columns();
            if count > self.columns() {
                let place = packed.at(self.at(part * depth, from), rows * count);
                // SAFETY: the caller vouches for `b` and the panels.
                unsafe { pack(self.path, b.from(part * depth, from).t(), (count, rows), place, self.columns()) };
                from += count;
            }
        }
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
#[derive(Debug)]
pub struct Packed(Way);

/// How its products are made.
#[derive(Debug)]
enum Way {
    Vectors { order: Order, values: Vec<f32> },
    Tiles(amx::Right),
}

impl Packed {
    /// Packs `b`, `k x n`, by all threads.
    pub fn new(k: usize, n: usize, b: View<'_>) -> Self {
        let order = Order::new(k, n);
        assert!(b.has(k, n), "the right matrix is too small");
        if amx::suits(order.path, k) {
            return Self(Way::Tiles(amx::Right::new(k, n, b)));
        }
        let mut values = unwritten(order.len());
        let (parts, across) = (k.div_ceil(depth(k)), n.div_ceil(PANELS * order.columns()));
        let shared = SharedMut::new(&mut values);
        parallel::tasks(parts * across, |task| {
            let from = task % across * PANELS * order.columns();
            let to = n.min(from + PANELS * order.columns());
            // SAFETY: just checked; each task has its own panels.
            unsafe { order.fill(b, task / across, (from, to), shared) };
        });
        Self(Way::Vectors { order, values })
    }

    /// What a cut between columns must be a multiple of.
    #[cfg(test)]
    pub(super) fn columns(&self) -> usize {
        Instructions::used().columns()
    }

    /// See [`Panels::multiply`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn multiply(
        &self,
        sizes: (usize, usize, usize),
        a: View<'_>,
        dst: *mut f32,
        stride: usize,
        onto: Onto<'_>,
        scale: f32,
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match &self.0 {
                Way::Vectors { order, values } => {
                    Panels::new(*order, values).multiply(sizes, a, dst, stride, onto, scale)
                }
                Way::Tiles(right) => right.multiply(sizes, a, dst, stride, onto, scale),
            }
        }
    }

    /// As [`Packed::multiply`], of one after the other: of `a(i)`, to `dst(i)`, by the `i`th.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn multiply_each<'a>(
        each: &'a [Self],
        sizes: (usize, usize, usize),
        operands: impl Fn(usize) -> (View<'a>, *mut f32),
        stride: usize,
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            if let Some(Self(Way::Tiles(_))) = each.first() {
                let rights: Vec<&amx::Right> = each.iter().filter_map(Self::tiles).collect();
                amx::Right::multiply_each(&rights, sizes, operands, stride, Onto::Nothing, 1.0);
            } else {
                for (i, packed) in each.iter().enumerate() {
                    let (a, dst) = operands(i);
                    packed.multiply(sizes, a, dst, stride, Onto::Nothing, 1.0);
                }
            }
        }
    }

    fn tiles(&self) -> Option<&amx::Right> {
        match &self.0 {
            Way::Tiles(right) => Some(right),
            Way::Vectors { .. } => None,
        }
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
        self.check(from, n, onto);
        assert!(a.has(m, k), "the left matrix is too small");
        SCRATCH.with_borrow_mut(|(tiles, _)| {
            let rows = TILES * path.rows();
            for i in (0..m).step_by(rows) {
                let height = rows.min(m - i);
                for p in (0..k).step_by(depth(k)) {
                    let left = left(path, a.from(i, p), (height, depth(k).min(k - p)), tiles);
                    let dst = dst.wrapping_add(i * stride);
                    // SAFETY: checked above; the caller vouches for `dst`.
                    unsafe { self.part(p, (height, from, n), left, dst, stride, onto, scale).run(path) };
                }
            }
        });
    }

    /// The block of the inner dimension that begins at `p`, with `m` rows of packed tiles.
    #[allow(clippy::too_many_arguments)]
    fn part<'o>(
        self,
        p: usize,
        (m, from, n): (usize, usize, usize),
        a: Left,
        dst: *mut f32,
        stride: usize,
        onto: Onto<'o>,
        scale: f32,
    ) -> Block<'o> {
        let k = depth(self.order.k).min(self.order.k - p);
        let b = self.values[self.order.at(p, from)..].as_ptr();
        Block { m, n, k, a, b, dst, stride, onto: onto.part(p == 0), scale }
    }

    fn check(self, from: usize, n: usize, onto: Onto<'_>) {
        assert!(from.is_multiple_of(self.columns()) && from + n <= self.order.n, "panels are not cut");
        onto.check(n);
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
        self.check(from, n, onto);
        assert!(a.k == k && a.path == path, "the operands do not fit");
        for p in (0..k).step_by(depth(k)) {
            let left = match a.place {
                Place::Tiles => Left::Tiles(a.values[p * a.m..].as_ptr()),
                Place::Rows(apart) => Left::Rows(a.values[p..].as_ptr(), apart),
                Place::Panels => Left::Panels { at: a.values.as_ptr(), rows: a.m, row: 0 },
            };
            // SAFETY: the operands are as large as their sizes say; the caller vouches for `dst`.
            unsafe { self.part(p, (a.m, from, n), left, dst, stride, onto, scale).run(path) };
        }
    }
}

/// A left operand, packed in tiles, part after part of the inner dimension; or rows or panels that are read where they lie.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    path: Instructions,
    m: usize,
    k: usize,
    values: &'a [f32],
    place: Place,
}

/// How the elements of a left operand lie.
#[derive(Clone, Copy)]
enum Place {
    Tiles,
    /// Rows that are so far apart.
    Rows(usize),
    Panels,
}

impl<'a> Tiles<'a> {
    /// Packs `a`, `m x k`, into a buffer that grows as needed, on this thread, if it has to be packed.
    pub fn pack(a: View<'a>, m: usize, k: usize, buffer: &'a mut Vec<f32>) -> Self {
        assert!(a.has(m, k), "the left matrix is too small");
        let path = Instructions::used();
        if let Some((values, apart)) = readable(path, a) {
            return Self { path, m, k, values, place: Place::Rows(apart) };
        }
        let values = grown(buffer, m * k + SLACK).as_mut_ptr();
        for p in (0..k).step_by(depth(k)) {
            let depth = depth(k).min(k - p);
            // SAFETY: just checked; the buffer is as long as asked for, and parts are written in order.
            unsafe { tiles(path, a.from(0, p), (m, depth), values.add(p * m)) };
        }
        Self { path, m, k, values: buffer, place: Place::Tiles }
    }

    /// Puts row-major values, `m` rows of `k`, `apart` from each other, where they lie into the order in which
    /// [`Tiles::arranged`] takes them.
    pub fn arrange(values: &mut [f32], (m, k): (usize, usize), apart: usize, buffer: &mut Vec<f32>) {
        assert!(k <= apart && m * apart <= values.len() && depth(k) == k, "there is less to arrange");
        let path = Instructions::used();
        if readable(path, View::new(&*values, apart, 1)).is_none() {
            let to = grown(buffer, m * k + SLACK);
            // SAFETY: just checked.
            unsafe { tiles(path, View::new(&*values, apart, 1), (m, k), to.as_mut_ptr()) };
            values[..m * k].copy_from_slice(&to[..m * k]);
        }
    }

    /// A left operand that [`Tiles::arrange`] has put in order.
    pub fn arranged(values: &'a [f32], (m, k): (usize, usize), apart: usize) -> Self {
        assert!(k <= apart && m * apart <= values.len() && depth(k) == k, "the left matrix is too small");
        let path = Instructions::used();
        let rows = readable(path, View::new(values, apart, 1)).map(|(_, apart)| Place::Rows(apart));
        Self { path, m, k, values, place: rows.unwrap_or(Place::Tiles) }
    }

    /// An operand that lies in panels of [`Panels::columns`] columns, one after the other, each `m` rows of whole vectors; of a `k`
    /// that is summed in registers at once.
    pub fn in_panels(values: &'a [f32], m: usize, k: usize) -> Self {
        let path = Instructions::used();
        let fits = k.next_multiple_of(path.lanes()) * m <= values.len();
        assert!(fits && depth(k) == k, "panels that are too small, or of an inner dimension that is cut");
        Self { path, m, k, values, place: Place::Panels }
    }

    /// Packs parts of `part` columns of `a`, `m x k`, one after the other into a buffer that grows as needed; each is a left operand of
    /// its own, [`Tiles::part`].
    pub fn pack_parts(a: View<'_>, (m, k): (usize, usize), part: usize, buffer: &mut Vec<f32>) {
        assert!(a.has(m, k) && depth(part) == part, "the left matrix is too small, or its parts too long");
        let values = grown(buffer, m * k + SLACK).as_mut_ptr();
        for p in (0..k).step_by(part) {
            // SAFETY: just checked; the buffer is as long as asked for, and parts are written in order.
            unsafe { tiles(Instructions::used(), a.from(0, p), (m, part.min(k - p)), values.add(p * m)) };
        }
    }

    /// The part from column `p` on, of `k` columns, that [`Tiles::pack_parts`] packed.
    pub fn part(values: &'a [f32], m: usize, p: usize, k: usize) -> Self {
        let values = &values[p * m..][..m * k];
        Self { path: Instructions::used(), m, k, values, place: Place::Tiles }
    }
}

/// The elements of a left operand whose rows tiles can read where they lie, and how far these are apart.
fn readable<'a>(path: Instructions, a: View<'a>) -> Option<(&'a [f32], usize)> {
    match a.parts() {
        // fourteen rows have more addresses than there are registers for
        (Values::F32(values), apart, 1) if path < Instructions::Avx512 => Some((values, apart)),
        _ => None,
    }
}

/// A left operand, `m x k`, as a block takes it: where it lies if its rows can be read there, or packed in a buffer that grows
/// as needed.
pub(super) fn left(path: Instructions, a: View<'_>, (m, k): (usize, usize), buffer: &mut Vec<f32>) -> Left {
    assert!(a.has(m, k), "the left matrix is too small");
    if let Some((values, apart)) = readable(path, a) {
        return Left::Rows(values.as_ptr(), apart);
    }
    let to = grown(buffer, m * k + SLACK).as_mut_ptr();
    // SAFETY: just checked.
    unsafe { tiles(path, a, (m, k), to) };
    Left::Tiles(to)
}

/// Packs the tiles of a left operand, `m x k`.
///
/// # Safety
/// `a` must be as large as that, and `to` have room for it and `SLACK`.
unsafe fn tiles(path: Instructions, a: View<'_>, (m, k): (usize, usize), to: *mut f32) {
    let height = path.height(m);
    for i in (0..m).step_by(height.max(1)) {
        let rows = height.min(m - i);
        // SAFETY: the caller vouches for both; a tile's overhang is overwritten by the next tile.
        unsafe { pack(path, a.from(i, 0), (rows, k), to.add(i * k), rows) };
    }
}
