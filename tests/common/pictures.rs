//! Pictures that the Python beside the fixtures makes too.

use image::RgbImage;

/// `picture` of `fixtures/detectors/make_detectors.py`.
pub fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let level = |c: u32| {
            (3 * x * x + 5 * y * y + (7 + seed) * x * y + (11 + 17 * c) * x + (13 + 29 * seed) * y + 40 * c) / 8 % 256
        };
        image::Rgb([0, 1, 2].map(|c| level(c) as u8))
    })
}
