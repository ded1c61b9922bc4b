//! CMMD: the maximum mean discrepancy of two sets of pictures over CLIP's features.

use super::{Metric, common_width, unit};
use crate::Result;
use nalgebra::DMatrix;
use rayon::prelude::*;

/// What [`cmmd`] is.
pub const CMMD_DEFINITION: &str = "\
    1000 * (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) over all pairs, each with itself included, with k(x, y) \
    = exp(-|x - y|^2 / (2 * 10^2)), over the normalised CLIP image features of two sets of pictures (CMMD: \
    Jayasumana et al. 2024, as its published code computes it; there with CLIP ViT-L/14 at 336 pixels: values of \
    another CLIP are not comparable)";

/// The kernel's width.
const SIGMA: f64 = 10.0;
/// What the authors multiply by, to have readable numbers.
const SCALE: f64 = 1000.0;
/// Rows of one block of the kernel's matrix.
const BLOCK: usize = 256;

/// CMMD between two sets of pictures, given their features (which are normalised here).
///
/// # Errors
/// With no picture on a side, or features that do not match.
pub fn cmmd(a: &[Vec<f32>], b: &[Vec<f32>]) -> Result<Metric> {
    let width = common_width(a, b, 1, "CMMD")?;
    let (x, y) = (units(a, width), units(b, width));
    let value = SCALE * (mean_kernel(&x, &x) + mean_kernel(&y, &y) - 2.0 * mean_kernel(&x, &y));
    Ok(Metric { name: "CMMD", definition: CMMD_DEFINITION, value, pictures: vec![a.len(), b.len()] })
}

/// A column a picture.
fn units(rows: &[Vec<f32>], width: usize) -> DMatrix<f64> {
    DMatrix::from_iterator(width, rows.len(), rows.iter().flat_map(|row| unit(row)))
}

/// The mean of the kernel over all pairs, block by block in a fixed order.
fn mean_kernel(x: &DMatrix<f64>, y: &DMatrix<f64>) -> f64 {
    let squares = |m: &DMatrix<f64>| m.column_iter().map(|column| column.norm_squared()).collect::<Vec<_>>();
    let (of_x, of_y) = (squares(x), squares(y));
    let starts: Vec<usize> = (0..x.ncols()).step_by(BLOCK).collect();
    let block = |start: &usize| {
        let count = BLOCK.min(x.ncols() - start);
        let products = x.columns(*start, count).tr_mul(y); // (count, columns of y)
        let mut sum = 0.0;
        for (column, square) in products.column_iter().zip(&of_y) {
            for (product, own) in column.iter().zip(&of_x[*start..]) {
                sum += (-(own + square - 2.0 * product) / (2.0 * SIGMA * SIGMA)).exp();
            }
        }
        sum
    };
    let sums: Vec<f64> = starts.par_iter().map(block).collect();
    sums.iter().sum::<f64>() / (x.ncols() as f64 * y.ncols() as f64)
}
