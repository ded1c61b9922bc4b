//! Pictures resized as Pillow's `Image.resize` does it, to the level: what detectors were trained on.
//!
//! Pillow widens a filter by the scale when it shrinks (so it antialiases), keeps the weights as whole numbers of 22
//! bits, and rounds to 8 bits after the horizontal and again after the vertical pass (`src/libImaging/Resample.c`).

use image::RgbImage;

/// Bits after the point of a weight: 8 for the level, 2 for sums beyond 1 are left of 32.
const BITS: u32 = 32 - 8 - 2;

/// A filter, by Pillow's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// 0: the pixel under the centre.
    Nearest,
    /// 1: Lanczos' windowed sinc, three lobes.
    Lanczos,
    /// 2: a triangle.
    Bilinear,
    /// 3: the cubic of Keys with a = -0.5.
    Bicubic,
    /// 4: the mean of a box.
    Box,
    /// 5: a sinc of one lobe under Hamming's window.
    Hamming,
}

impl Filter {
    /// The filter that a preprocessor's `resample` means.
    pub fn of_number(number: u64) -> Option<Self> {
        use Filter::{Bicubic, Bilinear, Box, Hamming, Lanczos, Nearest};
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming].get(usize::try_from(number).ok()?).copied()
    }

    /// Half the width of the filter, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        match self {
            Self::Nearest => 1.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming if x.abs() >= 1.0 => 0.0,
            Self::Hamming => sinc(x) * (0.54 + 0.46 * (x * std::f64::consts::PI).cos()),
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                match x {
                    _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// The weights of one pixel that comes out, from the first pixel that goes in.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(filter: Filter, from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // casts cut off, as in C; what is below 0 becomes 0
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |x: usize| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch));
        let mut weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let whole = |weight: &f64| (weight * f64::from(1u32 << BITS) + 0.5f64.copysign(*weight)) as i32;
        Taps { first, weights: weights.iter().map(whole).collect() }
    };
    (0..to).map(one).collect()
}

/// Where the nearest pixels lie; Pillow adds up the steps, with what that rounds.
fn places(from: usize, to: usize) -> Vec<u32> {
    let step = from as f64 / to as f64;
    let steps = std::iter::successors(Some(step * 0.5), |place| Some(place + step));
    steps.take(to).map(|place| (place as u32).min(from as u32 - 1)).collect()
}

fn level(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The picture at another size; the same bytes as Pillow 13's `resize((width, height), resample=filter)`.
pub fn resized(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (to_w, to_h) = (width as usize, height as usize);
    if (w, h) == (to_w, to_h) || image.is_empty() || to_w == 0 || to_h == 0 {
        return if (w, h) == (to_w, to_h) { image.clone() } else { RgbImage::new(width, height) };
    }
    if filter == Filter::Nearest {
        let (xs, ys) = (places(w, to_w), places(h, to_h));
        return RgbImage::from_fn(width, height, |x, y| *image.get_pixel(xs[x as usize], ys[y as usize]));
    }
    let (raw, wrap) = (image.as_raw(), |bytes| RgbImage::from_raw(width, height, bytes));
    let out = match vertical_first((w, h), (to_w, to_h)) {
        true => across(&down(raw, w, (h, to_h), filter), (w, to_w), filter),
        false => down(&across(raw, (w, to_w), filter), to_w, (h, to_h), filter),
    };
    wrap(out).unwrap_or_else(|| RgbImage::new(width, height))
}

/// Which pass comes first changes a level here and there. Pillow 13 begins with the columns where the height shrinks,
/// and by more than twice as many pixels as the width (found by trying 2,951 pairs of sizes); Pillow 12 and before
/// always with the rows.
fn vertical_first((w, h): (usize, usize), (to_w, to_h): (usize, usize)) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    to_h < h && shrinks(h, to_h) > 2 * shrinks(w, to_w)
}

const HALF: i32 = 1 << (BITS - 1);

/// The pass along rows of `w` pixels.
fn across(image: &[u8], (w, to_w): (usize, usize), filter: Filter) -> Vec<u8> {
    if w == to_w {
        return image.to_vec();
    }
    let taps = taps(filter, w, to_w);
    let mut out = Vec::with_capacity(image.len() / w * to_w);
    for row in image.chunks_exact(w * 3) {
        for tap in &taps {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[tap.first * 3..].chunks_exact(3).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(level));
        }
    }
    out
}

/// The pass along columns, of a picture `width` pixels wide.
fn down(image: &[u8], width: usize, (h, to_h): (usize, usize), filter: Filter) -> Vec<u8> {
    if h == to_h {
        return image.to_vec();
    }
    let stride = width * 3;
    let mut out = Vec::with_capacity(stride * to_h);
    let mut sums = vec![HALF; stride];
    for tap in taps(filter, h, to_h) {
        sums.fill(HALF);
        for (row, weight) in image[tap.first * stride..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| level(*sum)));
    }
    out
}
