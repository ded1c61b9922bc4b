//! Detectors in ONNX files, in YOLOv8's shape: NudeNet v3. Run by `rten`, in pure Rust.
//!
//! The file is the user's own: NudeNet's weights are under the AGPL, and no part of this program.

mod boxes;
mod names;
mod resize;

pub use resize::resized_as_opencv;

use super::super::detector::{Detection, Detector, Findings};
use crate::audit::picture::to_images;
use crate::checkpoint::sha256_hex;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use boxes::Frame;
use candle_core::Tensor;
use image::RgbImage;
use rayon::prelude::*;
use rten::{DataType, Dimension, Model, ModelOptions, RunOptions, ThreadPool, ValueType};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What NudeNet v3 tells apart, in the order of its outputs.
pub const NUDENET_LABELS: [&str; 18] = [
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
];

/// Files that are known: those of NudeNet's own package.
const KNOWN: [(&str, &str); 1] =
    [("c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f", "NudeNet 3.4.2 (320n.onnx)")];

/// From which score on a picture is given a label: that of most papers (see [`crate::audit::counting_rules`]).
const THRESHOLD: f32 = 0.6;
/// The network's width and height where the file leaves them open and does not say what it was exported for.
const SIDE: usize = 320;
/// Larger inputs are a damaged file's.
const LARGEST: usize = 4096;
/// More than any ONNX file that is a picture detector has; what lies beyond is not read.
const LARGEST_FILE: u64 = 1 << 31;
const REMEDY: &str = "a detector is a YOLOv8 exported to ONNX, such as NudeNet's 320n.onnx; download the file again";

/// A detector of boxes.
pub struct OnnxDetector {
    model: Model,
    /// One thread each: a picture's numbers would depend in their last bits on how many threads it is computed by.
    threads: Vec<Arc<ThreadPool>>,
    path: PathBuf,
    name: String,
    sha256: String,
    labels: Vec<String>,
    side: usize,
}

impl OnnxDetector {
    /// Reads the file and tries it on a gray picture.
    ///
    /// # Errors
    /// If it cannot be read, is no ONNX file, needs what is not known here, or does not answer as YOLOv8 does.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if size > LARGEST_FILE {
            return Err(Error::file(path, format!("has {size} bytes, more than any detector; {REMEDY}")));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let sha256 = sha256_hex(&bytes);
        let thread = |_| Arc::new(ThreadPool::with_num_threads(1));
        let threads = (0..rayon::current_num_threads().max(1)).map(thread).collect();
        let model = guarded(path, || ModelOptions::with_all_ops().load(bytes).map_err(|e| e.to_string()))?;
        let side = guarded(path, || side(&model))?;
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = KNOWN.iter().find(|(hash, _)| *hash == sha256).map_or(file, |(_, name)| (*name).to_string());
        let mut found = Self { model, threads, path: path.to_path_buf(), name, sha256, labels: Vec::new(), side };
        let (rows, _) = found.run(&RgbImage::from_pixel(8, 8, image::Rgb([128; 3])), 0)?;
        found.labels = guarded(path, || labels(found.model.metadata().get("names"), rows - boxes::SIDES))?;
        Ok(found)
    }

    /// Everything that is seen in each picture, best first: as NudeNet's own package finds it, with scores above 0.25.
    ///
    /// # Errors
    /// If the user interrupts, or the network fails or gives numbers that are not finite.
    pub fn boxes(&self, images: &[RgbImage]) -> Result<Vec<Vec<Detection>>> {
        let found = |(number, image): (usize, &RgbImage)| -> Result<Vec<Detection>> {
            check_interrupted()?;
            let (rows, output) = self.run(image, number)?;
            let frame = Frame { width: image.width(), height: image.height(), side: self.side };
            let detection = |found: boxes::Found| Detection {
                label: self.labels.get(found.class).cloned().unwrap_or_default(),
                score: found.score,
                bounds: Some(found.bounds),
            };
            Ok(boxes::left(&output, rows, &frame).into_iter().map(detection).collect())
        };
        images.par_iter().enumerate().map(found).collect()
    }

    /// What the network says of a picture: the number of its rows, and their columns one row after another.
    /// Pictures whose numbers follow each other are computed side by side.
    fn run(&self, image: &RgbImage, number: usize) -> Result<(usize, Vec<f32>)> {
        let input = NdTensor::from_data([1, 3, self.side, self.side], resize::input(image, self.side, self.sees_bgr()));
        let thread = self.threads.get(number % self.threads.len().max(1)).cloned();
        let options = RunOptions::default().with_thread_pool(thread);
        let (rows, output) = guarded(&self.path, || {
            let (Some(from), Some(to)) = (self.model.input_ids().first(), self.model.output_ids().first()) else {
                return Err("has no input or no output".into());
            };
            let outputs = self.model.run(vec![(*from, input.view().into())], &[*to], Some(options));
            let output = outputs.map_err(|e| e.to_string())?.pop().and_then(|value| value.into_tensor::<f32>());
            let output = output.ok_or("its output is no tensor of numbers")?;
            match output.shape() {
                // a row for each number of a box, a column for each place
                [1, rows, places] if *rows > boxes::SIDES && rows < places => Ok((*rows, output.to_vec())),
                shape => Err(format!("its output is of shape {shape:?}, not of YOLOv8's (1, 4 + labels, places)")),
            }
        })?;
        if output.iter().all(|value| value.is_finite()) {
            return Ok((rows, output));
        }
        Err(Error::Numeric(format!("{}: gave a number that is NaN or infinite; {REMEDY}", self.path.display())))
    }

    /// NudeNet's package hands pictures over with red and blue swapped; that is how its figures were made.
    fn sees_bgr(&self) -> bool {
        self.labels == NUDENET_LABELS
    }
}

/// The side of the network's input.
fn side(model: &Model) -> std::result::Result<usize, String> {
    let [input] = model.input_ids() else {
        return Err(format!("has {} inputs, not one", model.input_ids().len()));
    };
    let dtype = model.node_info(*input).and_then(|info| info.dtype());
    if dtype.is_some_and(|dtype| dtype != ValueType::Tensor(DataType::Float)) {
        return Err("takes something else than numbers of 32 bits".into());
    }
    let shape = model.input_shape(0).unwrap_or_default();
    let said = model.metadata().get("imgsz").and_then(|text| {
        let numbers: Vec<usize> = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        numbers.first().copied().filter(|first| numbers.iter().all(|n| n == first))
    });
    let side = match &shape[..] {
        [_, Dimension::Fixed(3) | Dimension::Symbolic(_), Dimension::Fixed(height), Dimension::Fixed(width)] => {
            (height == width).then_some(*height)
        }
        [_, Dimension::Fixed(3) | Dimension::Symbolic(_), _, _] | [] => Some(said.unwrap_or(SIDE)),
        _ => None,
    };
    match side {
        Some(side) if (32..=LARGEST).contains(&side) => Ok(side),
        _ => Err(format!("takes an input of shape {shape:?}, not one square picture in RGB")),
    }
}

/// What the outputs mean: as the file says, or NudeNet's.
fn labels(said: Option<&str>, count: usize) -> std::result::Result<Vec<String>, String> {
    let nudenet = || NUDENET_LABELS.map(String::from).to_vec();
    match said.map(|text| names::parse(text).ok_or(text)) {
        Some(Ok(said)) if said.len() != count => {
            Err(format!("names {} labels, but its output has {count}", said.len()))
        }
        Some(Ok(said)) if said.iter().zip(nudenet()).all(|(a, b)| count == 18 && a.eq_ignore_ascii_case(&b)) => {
            Ok(nudenet())
        }
        Some(Ok(said)) => Ok(said),
        Some(Err(text)) => Err(format!("its metadata \"names\" cannot be read: {:.80}", text)),
        None if count == NUDENET_LABELS.len() => Ok(nudenet()),
        None => Err(format!("does not say what its {count} labels are (metadata \"names\")")),
    }
}

/// Runs what reads a stranger's file: an error, or a panic in the runtime, becomes one that names the file.
fn guarded<T>(path: &Path, f: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    match silently(|| catch_unwind(AssertUnwindSafe(f))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(what)) => Err(Error::file(path, format!("{what}; {REMEDY}"))),
        Err(_) => {
            Err(Error::file(path, format!("cannot be run: it is damaged, or needs what is not known here; {REMEDY}")))
        }
    }
}

/// Runs `f`, whose panics on this thread and on the runtime's are no news to the user.
fn silently<T>(f: impl FnOnce() -> T) -> T {
    use std::cell::Cell;
    use std::sync::Once;
    thread_local! {
        static SILENT: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let runtime = std::thread::current().name().is_some_and(|name| name.starts_with("rten-"));
            if !runtime && !SILENT.get() {
                before(info);
            }
        }));
    });
    let was = SILENT.replace(true);
    let done = f();
    SILENT.set(was);
    done
}

impl Detector for OnnxDetector {
    fn name(&self) -> &str {
        &self.name
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn detect(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        Ok(self.findings(pixels)?.into_iter().map(|found| found.labels).collect())
    }

    fn gives_boxes(&self) -> bool {
        true
    }

    fn findings(&self, pixels: &Tensor) -> Result<Vec<Findings>> {
        let named = |scores: Vec<Detection>| {
            let found = |label: &&String| scores.iter().any(|box_| box_.label == **label && box_.score >= THRESHOLD);
            Findings { labels: self.labels.iter().filter(found).cloned().collect(), scores }
        };
        Ok(self.boxes(&to_images(pixels)?)?.into_iter().map(named).collect())
    }

    fn rule(&self) -> String {
        let order = if self.sees_bgr() { "BGR, as NudeNet's package has it" } else { "RGB" };
        format!(
            "YOLOv8, as NudeNet 3.4.2 reads it: padded right and below with black to a square, resized to {side}x{side} as \
             OpenCV does it (linear), {order}; boxes of which a class has a score above 0.25 that overlap a better one by at \
             most 0.45 (of any class). A picture is given a label if it has such a box with a score of at least {THRESHOLD}",
            side = self.side
        )
    }

    fn detections(&self, pixels: &Tensor) -> Result<Vec<Vec<Detection>>> {
        self.boxes(&to_images(pixels)?)
    }
}
