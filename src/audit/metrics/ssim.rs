//! How alike two pictures are in their structure: what changed at the same prompt and seed.

use super::Metric;
use crate::audit::structure::{Plane, WINDOW, similarity};
use crate::{Error, Result};
use image::RgbImage;

/// What [`ssim`] is.
pub const SSIM_DEFINITION: &str = "\
    structural similarity (Wang et al. 2004) of two pictures of the same prompt and seed: Gaussian window of 11 x \
    11, sigma 1.5, K1 0.01, K2 0.03, levels 0 to 255, population covariance, mean over the windows that lie inside \
    the picture and over R, G and B (as scikit-image's structural_similarity with gaussian_weights=True, \
    use_sample_covariance=False, data_range=255, channel_axis=-1). 1 is equal";

/// The shortest side of a picture that can be compared: one window.
pub const SMALLEST: usize = WINDOW;

/// The structural similarity of two pictures; see [`SSIM_DEFINITION`].
///
/// # Errors
/// Unless they have one size, of at least 11x11.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    let (width, height) = (a.width() as usize, a.height() as usize);
    if a.dimensions() != b.dimensions() || width.min(height) < WINDOW {
        return Err(Error::usage(format!(
            "SSIM: pictures of {width}x{height} and {}x{}; it needs two of one size, of at least 11x11",
            b.width(),
            b.height()
        )));
    }
    let of = |c: usize| similarity(&Plane::channel(a, c), &Plane::channel(b, c));
    Ok((0..3).map(of).sum::<f64>() / 3.0)
}

/// The mean of [`ssim`] over pairs.
///
/// # Errors
/// As [`ssim`], or if there are no pairs, or more pictures on one side.
pub fn ssim_mean(a: &[RgbImage], b: &[RgbImage]) -> Result<Metric> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::usage(format!("SSIM: {} pictures and {}; it needs pairs", a.len(), b.len())));
    }
    let all = a.iter().zip(b).map(|(a, b)| ssim(a, b)).collect::<Result<Vec<_>>>()?;
    let value = all.iter().sum::<f64>() / all.len() as f64;
    Ok(Metric { name: "SSIM", definition: SSIM_DEFINITION, value, pictures: vec![all.len()] })
}
