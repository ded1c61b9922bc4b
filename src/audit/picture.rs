//! Pictures: from tensors, and as PNG with the text chunk that A1111 and others read.

use crate::{Error, Result};
use candle_core::Tensor;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use std::fmt;

/// What made a picture, in the text that A1111 and other tools read.
pub struct Infotext<'a> {
    /// What was asked for.
    pub prompt: &'a str,
    /// What was steered away from; left out if empty.
    pub negative_prompt: &'a str,
    /// Denoising steps.
    pub steps: usize,
    /// Name of the sampler.
    pub sampler: &'a str,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Seed.
    pub seed: u64,
    /// Width and height.
    pub size: (u32, u32),
    /// SHA-256 in hex; ten digits of it are written.
    pub model_hash: &'a str,
    /// Name of the model.
    pub model: &'a str,
}

impl fmt::Display for Infotext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "Negative prompt: {}", self.negative_prompt)?;
        }
        let ((width, height), hash) = (self.size, &self.model_hash[..self.model_hash.len().min(10)]);
        write!(f, "Steps: {}, Sampler: {}, CFG scale: {}, ", self.steps, self.sampler, self.guidance_scale)?;
        write!(f, "Seed: {}, Size: {width}x{height}, Model hash: {hash}, ", self.seed)?;
        let model = match self.model.contains([',', ':', '\n']) {
            true => format!("{:?}", self.model),
            false => self.model.to_string(),
        };
        write!(f, "Model: {model}, RNG: CPU, Version: erase-concept {}", env!("CARGO_PKG_VERSION"))
    }
}

/// `(B, 3, H, W)` in -1 to 1 to pictures, rounded half to even.
pub fn to_images(x: &Tensor) -> Result<Vec<RgbImage>> {
    let (_, _, height, width) = x.dims4()?;
    let values: Vec<f32> = x.permute((0, 2, 3, 1))?.contiguous()?.flatten_all()?.to_vec1()?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::Numeric(
            "a picture has a value that is NaN or infinite: the VAE's config may not fit its weights; download the model \
             again"
                .into(),
        ));
    }
    let byte = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let image = |pixels: &[f32]| {
        let image = RgbImage::from_raw(width as u32, height as u32, pixels.iter().map(byte).collect());
        image.ok_or_else(|| Error::Numeric(format!("{} values are not a picture", pixels.len())))
    };
    values.chunks(height * width * 3).map(image).collect()
}

/// The bytes of pictures as a tensor in -1 to 1: what a classifier sees is what the PNG holds.
///
/// # Shape
/// `B` pictures of one size -> `(B, 3, H, W)`.
pub fn from_images(images: &[RgbImage]) -> Result<Tensor> {
    let Some(first) = images.first() else { return Err(Error::usage("there are no pictures")) };
    let (width, height) = (first.width() as usize, first.height() as usize);
    let values: Vec<f32> = images.iter().flat_map(|i| i.as_raw()).map(|byte| f32::from(*byte) / 127.5 - 1.0).collect();
    let pixels = Tensor::from_vec(values, (images.len(), height, width, 3), &candle_core::Device::Cpu)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

/// A picture that cannot be recognised: down to a few patches and back, so that no sharpening brings it back.
pub fn blurred(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let tiny = resize(image, 6, 6, FilterType::Triangle);
    resize(&tiny, width, height, FilterType::Triangle)
}

/// A PNG with text chunks: `tEXt` where Latin-1 is enough, `iTXt` elsewhere.
pub fn encode_png(image: &RgbImage, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encode = || -> std::result::Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in text {
            match value.chars().all(|c| u32::from(c) < 256) {
                true => encoder.add_text_chunk((*key).to_string(), (*value).to_string())?,
                false => encoder.add_itxt_chunk((*key).to_string(), (*value).to_string())?,
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(image)?;
        writer.finish()
    };
    encode().map_err(|error| Error::Numeric(format!("a picture cannot be encoded: {error}")))?;
    Ok(bytes)
}
