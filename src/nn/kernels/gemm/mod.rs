//! Products of matrices in `f32`, made for many shapes with a short side and for operands that are used again.
//!
//! Blocked as in Goto & van de Geijn, «Anatomy of High-Performance Matrix Multiplication» (2008): `B` is packed in panels that
//! one pass of a tile reads from end to end, `A` in tiles, and a tile of the result stays in registers ([`tile`]). The sum over
//! the inner dimension is cut by its length alone, and each part is one chain in order: a product gives the same bits however
//! its rows and columns are cut among tasks.

#[cfg_attr(not(target_arch = "x86_64"), path = "no_amx.rs")]
pub mod amx;
mod operand;
mod pack;
mod tile;
mod vector;

use super::instructions::Instructions;
use super::matmul::View;
use super::parallel::{SharedMut, grown};
use operand::left;
pub use operand::{Order, Packed, Panels, Tiles};
pub use pack::{pack_rows, transpose_onto};
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

/// How the inner dimension is cut: parts of this many, the last shorter.
fn depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1)
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
    if amx::suits(path, k) {
        // SAFETY: the machine has the path's instructions; the caller vouches for `dst`.
        return unsafe { amx::product((m, n, k), dst, stride, onto, a, b, scale) };
    }
    let (rows, columns, depth) = (TILES * path.rows(), PANELS * path.columns(), depth(k));
    SCRATCH.with_borrow_mut(|(tiles, panels)| {
        for j in (0..n).step_by(columns) {
            let width = columns.min(n - j);
            for p in (0..k).step_by(depth) {
                let order = Order::on(path, depth.min(k - p), width);
                let packed = grown(panels, order.len());
                let shared = SharedMut::new(packed);
                // SAFETY: checked above.
                unsafe { order.fill(b.from(p, j), 0, (0, width), shared) };
                for i in (0..m).step_by(rows) {
                    let height = rows.min(m - i);
                    let block = Block {
                        m: height,
                        n: width,
                        k: depth.min(k - p),
                        a: left(path, a.from(i, p), (height, depth.min(k - p)), tiles),
                        b: packed.as_ptr(),
                        dst: dst.wrapping_add(i * stride + j),
                        stride,
                        onto: onto.from(j).part(p == 0),
                        scale,
                    };
                    // SAFETY: as above; the caller vouches for `dst`.
                    unsafe { block.run(path) };
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::values::Values;
    use half::{bf16, f16};

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

    /// Operands of sixteen bits are packed as the same numbers are that were widened before.
    #[test]
    fn every_path_packs_halves_as_what_they_are() {
        let shapes = [(1, 1), (3, 5), (14, 16), (15, 33), (17, 40), (40, 16), (50, 385)];
        let mut paths: Vec<(Instructions, Instructions)> =
            Instructions::ALL.into_iter().map(|path| (path, path)).collect();
        paths.push((Instructions::Portable, Instructions::Avx2)); // where there is no F16C
        for (path, order) in paths.into_iter().filter(|(path, _)| *path <= Instructions::best()) {
            for (count, k) in shapes {
                for (at, (values, rs, cs)) in stored(count, k, 1).into_iter().enumerate() {
                    let halves: Vec<f16> = values.iter().map(|x| f16::from_f32(x.powi(9) * 1e-3)).collect();
                    let brains: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
                    for half in [Values::F16(&halves), Values::Bf16(&brains)] {
                        let pitch = count.next_multiple_of(order.lanes());
                        let mut packed = vec![f32::NAN; k * pitch + pack::SLACK];
                        // SAFETY: the view has as many rows and columns, and there is as much room.
                        unsafe { pack::pack(path, View::new(half, rs, cs), (count, k), packed.as_mut_ptr(), pitch) };
                        for (p, i) in (0..k).flat_map(|p| (0..count).map(move |i| (p, i))) {
                            let (found, expected) = (packed[p * pitch + i], half.at(i * rs + p * cs));
                            assert_eq!(
                                found.to_bits(),
                                expected.to_bits(),
                                "{path:?}, layout {at}, {count} x {k}: ({i}, {p})"
                            );
                        }
                    }
                }
            }
        }
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
            for (j, width) in [(0, packed.columns()), (packed.columns(), n - packed.columns())] {
                let dst = cut[i * n + j..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { packed.multiply((height, j, width), a.from(i, 0), dst, n, Onto::Nothing, 1.0) };
            }
        }
        assert_eq!(whole, cut);
    }

    /// What is begun of the next product while one is multiplied is its own.
    #[test]
    fn products_one_after_the_other_are_those_of_each() {
        for (m, n, k) in [(3, 40, 60), (16, 16, 64), (33, 70, 96), (64, 48, 128), (70, 600, 64), (40, 33, 900)] {
            let (a, b) = (values(5 * m * k, 1), values(5 * k * n, 2));
            let a = |i: usize| View::new(&a[i * m * k..], k, 1);
            let packed: Vec<Packed> = (0..5).map(|i| Packed::new(k, n, View::new(&b[i * k * n..], n, 1))).collect();
            let stride = n + 3;
            let (mut each, mut all) = (vec![7.0; 5 * m * stride], vec![7.0; 5 * m * stride]);
            let (to_each, to_all) = (SharedMut::new(&mut each), SharedMut::new(&mut all));
            let place = |to: SharedMut, i: usize| to.at(i * m * stride, m * stride);
            // SAFETY: each has its own rows.
            unsafe {
                for (i, packed) in packed.iter().enumerate() {
                    packed.multiply((m, 0, n), a(i), place(to_each, i), stride, Onto::Nothing, 1.0);
                }
                Packed::multiply_each(&packed, (m, 0, n), |i| (a(i), place(to_all, i)), stride);
            }
            assert!(each == all, "{m} x {n} x {k}");
            assert!(each.chunks(stride).all(|row| row[n..] == [7.0; 3]), "{m} x {n} x {k}: written past a row");
        }
    }

    #[test]
    fn every_element_of_a_packed_matrix_lies_where_its_order_says() {
        let (k, n) = (800, 75);
        let b = values(k * n, 5);
        let order = Order::new(k, n);
        let mut packed = vec![f32::NAN; order.len()];
        Panels::pack(order, View::new(&b, n, 1), &mut packed);
        for p in 0..k {
            for j in 0..n {
                assert_eq!(packed[order.at(p, j)], b[p * n + j], "({p}, {j})");
            }
        }
    }
}
