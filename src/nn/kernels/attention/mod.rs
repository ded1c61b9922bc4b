//! Softmax attention in tiles, with no matrix of scores beyond a tile.

mod backward;
mod forward;
mod products;
mod rounded;

use super::gemm::{Order, Panels};
use super::instructions::Instructions;
use super::matmul::View;
use super::parallel::grown;
pub use backward::{FEW_KEYS, Saved, backward, backward_beside};
pub use forward::forward;

/// Columns of the narrowest panel: queries whose softmax is computed together.
const LANES: usize = 4;

/// The sizes of an attention and its mask.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries.
    pub s: usize,
    /// Keys.
    pub t: usize,
    /// Features of a head.
    pub d: usize,
    /// How far rows of queries, keys and values are apart, and those of their gradients: `heads d`, or more where they lie side by side.
    pub apart: usize,
    /// Whether query `i` sees keys `j <= i` only.
    pub causal: bool,
    /// Whether operands are rounded to `bf16` where that makes products faster.
    pub brief: bool,
}

impl Shape {
    /// Features of all heads: what the rows of the result are apart.
    fn width(&self) -> usize {
        self.heads * self.d
    }

    /// Whether products are made of rounded operands.
    fn on_tiles(&self) -> bool {
        self.brief && Instructions::used() == Instructions::Amx
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// The rows of one head of one sample, from row `from` on, of an operand with `len` rows.
    fn head<'a>(&self, x: &'a [f32], (b, h): (usize, usize), len: usize, from: usize) -> View<'a> {
        View::new(&x[(b * len + from) * self.apart + h * self.d..], self.apart, 1)
    }

    /// The same of the result, or of its gradient.
    fn result_head<'a>(&self, x: &'a [f32], (b, h): (usize, usize), from: usize) -> View<'a> {
        View::new(&x[(b * self.s + from) * self.width() + h * self.d..], self.width(), 1)
    }
}

/// A right operand of the products of a tile, `k x n`, packed in a buffer that grows as needed.
fn packed<'a>(b: View<'_>, k: usize, n: usize, buffer: &'a mut Vec<f32>) -> Panels<'a> {
    let order = Order::new(k, n);
    Panels::pack(order, b, grown(buffer, order.len()))
}
