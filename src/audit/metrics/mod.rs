//! Numbers that compare pictures with texts, with other pictures, and models with each other: each a pure function over
//! arrays, summed in f64, and each with its exact definition beside its value.
//!
//! None of them is FID: the Fréchet distance here is over CLIP's features, and its name says so.

mod clip_score;
mod cmmd;
mod frechet;
mod paired;
mod ssim;
mod unlearn_canvas;

pub use clip_score::{CLIP_SCORE_DEFINITION, clip_score, clip_scores};
pub use cmmd::{CMMD_DEFINITION, cmmd};
pub use frechet::{CLIP_FID_DEFINITION, clip_fid};
pub use paired::{Bootstrap, McNemar, mcnemar, paired_bootstrap};
pub use ssim::{SMALLEST as SMALLEST_FOR_SSIM, SSIM_DEFINITION, ssim, ssim_mean};
pub use unlearn_canvas::{CRA_DEFINITION, IRA_DEFINITION, Stated, UA_DEFINITION, UnlearnCanvas, unlearn_canvas};

use crate::{Error, Result};
use serde::Serialize;

/// A number with what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its name; never that of a number that is computed in another way.
    pub name: &'static str,
    /// How it is computed, and from where that is.
    pub definition: &'static str,
    /// The number.
    pub value: f64,
    /// How many pictures it was computed from, of each side where there are two.
    pub pictures: Vec<usize>,
}

/// The row divided by its length, in f64; zeros stay zeros.
pub fn unit(row: &[f32]) -> Vec<f64> {
    let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    row.iter().map(|x| if length > 0.0 { f64::from(*x) / length } else { 0.0 }).collect()
}

/// How many features each of these rows has.
///
/// # Errors
/// If there are fewer than `least` rows, rows of several lengths, or values that are not finite.
fn width(rows: &[Vec<f32>], least: usize, what: &str) -> Result<usize> {
    if rows.len() < least {
        return Err(Error::usage(format!(
            "{what} needs at least {least} pictures on each side; there are {}",
            rows.len()
        )));
    }
    let width = rows.first().map_or(0, Vec::len);
    if width == 0 || rows.iter().any(|row| row.len() != width) {
        return Err(Error::usage(format!("{what}: features of several lengths; do they come from one CLIP?")));
    }
    if rows.iter().flatten().any(|x| !x.is_finite()) {
        return Err(Error::Numeric(format!("{what}: a feature is NaN or infinite")));
    }
    Ok(width)
}

/// As [`width`], for two sides that must have the same.
fn common_width(a: &[Vec<f32>], b: &[Vec<f32>], least: usize, what: &str) -> Result<usize> {
    let (left, right) = (width(a, least, what)?, width(b, least, what)?);
    if left != right {
        let what = format!("{what}: features of {left} and of {right} numbers; both sides need the same CLIP");
        return Err(Error::usage(what));
    }
    Ok(left)
}
