//! Pictures prepared as a model's `preprocessor_config.json` says: what transformers' image processors of CLIP, ViT and
//! ConvNeXT (which ResNet uses) do on the CPU, with Pillow.

use super::resample::{Filter, resized};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use image::RgbImage;
use image::imageops::crop_imm;
use rayon::prelude::*;
use serde_json::Value;

/// Sides above this are no detector's.
const LARGEST: u64 = 4096;

/// Whose processor it is: they differ in what is left out of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessorKind {
    /// `CLIPImageProcessor`.
    Clip,
    /// `ViTImageProcessor`.
    Vit,
    /// `ConvNextImageProcessor`.
    ConvNext,
}

/// How a picture gets its size.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Resize {
    /// To this height and width, whatever the shape.
    To(usize, usize),
    /// The shorter side to this, the other in proportion.
    ShortestEdge(usize),
    /// ConvNeXT's: the shorter side to `edge / crop_pct`, then the middle `edge` square; from 384 on `edge` square at once.
    ConvNext { edge: usize, crop_pct: f64 },
}

/// A processor.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    resize: Option<Resize>,
    filter: Filter,
    crop: Option<(usize, usize)>,
    rescale: Option<f64>,
    normalise: Option<([f32; 3], [f32; 3])>,
}

impl ImageProcessor {
    /// Reads a `preprocessor_config.json`, parsed; `kind` counts where the file does not say whose it is.
    ///
    /// # Errors
    /// If it is another processor's, or a value makes no sense; the message names it.
    pub fn from_value(config: &Value, kind: ProcessorKind) -> Result<Self> {
        let name = ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| config.get(*key)?.as_str());
        let kind = name.map_or(Ok(kind), ProcessorKind::of)?;
        let flag = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
        let number = |key: &str, default: f64| config.get(key).and_then(Value::as_f64).unwrap_or(default);

        let resample =
            config.get("resample").and_then(Value::as_u64).unwrap_or(if kind == ProcessorKind::Vit { 2 } else { 3 });
        let filter = Filter::of_number(resample)
            .ok_or_else(|| Error::usage(format!("resample is {resample}, which is no filter")))?;
        let resize = flag("do_resize", true).then(|| kind.resize(config)).transpose()?;
        let crop = flag("do_center_crop", kind == ProcessorKind::Clip).then(|| {
            let crop = config.get("crop_size").filter(|value| !value.is_null());
            crop.map_or(Ok((224, 224)), |crop| match side(crop, "crop_size") {
                Some(side) => side.map(|side| (side, side)),
                None => height_width(crop, "crop_size"),
            })
        });
        let rescale = flag("do_rescale", true).then(|| number("rescale_factor", 1.0 / 255.0));
        let (mean, std) = match kind {
            ProcessorKind::Clip => ([0.48145466, 0.4578275, 0.40821073], [0.26862955, 0.2613026, 0.2757771]),
            ProcessorKind::Vit | ProcessorKind::ConvNext => ([0.5; 3], [0.5; 3]),
        };
        let normalise = flag("do_normalize", true)
            .then(|| Ok::<_, Error>((channels(config, "image_mean", mean)?, channels(config, "image_std", std)?)));
        let normalise = normalise.transpose()?;
        if normalise.is_some_and(|(_, std)| std.contains(&0.0)) {
            return Err(Error::usage("image_std has a 0"));
        }
        Ok(Self { resize, filter, crop: crop.transpose()?, rescale, normalise })
    }

    /// Prepares pictures, which may have different sizes.
    ///
    /// # Shape
    /// `B` pictures -> `(B, 3, H, W)`.
    ///
    /// # Errors
    /// If they do not come out at one size.
    pub fn prepare(&self, images: &[RgbImage]) -> Result<Tensor> {
        let fitted: Vec<RgbImage> = images.par_iter().map(|image| self.fitted(image)).collect();
        let Some(first) = fitted.first() else { return Err(Error::usage("there are no pictures")) };
        let (width, height) = first.dimensions();
        if let Some(other) = fitted.iter().find(|image| image.dimensions() != (width, height)) {
            let (w, h) = other.dimensions();
            let what = format!(
                "pictures of {width}x{height} and {w}x{h} in one batch; the preprocessor's config crops neither"
            );
            return Err(Error::usage(what));
        }
        let pixels = width as usize * height as usize;
        let tables = self.tables();
        let mut values = vec![0f32; fitted.len() * 3 * pixels];
        for (image, out) in fitted.iter().zip(values.chunks_mut((3 * pixels).max(1))) {
            for (channel, (out, table)) in out.chunks_mut(pixels).zip(&tables).enumerate() {
                for (out, pixel) in out.iter_mut().zip(image.as_raw().chunks_exact(3)) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        }
        Ok(Tensor::from_vec(values, (fitted.len(), 3, height as usize, width as usize), &Device::Cpu)?)
    }

    /// What becomes of each level of each channel, in the order and precision of NumPy's: the scale in f64, the rest in
    /// f32.
    fn tables(&self) -> [Vec<f32>; 3] {
        let value = |channel: usize, level: u8| {
            let scaled = self.rescale.map_or(f32::from(level), |scale| (f64::from(level) * scale) as f32);
            self.normalise.map_or(scaled, |(mean, std)| (scaled - mean[channel]) / std[channel])
        };
        [0, 1, 2].map(|channel| (0..=255).map(|level| value(channel, level)).collect())
    }

    /// Resized and cropped.
    fn fitted(&self, image: &RgbImage) -> RgbImage {
        let to = |height: usize, width: usize| resized(image, width as u32, height as u32, self.filter);
        let image = match self.resize {
            None => image.clone(),
            Some(Resize::To(height, width)) => to(height, width),
            Some(Resize::ShortestEdge(edge)) => {
                let (height, width) = in_proportion(image, edge);
                to(height, width)
            }
            Some(Resize::ConvNext { edge, .. }) if edge >= 384 => to(edge, edge),
            Some(Resize::ConvNext { edge, crop_pct }) => {
                let (height, width) = in_proportion(image, (edge as f64 / crop_pct) as usize);
                centre(&to(height, width), edge, edge)
            }
        };
        match self.crop {
            Some((height, width)) => centre(&image, height, width),
            None => image,
        }
    }
}

impl ProcessorKind {
    /// By the name in the file; a feature extractor is an image processor of old, and «fast» ones differ in their backend.
    fn of(name: &str) -> Result<Self> {
        let plain = name.replace("FeatureExtractor", "ImageProcessor");
        let plain = plain.strip_suffix("Fast").or_else(|| plain.strip_suffix("Pil")).unwrap_or(&plain);
        match plain {
            "CLIPImageProcessor" => Ok(Self::Clip),
            "ViTImageProcessor" => Ok(Self::Vit),
            "ConvNextImageProcessor" => Ok(Self::ConvNext),
            _ => Err(Error::usage(format!(
                "prepares pictures by {name}, which is not known here; known are CLIPImageProcessor, ViTImageProcessor and \
                 ConvNextImageProcessor"
            ))),
        }
    }

    fn resize(self, config: &Value) -> Result<Resize> {
        let size = config.get("size").filter(|value| !value.is_null());
        let crop_pct = config.get("crop_pct").and_then(Value::as_f64).unwrap_or(224.0 / 256.0);
        if self == Self::ConvNext && !(0.1..=1.0).contains(&crop_pct) {
            return Err(Error::usage(format!("crop_pct is {crop_pct}; it must lie between 0.1 and 1")));
        }
        let edge_or_square = |edge: usize| match self {
            Self::Clip => Resize::ShortestEdge(edge),
            Self::Vit => Resize::To(edge, edge),
            Self::ConvNext => Resize::ConvNext { edge, crop_pct },
        };
        let Some(size) = size else { return Ok(edge_or_square(if self == Self::ConvNext { 384 } else { 224 })) };
        if let Some(edge) = side(size, "size") {
            return Ok(edge_or_square(edge?));
        }
        if size.get("longest_edge").is_some() {
            return Err(Error::usage(format!("size is {size}; a longest_edge is not known here")));
        }
        match size.get("shortest_edge") {
            Some(edge) => {
                let name = "size.shortest_edge";
                let edge = side(edge, name).unwrap_or_else(|| Err(no_side(name, edge)))?;
                Ok(if self == Self::ConvNext { edge_or_square(edge) } else { Resize::ShortestEdge(edge) })
            }
            None => height_width(size, "size").map(|(height, width)| Resize::To(height, width)),
        }
    }
}

/// A plain number as a side; `None` for anything else.
fn side(value: &Value, name: &str) -> Option<Result<usize>> {
    value.is_number().then(|| {
        let found = value.as_u64().filter(|side| (1..=LARGEST).contains(side));
        found.map(|side| side as usize).ok_or_else(|| no_side(name, value))
    })
}

fn no_side(name: &str, value: &Value) -> Error {
    Error::usage(format!("{name} is {value}; it must lie between 1 and {LARGEST}"))
}

fn height_width(value: &Value, name: &str) -> Result<(usize, usize)> {
    let get = |key: &str| {
        let found = value.get(key).and_then(|found| side(found, name));
        found.unwrap_or_else(|| Err(Error::usage(format!("{name} is {value}; it needs a height and a width"))))
    };
    Ok((get("height")?, get("width")?))
}

fn channels(config: &Value, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let Some(found) = config.get(key).filter(|value| !value.is_null()) else { return Ok(default) };
    let values: Option<Vec<f32>> = match found {
        Value::Number(one) => one.as_f64().map(|one| vec![one as f32; 3]),
        Value::Array(all) => all.iter().map(|one| one.as_f64().map(|one| one as f32)).collect(),
        _ => None,
    };
    let values = values.and_then(|values| <[f32; 3]>::try_from(values).ok());
    values.ok_or_else(|| Error::usage(format!("{key} is {found}; it must be three numbers")))
}

/// Height and width with the shorter side at `edge`.
fn in_proportion(image: &RgbImage, edge: usize) -> (usize, usize) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (short, long) = if width <= height { (width, height) } else { (height, width) };
    let long = ((edge * long) as f64 / short.max(1) as f64) as usize;
    if width <= height { (long, edge) } else { (edge, long) }
}

/// The middle; a picture that is too small gets a black border.
fn centre(image: &RgbImage, height: usize, width: usize) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    if w >= width && h >= height {
        let (left, top) = ((w - width) / 2, (h - height) / 2);
        return crop_imm(image, left as u32, top as u32, width as u32, height as u32).to_image();
    }
    // onto black of at least both sizes, its place rounded up; then cut from there, the place rounded down
    let (new_w, new_h) = (w.max(width), h.max(height));
    let (left_pad, top_pad) = ((new_w - w).div_ceil(2), (new_h - h).div_ceil(2));
    let floor_half = |a: usize, b: usize| (a as i64 - b as i64).div_euclid(2);
    let left = (floor_half(w, width) + left_pad as i64).max(0);
    let top = (floor_half(h, height) + top_pad as i64).max(0);
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let (x, y) = (i64::from(x) + left - left_pad as i64, i64::from(y) + top - top_pad as i64);
        match (u32::try_from(x), u32::try_from(y)) {
            (Ok(x), Ok(y)) if x < image.width() && y < image.height() => *image.get_pixel(x, y),
            _ => image::Rgb([0; 3]),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value, kind: ProcessorKind) -> Result<ImageProcessor> {
        ImageProcessor::from_value(&config, kind)
    }

    #[test]
    fn old_files_have_plain_numbers_and_mean_what_the_processor_meant_by_them() {
        let clip = read(
            json!({"size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}),
            ProcessorKind::Vit,
        );
        let clip = clip.unwrap();
        assert_eq!(
            (clip.resize, clip.crop, clip.filter),
            (Some(Resize::ShortestEdge(224)), Some((224, 224)), Filter::Bicubic)
        );
        let vit =
            read(json!({"size": 224, "image_processor_type": "ViTImageProcessorFast"}), ProcessorKind::Clip).unwrap();
        assert_eq!((vit.resize, vit.crop, vit.filter), (Some(Resize::To(224, 224)), None, Filter::Bilinear));
        let resnet = read(json!({"size": 224, "crop_pct": 0.875}), ProcessorKind::ConvNext).unwrap();
        assert_eq!(resnet.resize, Some(Resize::ConvNext { edge: 224, crop_pct: 0.875 }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (config, expected) in [
            (json!({"image_processor_type": "LevitImageProcessor"}), "prepares pictures by LevitImageProcessor"),
            (json!({"resample": 9}), "resample is 9"),
            (json!({"size": 0}), "size is 0"),
            (json!({"size": {"height": 3}}), "it needs a height and a width"),
            (json!({"size": {"shortest_edge": 32, "longest_edge": 64}}), "longest_edge is not known"),
            (json!({"crop_size": 100_000}), "crop_size is 100000"),
            (json!({"image_mean": [0.5]}), "image_mean is [0.5]"),
            (json!({"image_std": [1, 0, 1]}), "image_std has a 0"),
            (json!({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}), "crop_pct is 0"),
        ] {
            let message = read(config, ProcessorKind::Clip).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn pictures_of_two_sizes_need_a_crop() {
        let processor = read(json!({"do_resize": false, "do_center_crop": false}), ProcessorKind::Clip).unwrap();
        let error = processor.prepare(&[RgbImage::new(4, 4), RgbImage::new(5, 4)]).unwrap_err().to_string();
        assert!(error.contains("4x4 and 5x4"), "{error}");
        assert!(processor.prepare(&[]).is_err());
    }
}
