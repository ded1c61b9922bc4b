//! Small pictures as part of the page: JPEGs without the tables that all of one size share.
//!
//! A JPEG of a thumbnail is up to its half tables. The page holds what stands before the picture itself (the «head») once for
//! each size, and of each picture the rest (the «body»); both are whole groups of base64, so that the script puts them together
//! as text.

use super::super::pictures::{base64, fit, fitted};
use super::{Gallery, ReadPicture};
use crate::audit::blurred;
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use image::RgbImage;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder};
use rayon::prelude::*;

/// Pixels of a thumbnail's longer side: the largest with which all fit is taken.
const SIDES: [u32; 5] = [256, 192, 128, 96, 64];
/// Pictures by which it is chosen.
const TRIED: usize = 32;
/// Pixels of the longer side of one that is unrecognisable.
const HIDDEN: u32 = 32;
/// Quality of JPEGs, of 100.
const QUALITY: u8 = 75;
/// Pictures that are read before it is looked at whether there is room for more.
const TOGETHER: usize = 64;
/// What stands about a body: `,12,""`.
const AROUND: usize = 6;

/// The thumbnails of a page.
#[derive(Default)]
pub(super) struct Thumbnails {
    heads: Vec<String>,
    /// Number of its head, and the rest; in the pictures' order.
    bodies: Vec<Option<(usize, String)>>,
}

/// A thumbnail, in base64.
struct Thumbnail {
    head: String,
    body: String,
}

impl Thumbnails {
    /// Thumbnails of the first `listed` pictures, as many of them as fit into `bytes`, in order.
    pub fn new(
        gallery: &Gallery<'_>,
        listed: usize,
        bytes: usize,
        read: &ReadPicture<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let there: Vec<usize> = (0..listed).filter(|i| gallery.pictures[*i].file.is_some()).collect();
        let mut thumbnails = Self::default();
        if there.is_empty() {
            return Ok(thumbnails);
        }
        progress.event(Event::Stage { name: "making thumbnails", steps: there.len() });
        let hides = |i: usize| gallery.hides(&gallery.pictures[i]);
        let largest = largest(&there, bytes, &hides, read)?;
        let mut left = bytes;
        'all: for some in there.chunks(TOGETHER) {
            check_interrupted()?;
            let made: Result<Vec<Thumbnail>> =
                some.par_iter().map(|i| Thumbnail::new(&read(*i)?, largest, hides(*i))).collect();
            for (i, thumbnail) in some.iter().zip(made?) {
                let known = thumbnails.heads.iter().position(|head| *head == thumbnail.head);
                let takes = AROUND + thumbnail.body.len() + if known.is_some() { 0 } else { thumbnail.head.len() + 3 };
                let Some(rest) = left.checked_sub(takes) else { break 'all };
                left = rest;
                let head = known.unwrap_or(thumbnails.heads.len());
                if known.is_none() {
                    thumbnails.heads.push(thumbnail.head);
                }
                thumbnails.bodies.resize(*i, None);
                thumbnails.bodies.push(Some((head, thumbnail.body)));
                progress.event(Event::Step { loss: None });
            }
        }
        Ok(thumbnails)
    }

    /// How many there are.
    pub fn inlined(&self) -> usize {
        self.bodies.iter().flatten().count()
    }

    /// Their bytes in the page.
    pub fn bytes(&self) -> usize {
        let bodies = self.bodies.iter().flatten().map(|(_, body)| body.len() + AROUND);
        self.heads.iter().map(|head| head.len() + 3).chain(bodies).sum()
    }

    /// What stands before pictures of each size.
    pub fn heads(&self) -> impl Iterator<Item = &str> {
        self.heads.iter().map(String::as_str)
    }

    /// The thumbnail of a picture: its head's number, and the rest.
    pub fn of(&self, picture: usize) -> Option<(usize, &str)> {
        self.bodies.get(picture)?.as_ref().map(|(head, body)| (*head, body.as_str()))
    }
}

/// The side with which all pictures fit into `bytes`, by some that lie evenly among them.
fn largest(there: &[usize], bytes: usize, hides: &dyn Fn(usize) -> bool, read: &ReadPicture<'_>) -> Result<u32> {
    let tried: Vec<usize> =
        (0..there.len().min(TRIED)).map(|k| there[k * there.len() / there.len().min(TRIED)]).collect();
    let pictures: Vec<(RgbImage, bool)> = tried.iter().map(|i| Ok((read(*i)?, hides(*i)))).collect::<Result<_>>()?;
    for side in SIDES {
        let lengths: Vec<usize> = pictures
            .iter()
            .map(|(picture, hide)| Ok(Thumbnail::new(picture, side, *hide)?.body.len() + AROUND))
            .collect::<Result<_>>()?;
        if lengths.iter().sum::<usize>() as f64 / lengths.len() as f64 * there.len() as f64 <= bytes as f64 {
            return Ok(side);
        }
    }
    Ok(SIDES[SIDES.len() - 1])
}

impl Thumbnail {
    fn new(picture: &RgbImage, largest: u32, hide: bool) -> Result<Self> {
        let bytes = match hide {
            true => {
                let (width, height) = fitted(picture.dimensions(), HIDDEN);
                jpeg(&blurred(picture, width, height))?
            }
            false => jpeg(&fit(picture, largest))?,
        };
        let at = scan(&bytes).ok_or_else(|| Error::Numeric("a thumbnail's JPEG holds no picture".into()))?;
        let (head, body) = bytes.split_at(at);
        // a marker may have any number of bytes FF before it: the head becomes a whole number of base64's groups
        let fill = vec![0xff; (3 - head.len() % 3) % 3];
        let head = [&head[..2], &fill, &head[2..]].concat();
        Ok(Self { head: base64(&head), body: base64(body) })
    }
}

fn jpeg(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, QUALITY);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
    let encoded = encoder.encode(picture, side(picture.width()), side(picture.height()), ColorType::Rgb);
    encoded.map_err(|error| Error::Numeric(format!("a thumbnail cannot be encoded: {error}")))?;
    Ok(bytes)
}

/// Where the picture begins in a JPEG, behind the header of its scan.
fn scan(jpeg: &[u8]) -> Option<usize> {
    let mut at = 2; // behind the first marker, which has no length
    loop {
        let (marker, length) = (jpeg.get(at + 1)?, [*jpeg.get(at + 2)?, *jpeg.get(at + 3)?]);
        at += 2 + usize::from(u16::from_be_bytes(length));
        if *marker == 0xda {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GalleryPicture;
    use super::*;
    use crate::progress::Silent;
    use image::Rgb;

    fn noise(side: u32, seed: u32) -> RgbImage {
        let at =
            |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503) ^ seed.wrapping_mul(69_069)) >> 7;
        RgbImage::from_fn(side, side, |x, y| Rgb([at(x, y) as u8, at(y, x) as u8, at(x + 7, y) as u8]))
    }

    #[test]
    fn pictures_of_one_size_share_what_stands_before_them() {
        let [a, b, other] = [(noise(48, 1), 64), (noise(48, 2), 64), (noise(48, 1), 32)]
            .map(|(p, side)| Thumbnail::new(&p, side, false).unwrap());
        assert!(a.head == b.head && a.body != b.body && a.head != other.head);
        assert!(!a.head.contains('=') && a.head.len().is_multiple_of(4), "whole groups, to which text can be added");
        assert!(a.head.starts_with("/9j"), "a JPEG");
    }

    #[test]
    fn one_that_is_hidden_holds_no_detail() {
        let checks = RgbImage::from_fn(96, 96, |x, y| Rgb([if (x + y) % 2 == 0 { 0 } else { 255 }; 3]));
        let grey = RgbImage::from_pixel(96, 96, Rgb([128; 3]));
        let of = |picture: &RgbImage, hide| Thumbnail::new(picture, 256, hide).unwrap().body;
        assert!(
            of(&checks, true).len() < of(&grey, true).len() + 64
                && of(&checks, false).len() > 10 * of(&checks, true).len()
        );
    }

    #[test]
    fn as_many_as_fit_are_there_and_no_more() {
        let file = "images/x.png";
        let picture = |i: usize| GalleryPicture {
            model: 0,
            case: "1",
            sample: i,
            prompt: "p",
            seed: 0,
            guidance_scale: 1.0,
            size: (96, 96),
            file: (i != 3).then_some(file),
            labels: vec![],
        };
        let gallery =
            Gallery { models: vec!["m"], labels: vec![], pictures: (0..150).map(picture).collect(), hide: true };
        let made = |bytes| {
            let read = |i: usize| Ok(noise(96, i as u32));
            Thumbnails::new(&gallery, 150, bytes, &read, &mut Silent).unwrap()
        };
        let all = made(10_000_000);
        assert_eq!((all.inlined(), all.of(3), all.heads().count()), (149, None, 1));
        let small = made(all.bytes() / 2);
        assert!(small.inlined() == 149 && small.bytes() <= all.bytes() / 2, "smaller ones, so that all are there");
        let few = made(all.bytes() / 20);
        assert!((1..149).contains(&few.inlined()) && few.bytes() <= all.bytes() / 20, "{}", few.inlined());
        assert!(few.of(0).is_some() && few.of(149).is_none(), "the first ones");
        assert_eq!(made(0).inlined(), 0);
    }
}
