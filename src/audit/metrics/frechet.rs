//! The Fréchet distance of two sets of pictures over CLIP's features.

use super::{Metric, common_width};
use crate::{Error, Result};
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// What [`clip_fid`] is.
pub const CLIP_FID_DEFINITION: &str = "\
    Frechet distance |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) between the CLIP image features (projected, not \
    normalised) of two sets of pictures, C with n - 1 (CLIP-FID: Kynkaanniemi et al. 2023, as in clean-fid). Not \
    FID: other features, other scale. It grows as pictures get fewer: compare only at equal numbers of pictures, one \
    CLIP model, one image processor";

/// A step of Jacobi's or QR's that does not come to an end is given up after so many rounds.
const ROUNDS: usize = 10_000;

/// CLIP-FID between two sets of pictures, given their features (not normalised).
///
/// # Errors
/// With fewer than two pictures on a side, or features that do not match.
pub fn clip_fid(a: &[Vec<f32>], b: &[Vec<f32>]) -> Result<Metric> {
    let width = common_width(a, b, 2, "CLIP-FID")?;
    let ((mean_a, cov_a), (mean_b, cov_b)) = (moments(a, width), moments(b, width));
    // C1 C2 has the eigenvalues of R C2 R with R the root of C1, which is symmetric
    let eigen = SymmetricEigen::try_new(cov_a.clone(), f64::EPSILON, ROUNDS).ok_or_else(unsettled)?;
    let roots = eigen.eigenvalues.map(|value| value.max(0.0).sqrt());
    let root = &eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose();
    let product = &root * &cov_b * &root;
    let product = (&product + product.transpose()) * 0.5;
    let eigen = SymmetricEigen::try_new(product, f64::EPSILON, ROUNDS).ok_or_else(unsettled)?;
    let trace_of_root: f64 = eigen.eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
    let value = (mean_a - mean_b).norm_squared() + cov_a.trace() + cov_b.trace() - 2.0 * trace_of_root;
    Ok(Metric {
        name: "CLIP-FID",
        definition: CLIP_FID_DEFINITION,
        // rounding may leave equal sets a hair below nothing
        value: value.max(0.0),
        pictures: vec![a.len(), b.len()],
    })
}

fn unsettled() -> Error {
    Error::Numeric("CLIP-FID: the eigenvalues of a covariance were not found; are the features all alike?".into())
}

/// Mean and covariance (with n - 1).
fn moments(rows: &[Vec<f32>], width: usize) -> (DVector<f64>, DMatrix<f64>) {
    let mut x = DMatrix::from_fn(rows.len(), width, |row, column| f64::from(rows[row][column]));
    let mean = DVector::from_fn(width, |column, _| x.column(column).sum() / rows.len() as f64);
    for (mut column, mean) in x.column_iter_mut().zip(mean.iter()) {
        column.add_scalar_mut(-mean);
    }
    let covariance = x.tr_mul(&x) / (rows.len() - 1) as f64;
    (mean, covariance)
}
