//! Matrix products of strided views, cut in blocks whose size depends on the shapes alone.

use super::parallel::{SharedMut, chunks, sum_parts, tasks};
use gemm::Parallelism;

/// A product smaller than this many multiplications is one block.
const SERIAL: usize = 1 << 19;

/// A read-only matrix: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rs: usize,
    cs: usize,
}

impl<'a> View<'a> {
    /// Rows `rs` apart, columns `cs` apart.
    pub fn new(data: &'a [f32], rs: usize, cs: usize) -> Self {
        Self { data, rs, cs }
    }

    /// The same matrix with rows and columns swapped.
    pub fn t(self) -> Self {
        Self { rs: self.cs, cs: self.rs, ..self }
    }

    /// The matrix from row `row` and column `col` on.
    pub fn from(self, row: usize, col: usize) -> Self {
        Self { data: &self.data[row * self.rs + col * self.cs..], ..self }
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
    if m == 0 || n == 0 {
        return;
    }
    if k > 0 {
        assert!((m - 1) * a.rs + (k - 1) * a.cs < a.data.len(), "the left matrix is too small");
        assert!((k - 1) * b.rs + (n - 1) * b.cs < b.data.len(), "the right matrix is too small");
    }
    // SAFETY: the views are as large as just checked; the caller vouches for `dst`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Rows and columns of a block of an `m x n` result with inner dimension `k`: about 16 blocks or more, none tiny.
fn blocks(m: usize, n: usize, k: usize) -> (usize, usize) {
    if m * n * k <= SERIAL {
        return (m, n);
    }
    let rows = m.div_ceil(16).next_multiple_of(32).clamp(64, 256).min(m);
    let columns = if m.div_ceil(rows) >= 8 { n } else { n.div_ceil(8).next_multiple_of(64).max(64).min(n) };
    (rows, columns)
}

/// `out = a b (+ bias on every row)`, row-major, `a` `m x k`, `b` `k x n`.
pub fn matmul((m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    let (rows, columns) = blocks(m, n, k);
    if out.is_empty() {
        return;
    }
    let across = n.div_ceil(columns);
    let shared = SharedMut::new(out);
    tasks(m.div_ceil(rows) * across, |task| {
        let (i, j) = (task / across * rows, task % across * columns);
        let (height, width) = (rows.min(m - i), columns.min(n - j));
        if let Some(bias) = bias {
            for row in i..i + height {
                // SAFETY: this block of `out` belongs to this task alone, and `at` checks its bounds.
                unsafe { shared.slice(row * n + j, width) }.copy_from_slice(&bias[j..j + width]);
            }
        }
        let dst = shared.at(i * n + j, (height - 1) * n + width);
        // SAFETY: as above.
        unsafe { product((height, width, k), dst, n, bias.is_some(), a.from(i, 0), b.from(0, j), 1.0) };
    });
}

/// `out = a^T b` where the `k` rows of `a` (`k x m`) and `b` (`k x n`) are many: also cut along `k`, the parts summed
/// in order.
pub fn matmul_tn((m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>, out: &mut [f32]) {
    const TILE: usize = 256;
    let (down, across) = (m.div_ceil(TILE), n.div_ceil(TILE));
    let parts = (16 / (down * across).max(1)).min(k / 512).max(1);
    let depth = k.div_ceil(parts).max(1);
    if out.is_empty() {
        return;
    }
    let block = |shared: SharedMut, base: usize, task: usize, from: usize| {
        let (i, j) = (task / across * TILE, task % across * TILE);
        let (height, width) = (TILE.min(m - i), TILE.min(n - j));
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
    sum_parts(&partial, out);
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
    sum_parts(&partial, out);
}
