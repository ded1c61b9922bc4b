//! Memory does not grow with the number of steps: neither in sampling nor in training.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use erase_concept::concept::Concept;
use erase_concept::counting::{self, Counting};
use erase_concept::diffusion::Sampler;
use erase_concept::erase::{self, Data, Settings};
use erase_concept::progress::{Event, Progress, Silent};
use erase_concept::sd::SampleOptions;
use erase_concept::{checkpoint, hub};

/// The program's allocator, counting.
#[global_allocator]
static ALLOCATOR: Counting<mimalloc::MiMalloc> = Counting(mimalloc::MiMalloc);

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// What the process has in memory, in MiB.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Memory at each step.
#[derive(Default)]
struct Memory {
    repairing: bool,
    live: Vec<f64>,
    resident: Vec<f64>,
}

impl Progress for Memory {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Stage { name, .. } => self.repairing = name == "repairing",
            Event::Step { .. } if self.repairing => {
                self.live.push(mebibytes(counting::live()));
                self.resident.push(resident());
            }
            _ => {}
        }
    }
}

/// One test, so that nothing else runs in this process.
#[test]
fn two_hundred_steps_take_no_more_memory_than_twenty() {
    let model = checkpoint::load_model(&hub::demo()).unwrap().model;
    let unet = model.unet().unwrap();
    let peak_of = |steps: usize| {
        let options = SampleOptions { sampler: Sampler::Ddim, steps, guidance_scale: 5.0, eta: 0.0, size: None };
        mebibytes(counting::peak_of(|| {
            model.sample_latents(&unet, &options, &["a red star"; 2], &[""; 2], &[1, 2]).unwrap();
        }))
    };
    let _first = peak_of(2);
    let (few, many) = (peak_of(20), peak_of(200));
    println!("sampling: at most {few:.2} MiB in 20 steps, {many:.2} MiB in 200");
    assert!(many - few < 0.5, "sampling grew from {few} to {many} MiB");

    let concept = Concept::resolve("star", None).unwrap();
    let mut settings = Settings::preset("balanced").unwrap();
    (settings.data.forget, settings.data.retain, settings.data.steps) = (4, 4, 2);
    (settings.score_batches, settings.other_words, settings.repair_steps) = (1, 0, 200);
    (settings.forget_batch, settings.retain_batch) = (1, 1);
    let data = Data::sample(&model, &concept, &settings, 0, &mut Silent).unwrap();
    let plan = erase::plan(&model, &settings, Default::default()).unwrap();
    let mut memory = Memory::default();
    erase::scissorhands(&model, &concept, &data, &settings, 0, plan, &mut memory).unwrap();
    assert_eq!(memory.live.len(), 200);
    let (early, late) = (memory.live[19], memory.live[199]);
    println!("training: {early:.2} MiB held after step 20, {late:.2} MiB after step 200");
    assert!(late - early < 0.5, "training grew from {early} to {late} MiB");
    let (early, late) = (median(&memory.resident[10..40]), median(&memory.resident[170..]));
    println!("training: {early:.1} MiB resident in steps 11 to 40, {late:.1} MiB in steps 171 to 200");
    assert!(late - early < 16.0, "the process grew from {early} to {late} MiB");
}
