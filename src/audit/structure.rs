//! Structural similarity (Wang et al. 2004) of two planes of numbers: Gaussian window, population covariance, mean over all whole
//! windows.

use image::RgbImage;

/// Width of the window, for pictures that have that many pixels.
pub(super) const WINDOW: usize = 11;
/// Standard deviation of its weights.
const SIGMA: f64 = 1.5;
/// `(K1 L)^2` and `(K2 L)^2`, which keep its ratios finite.
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// A picture of one number a pixel, in row-major order.
pub(super) struct Plane {
    width: usize,
    values: Vec<f64>,
}

impl Plane {
    /// Brightness: 0.299 R + 0.587 G + 0.114 B.
    pub fn luma(image: &RgbImage) -> Self {
        let grey = |p: &image::Rgb<u8>| {
            let [r, g, b] = p.0.map(f64::from);
            0.299 * r + 0.587 * g + 0.114 * b
        };
        Self { width: image.width() as usize, values: image.pixels().map(grey).collect() }
    }

    /// R, G or B.
    pub fn channel(image: &RgbImage, c: usize) -> Self {
        let values = image.pixels().map(|p| f64::from(p.0[c])).collect();
        Self { width: image.width() as usize, values }
    }

    fn times(&self, other: &Self) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a * b).collect();
        Self { width: self.width, values }
    }

    /// Weighted means over all whole windows.
    fn windows(&self, weights: &[f64]) -> Vec<f64> {
        let (k, width) = (weights.len(), self.width);
        let across = width + 1 - k;
        let rows: Vec<f64> =
            self.values.chunks(width).flat_map(|row| row.windows(k).map(|w| dot(w, weights))).collect();
        let height = self.values.len() / width;
        let column = |i: usize| (0..k).map(|j| rows[i + j * across] * weights[j]).sum();
        (0..(height + 1 - k) * across).map(column).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// How alike two planes of one size are, of at least one pixel; 1 for equal ones.
pub(super) fn similarity(a: &Plane, b: &Plane) -> f64 {
    let size = WINDOW.min(a.width).min(a.values.len() / a.width);
    let centre = (size as f64 - 1.0) / 2.0;
    let weight = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp();
    let sum: f64 = (0..size).map(weight).sum();
    let weights: Vec<f64> = (0..size).map(|i| weight(i) / sum).collect();
    let [aa, bb, ab] = [a.times(a), b.times(b), a.times(b)].map(|plane| plane.windows(&weights));
    let (a, b) = (a.windows(&weights), b.windows(&weights));
    let at = |i: usize| {
        let (ma, mb) = (a[i], b[i]);
        let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
        (2.0 * ma * mb + C1) * (2.0 * cov + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    };
    (0..a.len()).map(at).sum::<f64>() / a.len().max(1) as f64
}
