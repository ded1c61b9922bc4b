//! Pictures per second through CLIP: the demo's, and ViT-B/32's shape with made-up weights.
//!
//! `cargo bench --bench clip`; `python benches/clip.py` measures transformers on the same shapes. Medians of repeated
//! runs; the time that the processor spent a picture too, which other work on the machine moves less.

use candle_core::{Device, Tensor};
use erase_concept::audit::image_processor::{ImageProcessor, ProcessorKind};
use erase_concept::audit::{ClipModel, DetectorFiles};
use erase_concept::nn::ParamStore;
use erase_concept::sd::{ClipConfig, ClipVision};
use erase_concept::{Result, hub};
use image::RgbImage;
use serde_json::json;
use std::time::Instant;

/// As the program itself has it.
#[global_allocator]
static ALLOCATOR: erase_concept::process::Allocator = erase_concept::process::Allocator;

fn main() -> Result<()> {
    // SAFETY: no other thread has been started yet.
    unsafe { erase_concept::process::set_up(None) };
    let demo = ClipModel::open(&DetectorFiles::within(hub::demo(), "clip"))?;
    let pictures = vec![RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 3, y as u8 * 2, 90])); 256];
    report("demo's CLIP, 64x64, 256 pictures, preparing included", 256, || demo.image_features(&pictures).map(drop))?;

    let config = ClipConfig::from_value(&json!({}))?.vision_config;
    let recorder = ParamStore::recorder();
    ClipVision::new(&config, 512, &recorder)?;
    let made_up = |(name, shape): (String, Vec<usize>)| {
        let fan = shape.iter().skip(1).product::<usize>().max(1);
        Ok((name, Tensor::randn(0f32, (fan as f32).powf(-0.5), shape, &Device::Cpu)?))
    };
    let tensors = recorder.recorded().into_iter().map(made_up).collect::<Result<_>>()?;
    let vision = ClipVision::new(&config, 512, &ParamStore::new(tensors))?;
    for batch in [1, 32] {
        let pixels = Tensor::randn(0f32, 1.0, (batch, 3, 224, 224), &Device::Cpu)?;
        report(&format!("ViT-B/32's shape, batch {batch}"), batch, || vision.features(&pixels).map(drop))?;
    }

    let processor = ImageProcessor::from_value(&json!({"size": 224, "crop_size": 224}), ProcessorKind::Clip)?;
    let pictures = vec![RgbImage::from_fn(512, 512, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8])); 32];
    report("preparing alone, 512x512 to 224x224", 32, || processor.prepare(&pictures).map(drop))
}

fn report(what: &str, pictures: usize, run: impl Fn() -> Result<()>) -> Result<()> {
    let mut times = Vec::new();
    let (begin, cpu) = (Instant::now(), processor_seconds());
    while times.len() < 3 || (begin.elapsed().as_secs_f64() < 6.0 && times.len() < 50) {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let each = (processor_seconds() - cpu) / (times.len() * pictures) as f64;
    println!(
        "{what:<56} {:>8.1} pictures/s {:>8.2} ms of processor time each",
        pictures as f64 / times[times.len() / 2],
        each * 1e3
    );
    Ok(())
}

/// What all threads of this process have used so far.
fn processor_seconds() -> f64 {
    // SAFETY: the struct is plain numbers, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
