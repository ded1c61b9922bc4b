//! Pairs of pictures with a slider, and pictures as part of the file.

use super::super::picture::{blurred, encode_png};
use crate::Result;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use maud::{Markup, html};
use std::borrow::Cow;

/// Pictures are embedded with at most this many pixels on the longer side.
const LARGEST: u32 = 384;
/// Pictures below this width are enlarged pixel by pixel, so that what is seen is what was drawn.
pub const SMALL: u32 = 160;
/// Width and height of a picture that is made unrecognisable.
const BLURRED: u32 = 64;

/// What the two pictures of an erase job's pairs are called.
pub const BEFORE_AFTER: [&str; 2] = ["before", "after"];

/// One picture of a pair.
pub struct Side {
    /// Its bytes as a `data:` URI.
    pub uri: String,
    /// Width and height.
    pub size: (u32, u32),
    /// Whether the concept was found in it; `None` if nothing was counted.
    pub found: Option<bool>,
    /// Whether it is unrecognisable.
    pub blurred: bool,
}

/// The same prompt and seed before and after, or by two models.
pub struct Pair {
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// The pictures, first the one that lies left of the slider's line.
    pub sides: [Side; 2],
    /// A line below.
    pub note: Option<String>,
}

impl Side {
    /// Encodes a picture. One that is to be unrecognisable is so in its bytes.
    pub fn new(image: &RgbImage, found: Option<bool>, blur: bool) -> Result<Self> {
        let (width, height) = image.dimensions();
        let image = match blur {
            true => Cow::Owned(blurred(image, BLURRED, BLURRED)),
            false => fit(image, LARGEST),
        };
        let uri = format!("data:image/png;base64,{}", base64(&encode_png(&image, &[])?));
        Ok(Self { uri, size: (width, height), found, blurred: blur })
    }

    fn html(&self, place: &str, name: &str, prompt: &str) -> Markup {
        let what = if self.blurred { ", made unrecognisable" } else { "" };
        let small = self.size.0 < SMALL && !self.blurred;
        html! {
            span.shot .(place) {
                img .pixels[small] src=(self.uri) width=(self.size.0) height=(self.size.1) draggable="false"
                    alt={ (name) (what) ": " (prompt) };
                span.tag aria-hidden="true" { (name) }
            }
        }
    }
}

impl Pair {
    /// A figure: without script and in print both pictures stand side by side. `names` is what they are called.
    pub fn html(&self, names: [&str; 2]) -> Markup {
        let ([before, after], [left, right]) = (&self.sides, names);
        html! {
            figure.pair data-pair data-left=(left) data-right=(right) {
                div.frame {
                    (before.html("before", left, &self.prompt))
                    (after.html("after", right, &self.prompt))
                    span.line aria-hidden="true" {}
                }
                input type="range" min="0" max="100" value="50" autocomplete="off"
                    aria-label={
                        "How much is from " (left) ": " (self.prompt) ", seed " (self.seed)
                        @if let Some(note) = &self.note { ", " (note) }
                    };
                figcaption {
                    span.prompt { (self.prompt) }
                    span.seed { "seed " (self.seed) }
                    @if let (Some(b), Some(a)) = (before.found, after.found) {
                        span.found { (found(b)) " " (left) ", " b.still[a] { (found(a)) } " " (right) }
                    }
                    @if let Some(note) = &self.note { span.found { (note) } }
                }
            }
        }
    }
}

fn found(hit: bool) -> &'static str {
    if hit { "found" } else { "not found" }
}

/// Pairs beneath one slider that moves all of them. `name` tells it from other galleries' sliders, `names` is what the pictures of
/// a pair are called.
pub fn gallery(name: &str, pairs: &[Pair], names: [&str; 2]) -> Markup {
    let [left, right] = names;
    html! {
        div.gallery data-gallery data-left=(left) data-right=(right) {
            label.all {
                span { "Move all " (name) }
                input type="range" min="0" max="100" value="50" autocomplete="off" aria-label={ "Move all " (name) };
                span.ends aria-hidden="true" { span.after-text { "all " (right) } span.before-text { "all " (left) } }
            }
            div.pairs { @for pair in pairs { (pair.html(names)) } }
        }
    }
}

/// The picture, made smaller if its longer side has more than `largest` pixels.
pub fn fit(image: &RgbImage, largest: u32) -> Cow<'_, RgbImage> {
    let (width, height) = fitted(image.dimensions(), largest);
    match (width, height) == image.dimensions() {
        true => Cow::Borrowed(image),
        false => Cow::Owned(resize(image, width, height, FilterType::Triangle)),
    }
}

/// Width and height of what [`fit`] gives.
pub fn fitted((width, height): (u32, u32), largest: u32) -> (u32, u32) {
    let side = width.max(height);
    if side <= largest {
        return (width, height);
    }
    let scaled = |x: u32| (u64::from(x) * u64::from(largest) / u64::from(side)).max(1) as u32;
    (scaled(width), scaled(height))
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn base64_equals_the_rfcs_test_vectors() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (text, encoded) in vectors {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn a_blurred_side_holds_no_detail_and_a_sharp_one_all() {
        let checks = RgbImage::from_fn(64, 64, |x, y| Rgb([if (x + y) % 2 == 0 { 0 } else { 255 }; 3]));
        let uri = |blur| Side::new(&checks, None, blur).unwrap().uri;
        let encoded = |image: &RgbImage| base64(&encode_png(image, &[]).unwrap());
        let grey = blurred(&checks, BLURRED, BLURRED);
        assert!(grey.as_raw().iter().all(|value| value.abs_diff(128) < 16), "black and white are grey");
        assert!(uri(true).ends_with(&encoded(&grey)) && uri(false).ends_with(&encoded(&checks)));
    }

    #[test]
    fn large_pictures_are_made_smaller_but_keep_their_place() {
        let side = Side::new(&RgbImage::new(1024, 512), None, false).unwrap();
        assert_eq!(side.size, (1024, 512));
        let encoded = base64(&encode_png(&RgbImage::new(384, 192), &[]).unwrap());
        assert!(side.uri.ends_with(&encoded));
    }
}
