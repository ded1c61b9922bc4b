//! `erase-concept doctor`: what this program finds on this machine, what fits, and what would not work.

mod device;
mod devices;
mod gpu_bench;
mod gpu_test;
mod models;
mod system;

use super::ExitCode;
use super::args::DoctorArgs;
use super::document::{bytes, print_json, table};
use super::output::Display;
use crate::diffusion::Sampler;
use crate::erase::memory;
use crate::nn::Instructions;
use crate::nn::device::{Gpu, planned_memory};
use crate::{Result, checkpoint, hub, sd};
use devices::Devices;
use models::Fit;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Version of the layout of `--json`; rises when a field changes its meaning or goes away.
const SCHEMA: &str = "erase-concept.doctor/1";
/// Below this, a result does not fit: the largest model that is written, in f32.
const LITTLE_DISK: u64 = 15 << 30;
/// What the demo takes.
const LEAST_MEMORY: u64 = 1 << 30;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    candle: &'static str,
    rustc: &'static str,
    target: &'static str,
    features: Vec<&'static str>,
    #[serde(flatten)]
    devices: Devices,
    processor: Option<String>,
    threads: usize,
    instructions: Kernels,
    memory: Memory,
    hub_cache: Option<HubCache>,
    disk: Disk,
    models: Vec<Fit>,
    /// The same on the first GPU, within its memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpu_models: Vec<Fit>,
    self_test_seconds: Option<f64>,
    /// What works, but less well than it could.
    warnings: Vec<String>,
    /// What would not work.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Kernels {
    used: &'static str,
    best: &'static str,
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
    /// What the process's control group allows, if that is less than all.
    limit_bytes: Option<u64>,
    /// What a job without `--memory-limit` plans with.
    planned_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HubCache {
    path: PathBuf,
    exists: bool,
    models: usize,
    bytes: u64,
    writable: bool,
    free_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Disk {
    path: PathBuf,
    writable: bool,
    free_bytes: Option<u64>,
}

/// What is to be done.
#[derive(Debug)]
pub struct Options {
    json: bool,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Look,
    GpuTest(gpu_test::Options),
    GpuBench(gpu_bench::Options),
}

impl From<&DoctorArgs> for Options {
    fn from(args: &DoctorArgs) -> Self {
        let (device, only) = (args.device.clone(), args.only.clone());
        let work = match (args.gpu_test, args.gpu_bench) {
            (true, _) => Work::GpuTest(gpu_test::Options { device, only, from: args.from }),
            (_, true) => Work::GpuBench(gpu_bench::Options { device, only, python: args.python.clone() }),
            _ => Work::Look,
        };
        Self { json: args.json, work }
    }
}

/// Does it; [`ExitCode::LimitMissed`] if something does not work.
pub fn run(options: &Options, display: &mut Display) -> Result<ExitCode> {
    match &options.work {
        Work::Look => look(options.json, display),
        Work::GpuTest(test) => gpu_test::run(test, options.json),
        Work::GpuBench(bench) => gpu_bench::run(bench, options.json),
    }
}

fn look(json: bool, display: &mut Display) -> Result<ExitCode> {
    let report = examine()?;
    display.finish();
    match json {
        true => print_json(&report)?,
        false => super::document::print(&text(&report)),
    }
    Ok(if report.problems.is_empty() { ExitCode::Done } else { ExitCode::LimitMissed })
}

fn examine() -> Result<Report> {
    let (mut warnings, mut problems) = (Vec::new(), Vec::new());
    let kernels = Kernels { used: Instructions::used().name(), best: Instructions::best().name() };
    if Instructions::used() < Instructions::best() {
        warnings.push(format!("{} limits the kernels to {}; unset it for speed", Instructions::LIMIT, kernels.used));
    } else if Instructions::best() == Instructions::Portable && cfg!(target_arch = "x86_64") {
        warnings.push("the processor has no AVX2 and FMA: everything works, several times slower".into());
    }
    if cfg!(debug_assertions) {
        warnings.push("a debug build, many times slower; build with --release".into());
    }
    let memory = memory(&mut warnings, &mut problems);
    let models = models::fits(memory.planned_bytes.unwrap_or(u64::MAX), false)?;
    let devices = devices::find(&mut warnings);
    let on_gpu = |gpu: &Gpu| models::fits(planned_memory((gpu.free_bytes, gpu.total_bytes)), true);
    let gpu_models = devices.gpus.first().map(on_gpu).transpose()?.unwrap_or_default();
    if let Some(smallest) = models.first().filter(|fit| !fit.bf16.fits) {
        warnings.push(format!(
            "too little memory to erase from {} (at least {}); use a larger machine, or the demo model",
            smallest.name,
            bytes(smallest.bf16.least_bytes)
        ));
    }
    let hub_cache = hub_cache(&mut warnings);
    let path = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let free = system::disk_free(&path);
    let writable = system::writable(&path);
    if let Err(why) = &writable {
        problems.push(format!(
            "nothing can be written in {}: {why}; change to another folder, or say --output",
            path.display()
        ));
    }
    if let Some(free) = free.filter(|free| *free < LITTLE_DISK) {
        warnings.push(format!(
            "{} are free on the disk of {}; a model of SDXL's size takes up to {}",
            bytes(free),
            path.display(),
            bytes(LITTLE_DISK)
        ));
    }
    let began = Instant::now();
    let self_test = self_test().map(|()| began.elapsed().as_secs_f64());
    if let Err(error) = &self_test {
        problems.push(format!("the demo model does not run: {error}"));
    }
    Ok(Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        candle: env!("ERASE_CONCEPT_CANDLE"),
        rustc: env!("ERASE_CONCEPT_RUSTC"),
        target: env!("ERASE_CONCEPT_TARGET"),
        features: env!("ERASE_CONCEPT_FEATURES").split(',').filter(|name| !name.is_empty()).collect(),
        devices,
        processor: system::processor(),
        threads: rayon::current_num_threads(),
        instructions: kernels,
        memory,
        hub_cache,
        disk: Disk { path, writable: writable.is_ok(), free_bytes: free },
        models,
        gpu_models,
        self_test_seconds: self_test.ok(),
        warnings,
        problems,
    })
}

fn memory(warnings: &mut Vec<String>, problems: &mut Vec<String>) -> Memory {
    let (total, limit) = (memory::total(), memory::group_limit());
    let available_bytes = system::available_memory();
    let planned_bytes = memory::planned();
    if let (Some(available), Some(planned)) = (available_bytes, planned_bytes)
        && available < planned
    {
        warnings.push(format!(
            "jobs plan with up to {} of memory, but {} are free now; close other programs, or say --memory-limit {}GiB",
            bytes(planned),
            bytes(available),
            (available >> 30).max(1)
        ));
    }
    if planned_bytes.is_some_and(|planned| planned < LEAST_MEMORY) {
        problems.push(format!("less than {} of memory: not even the demo fits", bytes(LEAST_MEMORY)));
    }
    Memory { total_bytes: total, available_bytes, limit_bytes: limit, planned_bytes }
}

fn hub_cache(warnings: &mut Vec<String>) -> Option<HubCache> {
    let Some(path) = hub::Hub::from_environment().ok().map(|hub| hub.cache) else {
        warnings.push("no place for the Hub's cache: set HF_HOME to a folder".into());
        return None;
    };
    let writable = system::writable(&path);
    if let Err(why) = &writable {
        let path = path.display();
        warnings
            .push(format!("nothing can be written in the Hub's cache {path}: {why}; set HF_HOME to another folder"));
    }
    let (models, bytes) = system::contents(&path);
    let free_bytes = system::disk_free(&path);
    Some(HubCache { exists: path.is_dir(), models, bytes, writable: writable.is_ok(), free_bytes, path })
}

/// Draws one picture with the demo model, in two steps.
fn self_test() -> Result<()> {
    let model = checkpoint::load_model(&hub::demo())?.model;
    let options = sd::SampleOptions { sampler: Sampler::Ddim, steps: 2, guidance_scale: 5.0, eta: 0.0, size: None };
    let latents = model.sample_latents(&model.unet()?, &options, &["a red star"], &[""], &[0])?;
    let pixels: Vec<f32> = model.decode_latents(&latents)?.flatten_all()?.to_vec1()?;
    match pixels.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(crate::Error::Numeric("its picture has values that are not numbers".into())),
    }
}

fn text(r: &Report) -> String {
    let or = |value: Option<u64>| value.map_or_else(|| "unknown".into(), bytes);
    let can = |yes: bool| if yes { "can be written" } else { "cannot be written" };
    let list = |names: &[&str]| if names.is_empty() { "none".into() } else { names.join(", ") };
    let mut rows = vec![
        ("program", format!("erase-concept {}, candle {}, rustc {}, {}", r.version, r.candle, r.rustc, r.target)),
        ("features", list(&r.features)),
        ("processor", format!("{}, {} threads", r.processor.as_deref().unwrap_or("unknown"), r.threads)),
        ("kernels", format!("{} (the best of this processor: {})", r.instructions.used, r.instructions.best)),
        ("memory", format!("{}, {} free", or(r.memory.total_bytes), or(r.memory.available_bytes))),
    ];
    let devices = 2; // behind the program and its features
    rows.splice(devices..devices, r.devices.rows(bytes));
    if let Some(limit) = r.memory.limit_bytes {
        rows.push(("", format!("{} allowed by the control group", bytes(limit))));
    }
    rows.push(("", format!("{} planned with, without --memory-limit", or(r.memory.planned_bytes))));
    if let Some(cache) = &r.hub_cache {
        let there = if cache.exists { "" } else { ", not there yet" };
        rows.push(("Hub cache", format!("{}{there}, {}", cache.path.display(), can(cache.writable))));
        let count = if cache.models == 1 { "1 model".into() } else { format!("{} models", cache.models) };
        rows.push(("", format!("{count}, {}; {} free", bytes(cache.bytes), or(cache.free_bytes))));
    }
    let disk = format!("{}, {}, {} free", shown(&r.disk.path), can(r.disk.writable), or(r.disk.free_bytes));
    rows.push(("this folder", disk));
    let time = |seconds: f64| format!("the demo model runs ({seconds:.1} s to load it and draw)");
    rows.push(("self-test", r.self_test_seconds.map_or_else(|| "failed".into(), time)));
    let mut out = table(&rows);
    for (place, models) in [("", &r.models), (" on the GPU", &r.gpu_models)] {
        if models.is_empty() {
            continue;
        }
        out.push_str(&format!(
            "\nMemory to erase from a model{place}, from the least (slower) to that of full speed:\n"
        ));
        for fit in models {
            let one = |m: &models::Memory| {
                let fits = if m.fits { "fits" } else { "does not fit" };
                format!("{} to {}, {fits}", bytes(m.least_bytes), bytes(m.fastest_bytes))
            };
            out.push_str(&format!("  {:<26} f32: {}; f16, bf16: {}\n", fit.name, one(&fit.f32), one(&fit.bf16)));
        }
    }
    for (what, lines) in [("warning", &r.warnings), ("problem", &r.problems)] {
        for line in lines {
            out.push_str(&format!("\n{what}: {line}"));
        }
    }
    if r.problems.is_empty() {
        out.push_str("\nEverything needed works.");
    }
    out
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
