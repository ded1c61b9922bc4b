//! Matrix products of strided views, cut in blocks whose size depends on the shapes alone.

use super::gemm::{self, Onto, Packed, amx};
use super::instructions::Instructions;
use super::parallel::{SharedMut, add_parts, chunks, tasks};
use super::values::Values;

/// A product smaller than this many multiplications is one block.
const SERIAL: usize = 1 << 19;

/// A read-only matrix: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: Values<'a>,
    rs: usize,
    cs: usize,
}

impl<'a> View<'a> {
    /// Rows `rs` apart, columns `cs` apart.
    pub fn new(data: impl Into<Values<'a>>, rs: usize, cs: usize) -> Self {
        Self { data: data.into(), rs, cs }
    }

    /// The same matrix with rows and columns swapped.
    pub fn t(self) -> Self {
        Self { rs: self.cs, cs: self.rs, ..self }
    }

    /// The matrix from row `row` and column `col` on.
    pub fn from(self, row: usize, col: usize) -> Self {
        Self { data: self.data.from(row * self.rs + col * self.cs), ..self }
    }

    /// Whether all of the first `rows` rows and `cols` columns are there.
    pub fn has(self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len()
    }

    /// The element `(row, col)`.
    pub fn read(self, row: usize, col: usize) -> f32 {
        self.data.at(row * self.rs + col * self.cs)
    }

    /// The elements from the first on, and how far rows and columns are apart.
    pub fn parts(self) -> (Values<'a>, usize, usize) {
        (self.data, self.rs, self.cs)
    }
}

/// `dst = scale a b`, or `dst += scale a b` with `add`, on this thread; `a` is `m x k`, `b` is `k x n` and the rows of
/// `dst` are `stride` apart.
///
/// # Safety
/// `dst` must be valid for reads and writes of `m` rows of `n` elements, which no other thread touches.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    stride: usize,
    add: bool,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
) {
    // SAFETY: the caller vouches for `dst`.
    let onto = if add { Onto::Before } else { Onto::Nothing };
    unsafe { gemm::product(Instructions::used(), (m, n, k), dst, stride, onto, a, b, scale) };
}

/// A right operand of more elements than this does not stay in a cache once it is packed.
const CACHED: usize = 1 << 20;
/// Columns and rows of a result for which a large right operand is packed piece by piece.
const WIDE: usize = 512;
const FLAT: usize = 1024;

/// Rows of a block of an `m x n` result with inner dimension `k`, and its columns in panels of `panel`: about 16 blocks or more,
/// none tiny.
fn blocks((m, n, k): (usize, usize, usize), panel: usize) -> (usize, usize) {
    if m * n * k <= SERIAL {
        return (m, n);
    }
    if amx::suits(Instructions::used(), k) {
        return amx::blocks(m, n);
    }
    let columns = |across: usize| n.div_ceil(across).next_multiple_of(2 * panel).min(n);
    if m <= FLAT && n >= WIDE && n * k > CACHED {
        return (m, columns(16).min(WIDE));
    }
    let rows = m.div_ceil(16).next_multiple_of(14).clamp(112, 224).min(m);
    (rows, columns(16usize.div_ceil(m.div_ceil(rows))))
}

/// `out = a b + onto`, row-major, `a` `m x k`, `b` `k x n`.
pub fn matmul(sizes: (usize, usize, usize), a: View<'_>, b: View<'_>, onto: Onto<'_>, out: &mut [f32]) {
    matmul_within(sizes, a, b, onto, out, sizes.1);
}

/// As [`matmul`], into the first columns of rows that are `stride` apart.
pub fn matmul_within(
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    onto: Onto<'_>,
    out: &mut [f32],
    stride: usize,
) {
    // packed once, if more than one block of rows reads it
    if !amx::suits(Instructions::used(), k) && blocks((m, n, k), Instructions::used().columns()).0 < m && m * n > 0 {
        return packed_within((m, n, k), a, &Packed::new(k, n, b), onto, (out, stride));
    }
    by_blocks((m, n, k), onto, (out, stride), |(i, j), (height, width), dst, onto| {
        let (a, b) = (a.from(i, 0), b.from(0, j));
        // SAFETY: `by_blocks` gives each block to one task.
        unsafe { gemm::product(Instructions::used(), (height, width, k), dst, stride, onto, a, b, 1.0) };
    });
}

/// As [`matmul`], of a right operand that was packed before.
pub fn matmul_packed(sizes: (usize, usize, usize), a: View<'_>, b: &Packed, onto: Onto<'_>, out: &mut [f32]) {
    packed_within(sizes, a, b, onto, (out, sizes.1));
}

fn packed_within(
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: &Packed,
    onto: Onto<'_>,
    (out, stride): (&mut [f32], usize),
) {
    by_blocks((m, n, k), onto, (out, stride), |(i, j), (height, width), dst, onto| {
        // SAFETY: as above.
        unsafe { b.multiply((height, j, width), a.from(i, 0), dst, stride, onto, 1.0) };
    });
}

/// `f(where it begins, rows and columns, where they go, onto what)` for each block of an `m x n` result, whose rows are so far apart, side by
/// side.
fn by_blocks(
    (m, n, k): (usize, usize, usize),
    onto: Onto<'_>,
    (out, stride): (&mut [f32], usize),
    f: impl Fn((usize, usize), (usize, usize), *mut f32, Onto<'_>) + Send + Sync,
) {
    assert!(n <= stride, "rows of a result overlap");
    if m * n == 0 {
        return;
    }
    let (rows, columns) = blocks((m, n, k), Instructions::used().columns());
    let across = n.div_ceil(columns);
    let shared = SharedMut::new(out);
    tasks(m.div_ceil(rows) * across, |task| {
        let (i, j) = (task / across * rows, task % across * columns);
        let (height, width) = (rows.min(m - i), columns.min(n - j));
        f((i, j), (height, width), shared.at(i * stride + j, (height - 1) * stride + width), onto.from(j));
    });
}

/// `out = a^T b` where the `k` rows of `a` (`k x m`) and `b` (`k x n`) are many: a small result is also cut along `k`, the
/// parts summed in order.
pub fn matmul_tn((m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>, out: &mut [f32]) {
    // what is split in parts gains by larger blocks
    let tile = if amx::suits(Instructions::used(), k) { 512 } else { 256 };
    if m * n >= tile * tile {
        return matmul((m, n, k), a.t(), b, Onto::Nothing, out);
    }
    let (down, across) = (m.div_ceil(tile), n.div_ceil(tile));
    let parts = (16 / (down * across).max(1)).min(k / 512).max(1);
    let depth = k.div_ceil(parts).max(1);
    if out.is_empty() {
        return;
    }
    let block = |shared: SharedMut, base: usize, task: usize, from: usize| {
        let (i, j) = (task / across * tile, task % across * tile);
        let (height, width) = (tile.min(m - i), tile.min(n - j));
        let dst = shared.at(base + i * n + j, (height - 1) * n + width);
        let count = depth.min(k - from.min(k));
        // SAFETY: this block of this part belongs to this task alone, and `at` checks its bounds.
        unsafe { product((height, width, count), dst, n, false, a.from(from, i).t(), b.from(from, j), 1.0) };
    };
    if parts == 1 {
        let shared = SharedMut::new(out);
        return tasks(down * across, |task| block(shared, 0, task, 0));
    }
    let parts = k.div_ceil(depth);
    let mut partial = vec![0.0; parts * m * n];
    let shared = SharedMut::new(&mut partial);
    tasks(parts * down * across, |task| {
        let part = task / (down * across);
        block(shared, part * m * n, task % (down * across), part * depth);
    });
    out.fill(0.0);
    add_parts(&partial, out);
}

/// The sums of the columns of rows of `out.len()` elements.
pub fn column_sums(x: &[f32], out: &mut [f32]) {
    const ROWS: usize = 1024;
    let n = out.len().max(1);
    let mut partial = vec![0.0; x.len().div_ceil(ROWS * n) * n];
    chunks(&mut partial, n, |i, partial| {
        let end = x.len().min((i + 1) * ROWS * n);
        super::norm::column_sums(&x[i * ROWS * n..end], partial);
    });
    out.fill(0.0);
    add_parts(&partial, out);
}
