//! How long each stage takes.

use crate::audit::{RunRecord, peak_memory};
use crate::checkpoint::Precision;
use crate::nn::{ComputeDevice, Instructions};
use crate::process;
use crate::progress::{Event, Progress};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Passes events on and times the stages.
pub struct Stopwatch<'a> {
    inner: &'a mut dyn Progress,
    started: SystemTime,
    began: Instant,
    stages: Vec<(String, Instant)>,
}

impl<'a> Stopwatch<'a> {
    /// A stopwatch that starts now.
    pub fn new(inner: &'a mut dyn Progress) -> Self {
        Self { inner, started: SystemTime::now(), began: Instant::now(), stages: Vec::new() }
    }

    /// What `run.json` holds; the last stage ends now.
    pub fn record(&self, precision: Precision, compute: &ComputeDevice) -> RunRecord {
        let now = Instant::now();
        let ends = self.stages.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let seconds = self.stages.iter().zip(ends).map(|((name, at), end)| (name.clone(), (end - *at).as_secs_f64()));
        let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
        let started = self.started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        RunRecord {
            schema: "erase-concept.run/1",
            started_unix: epoch.unwrap_or(started),
            seconds: seconds.collect(),
            total_seconds: self.began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory(),
            threads: rayon::current_num_threads(),
            instructions: Instructions::used().name(),
            dtype: precision.name(),
            products: products(precision, compute),
            device: compute.name().to_string(),
            devices: compute.count(),
            tf32: compute.tf32(),
            gpu_peak_bytes: compute.peak_memory().map(|(used, _)| used),
            gpu_reserved_bytes: compute.peak_memory().map(|(_, reserved)| reserved),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        }
    }
}

/// See [`RunRecord::products`].
fn products(precision: Precision, compute: &ComputeDevice) -> &'static str {
    let able = !compute.device().is_cpu() || Instructions::used() == Instructions::Amx;
    if precision == Precision::Bf16 && able { "bf16" } else { "f32" }
}

impl Progress for Stopwatch<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Stage { name, .. } = event {
            process::release();
            self.stages.push((name.to_string(), Instant::now()));
        }
        self.inner.event(event);
    }
}
