//! How alike two pictures are in their structure: what changed at the same prompt and seed.

use super::Metric;
use crate::{Error, Result};
use image::RgbImage;

/// What [`ssim`] is.
pub const SSIM_DEFINITION: &str = "\
    structural similarity (Wang et al. 2004) of two pictures of the same prompt and seed: Gaussian window of 11 x \
    11, sigma 1.5, K1 0.01, K2 0.03, levels 0 to 255, population covariance, mean over the windows that lie inside \
    the picture and over R, G and B (as scikit-image's structural_similarity with gaussian_weights=True, \
    use_sample_covariance=False, data_range=255, channel_axis=-1). 1 is equal";

const RADIUS: usize = 5;
const SIGMA: f64 = 1.5;
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// The structural similarity of two pictures; see [`SSIM_DEFINITION`].
///
/// # Errors
/// Unless they have one size, of at least 11x11.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    let (width, height) = (a.width() as usize, a.height() as usize);
    if a.dimensions() != b.dimensions() || width.min(height) < 2 * RADIUS + 1 {
        return Err(Error::usage(format!(
            "SSIM: pictures of {width}x{height} and {}x{}; it needs two of one size, of at least 11x11",
            b.width(),
            b.height()
        )));
    }
    let channel = |image: &RgbImage, c: usize| -> Vec<f64> {
        image.as_raw().iter().skip(c).step_by(3).map(|level| f64::from(*level)).collect()
    };
    let mut sum = 0.0;
    for c in 0..3 {
        let (x, y) = (channel(a, c), channel(b, c));
        let product = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * q).collect::<Vec<_>>();
        let mean = |values: &[f64]| windows(values, width, height);
        let (mx, my) = (mean(&x), mean(&y));
        let (xx, yy, xy) = (mean(&product(&x, &x)), mean(&product(&y, &y)), mean(&product(&x, &y)));
        let one = |i: usize| {
            let (vx, vy, covariance) = (xx[i] - mx[i] * mx[i], yy[i] - my[i] * my[i], xy[i] - mx[i] * my[i]);
            let above = (2.0 * mx[i] * my[i] + C1) * (2.0 * covariance + C2);
            above / ((mx[i] * mx[i] + my[i] * my[i] + C1) * (vx + vy + C2))
        };
        sum += (0..mx.len()).map(one).sum::<f64>() / mx.len() as f64;
    }
    Ok(sum / 3.0)
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

/// Gaussian means of all windows that lie inside, rows first.
fn windows(values: &[f64], width: usize, height: usize) -> Vec<f64> {
    let mut kernel = [0.0; 2 * RADIUS + 1];
    for (i, weight) in kernel.iter_mut().enumerate() {
        let x = i as f64 - RADIUS as f64;
        *weight = (-0.5 * x * x / (SIGMA * SIGMA)).exp();
    }
    let sum: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|weight| *weight /= sum);

    let (inner_width, inner_height) = (width - 2 * RADIUS, height - 2 * RADIUS);
    let mut across = Vec::with_capacity(inner_width * height);
    for row in values.chunks_exact(width) {
        across.extend(row.windows(kernel.len()).map(|w| w.iter().zip(&kernel).map(|(a, b)| a * b).sum::<f64>()));
    }
    let mut out = vec![0.0; inner_width * inner_height];
    for (y, out) in out.chunks_exact_mut(inner_width).enumerate() {
        for (row, weight) in across[y * inner_width..].chunks_exact(inner_width).zip(&kernel) {
            out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
        }
    }
    out
}
