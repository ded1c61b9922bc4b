//! Small pictures as part of the page: JPEGs without the tables that all of one size share.
//!
//! A JPEG of a thumbnail is up to its half tables. The page holds what stands before the picture itself (the «head») once for
//! each size, and of each picture the rest (the «body»); both are whole groups of base64, so that the script puts them together
//! as text.

use super::super::super::picture::blurred;
use super::super::pictures::{base64, fit, fitted};
use super::{Gallery, ReadPicture};
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
