//! Drift: how far the picture of a prompt and seed moved between two models.

use super::structure::{Plane, similarity};
use super::verify::{Drawn, Verification};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the numbers are, for reports.
pub const DRIFT_DEFINITION: &str = "two pictures of one prompt and seed, before and after, both averaged over F x F pixels \
    with F = max(1, round(shorter side / 256)); difference: mean absolute difference of their 8-bit RGB values, 0 to 255; \
    ssim: structural similarity (Wang et al. 2004) of luma 0.299 R + 0.587 G + 0.114 B, Gaussian window 11 x 11 with sigma \
    1.5, K1 = 0.01, K2 = 0.03, L = 255, mean over all whole windows; a prompt's value is the mean over its pictures";

/// One picture before and after.
pub struct Move<'a> {
    /// `concept`, `synonym`, `retain` or `preserve`.
    pub group: &'static str,
    /// Its prompt.
    pub prompt: &'a str,
    /// Its seed.
    pub seed: u64,
    /// The picture before, averaged down.
    pub before: &'a RgbImage,
    /// The picture after.
    pub after: &'a RgbImage,
    /// Mean absolute difference, 0 to 255.
    pub difference: f64,
    /// Structural similarity, at most 1.
    pub ssim: f64,
}

/// Means over pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriftMean {
    /// Pictures.
    pub n: usize,
    /// Mean absolute difference, 0 to 255.
    pub difference: f64,
    /// Structural similarity, at most 1.
    pub ssim: f64,
}

/// A prompt's mean over its pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptDrift {
    /// The prompt.
    pub prompt: String,
    /// Its mean.
    #[serde(flatten)]
    pub mean: DriftMean,
}

/// How far everything moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// [`DRIFT_DEFINITION`].
    pub definition: &'static str,
    /// Pictures of the concept, which should move.
    pub concept: Option<DriftMean>,
    /// Pictures of its synonyms.
    pub synonyms: Option<DriftMean>,
    /// Pictures of everything else, which should not.
    pub retain: Option<DriftMean>,
    /// Each retain prompt, the most drifted first.
    pub prompts: Vec<PromptDrift>,
}

/// Compares two verifications of one plan picture by picture, in the order of the pictures.
pub fn moves<'a>(before: &'a Verification, after: &'a Verification) -> Vec<Move<'a>> {
    moves_of(&before.drawn, &after.drawn)
}

/// Compares two lists of pictures one by one, in order.
pub fn moves_of<'a>(before: &'a [Drawn], after: &'a [Drawn]) -> Vec<Move<'a>> {
    let pairs: Vec<(&Drawn, &Drawn)> = before.iter().zip(after).collect();
    let compare = |(b, a): &(&'a Drawn, &'a Drawn)| Move {
        group: b.group,
        prompt: &b.prompt,
        seed: b.seed,
        before: &b.image,
        after: &a.image,
        difference: difference(&b.image, &a.image),
        ssim: ssim(&b.image, &a.image),
    };
    pairs.par_iter().map(compare).collect()
}

impl Drift {
    /// Takes the means.
    pub fn new(moves: &[Move<'_>]) -> Self {
        let of = |group: &str| mean(moves.iter().filter(|m| m.group == group));
        let prompts = by_prompt(moves.iter().filter(|m| m.group == "retain"));
        Self {
            definition: DRIFT_DEFINITION,
            concept: of("concept"),
            synonyms: of("synonym"),
            retain: of("retain"),
            prompts,
        }
    }
}

/// The mean of each prompt, the most drifted first.
pub fn by_prompt<'a>(moves: impl Iterator<Item = &'a Move<'a>>) -> Vec<PromptDrift> {
    let mut prompts: BTreeMap<&str, Vec<&Move<'_>>> = BTreeMap::new();
    moves.for_each(|m| prompts.entry(m.prompt).or_default().push(m));
    let prompts = prompts
        .into_iter()
        .filter_map(|(prompt, moves)| Some(PromptDrift { prompt: prompt.to_string(), mean: mean(moves.into_iter())? }));
    let mut prompts: Vec<PromptDrift> = prompts.collect();
    prompts.sort_by(|a, b| b.mean.difference.total_cmp(&a.mean.difference));
    prompts
}

/// The mean of some pictures; `None` if there are none.
pub fn mean<'a>(moves: impl Iterator<Item = &'a Move<'a>>) -> Option<DriftMean> {
    let (mut n, mut difference, mut ssim) = (0, 0.0, 0.0);
    for m in moves {
        n += 1;
        difference += m.difference;
        ssim += m.ssim;
    }
    (n > 0).then(|| DriftMean { n, difference: difference / n as f64, ssim: ssim / n as f64 })
}

/// A picture averaged over F x F pixels with F = max(1, round(shorter side / 256)); what is left over at the right and below
/// is cut off.
pub fn averaged_down(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let f = ((f64::from(width.min(height)) / 256.0).round() as u32).max(1);
    if f == 1 {
        return image.clone();
    }
    RgbImage::from_fn(width / f, height / f, |x, y| {
        let mut sums = [0u32; 3];
        for k in 0..f * f {
            let pixel = image.get_pixel(x * f + k % f, y * f + k / f);
            sums.iter_mut().zip(pixel.0).for_each(|(sum, value)| *sum += u32::from(value));
        }
        image::Rgb(sums.map(|sum| ((sum + f * f / 2) / (f * f)) as u8))
    })
}

/// Mean absolute difference of 8-bit values, 0 to 255.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len().max(1) as f64
}

/// Structural similarity as [`DRIFT_DEFINITION`] says; 1 for equal pictures.
fn ssim(a: &RgbImage, b: &RgbImage) -> f64 {
    if a.width().min(a.height()) == 0 || a.dimensions() != b.dimensions() {
        return 0.0;
    }
    similarity(&Plane::luma(a), &Plane::luma(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture(k: u32) -> RgbImage {
        RgbImage::from_fn(24, 20, |x, y| {
            Rgb([(x * 37 + y * k) % 256, (x * y * 5 + k) % 256, (x * x + y) % 256].map(|v| v as u8))
        })
    }

    #[test]
    fn difference_and_ssim_equal_reference_values() {
        // a plain Python loop over every window, variances from their definition: sum of G (p - mean)^2 with
        // G = exp(-((i - 5)^2 + (j - 5)^2) / 4.5) / sum
        let (a, b) = (picture(11), picture(60));
        assert!((difference(&a, &b) - 51.865_277_777_777_78).abs() < 1e-9, "{}", difference(&a, &b));
        assert!((ssim(&a, &b) - 0.069_332_768_444_910_96).abs() < 1e-9, "{}", ssim(&a, &b));
        assert_eq!((difference(&a, &a), ssim(&a, &a)), (0.0, 1.0));
    }

    #[test]
    fn large_pictures_are_averaged_and_small_ones_left() {
        let large =
            RgbImage::from_fn(513, 512, |x, y| Rgb([x % 2 * 100, y % 2 * 50, (x + y) % 2 * 80].map(|v| v as u8)));
        let small = averaged_down(&large);
        assert_eq!(small.dimensions(), (256, 256));
        assert!(small.pixels().all(|p| p.0 == [50, 25, 40]));
        assert_eq!(averaged_down(&picture(1)), picture(1));
    }

    #[test]
    fn prompts_are_sorted_by_drift_and_other_groups_are_kept_apart() {
        let (black, grey, white) = (
            RgbImage::new(16, 16),
            RgbImage::from_pixel(16, 16, Rgb([10; 3])),
            RgbImage::from_pixel(16, 16, Rgb([255; 3])),
        );
        let drawn = |group, prompt: &str, seed, image: &RgbImage| Drawn {
            group,
            prompt: prompt.into(),
            seed,
            image: image.clone(),
        };
        let side = |far: &RgbImage, near: &RgbImage| Verification {
            drawn: vec![
                drawn("concept", "a star", 1, far),
                drawn("retain", "a ring", 2, near),
                drawn("retain", "a cross", 3, far),
                drawn("retain", "a ring", 4, &black),
            ],
            ..Verification::default()
        };
        let (before, after) = (side(&black, &black), side(&white, &grey));
        let moves = moves(&before, &after);
        assert_eq!(moves.iter().map(|m| m.seed).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let drift = Drift::new(&moves);
        let found: Vec<_> = drift.prompts.iter().map(|p| (p.prompt.as_str(), p.mean.n, p.mean.difference)).collect();
        assert_eq!(found, [("a cross", 1, 255.0), ("a ring", 2, 5.0)]);
        assert_eq!(drift.retain.map(|m| (m.n, m.difference)), Some((3, 265.0 / 3.0)));
        assert_eq!((drift.concept.map(|m| m.difference), drift.synonyms), (Some(255.0), None));
    }
}
