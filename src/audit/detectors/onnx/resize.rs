//! Pictures as the network wants them: padded to a square, and resized as OpenCV's `INTER_LINEAR` does it to the level, which
//! takes the two nearest pixels each way however much it shrinks (`modules/imgproc/src/resize.cpp`).

use image::{RgbImage, imageops};

/// Weights have 11 bits after the point.
const ONE: f32 = 2048.0;

/// One row or column that comes out: the two that go in, and their weights.
struct Pair {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// `inside`: whether a place beyond the edge has the edge's pixel alone (columns), or both of its pixels are the edge's (rows).
fn pairs(from: usize, to: usize, inside: bool) -> Vec<Pair> {
    let scale = from as f64 / to as f64;
    let last = from as i64 - 1;
    let pair = |i: usize| {
        let place = ((i as f64 + 0.5) * scale - 0.5) as f32;
        let (mut first, mut part) = (place.floor() as i64, place - place.floor());
        if inside && first < 0 {
            (first, part) = (0, 0.0);
        }
        if inside && first >= last {
            (first, part) = (last, 0.0);
        }
        let clip = |i: i64| i.clamp(0, last) as usize;
        let weights = [1.0 - part, part].map(|weight| (weight * ONE).round_ties_even() as i32);
        Pair { first: clip(first), second: clip(first + 1), weights }
    };
    (0..to).map(pair).collect()
}

/// A square picture at another size; the same bytes as OpenCV 5.0's `resize` with `INTER_LINEAR`.
pub fn resized_as_opencv(image: &RgbImage, side: usize) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if (width, height) == (side, side) || image.is_empty() {
        return image.clone();
    }
    let (columns, rows) = (pairs(width, side, true), pairs(height, side, false));
    let raw = image.as_raw();
    let across = |y: usize| -> Vec<i32> {
        let row = &raw[y * width * 3..][..width * 3];
        let value = |pair: &Pair, c: usize| {
            i32::from(row[pair.first * 3 + c]) * pair.weights[0] + i32::from(row[pair.second * 3 + c]) * pair.weights[1]
        };
        columns.iter().flat_map(|pair| [0, 1, 2].map(|c| value(pair, c))).collect()
    };
    let mut kept: [Option<(usize, Vec<i32>)>; 2] = [None, None];
    let mut out = Vec::with_capacity(side * side * 3);
    for pair in &rows {
        for (slot, y) in [pair.first, pair.second].into_iter().enumerate() {
            if kept[slot].as_ref().is_none_or(|(row, _)| *row != y) {
                let other = kept[1 - slot].as_ref().filter(|(row, _)| *row == y).map(|(_, values)| values.clone());
                kept[slot] = Some((y, other.unwrap_or_else(|| across(y))));
            }
        }
        let [Some((_, above)), Some((_, below))] = &kept else { continue };
        let level = |a: &i32, b: &i32| {
            let sum = ((pair.weights[0] * (a >> 4)) >> 16) + ((pair.weights[1] * (b >> 4)) >> 16);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        };
        out.extend(above.iter().zip(below).map(|(a, b)| level(a, b)));
    }
    RgbImage::from_raw(side as u32, side as u32, out).unwrap_or_default()
}

/// A picture as the network's input, in 0 to 1.
///
/// # Shape
/// `(1, 3, side, side)`, one row after another; blue first if `bgr`.
pub fn input(image: &RgbImage, side: usize, bgr: bool) -> Vec<f32> {
    let longest = image.width().max(image.height());
    let mut square = RgbImage::new(longest, longest);
    imageops::replace(&mut square, image, 0, 0);
    let resized = resized_as_opencv(&square, side);
    let channels = if bgr { [2, 1, 0] } else { [0, 1, 2] };
    let level = |c: usize| resized.pixels().map(move |pixel| (f64::from(pixel.0[c]) / 255.0) as f32);
    channels.into_iter().flat_map(level).collect()
}
