//! Memory does not grow with the number of steps: neither in sampling nor in training.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use erase_concept::concept::Concept;
use erase_concept::diffusion::Sampler;
use erase_concept::erase::{self, Data, Settings};
use erase_concept::progress::{Event, Progress, Silent};
use erase_concept::sd::SampleOptions;
use erase_concept::{checkpoint, hub};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A field of `/proc/self/status`, in MiB.
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

/// Memory at each step.
#[derive(Default)]
struct Memory {
    repairing: bool,
    steps: Vec<f64>,
}

impl Progress for Memory {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Stage { name, .. } => self.repairing = name == "repairing",
            Event::Step { .. } if self.repairing => self.steps.push(status("VmRSS")),
            _ => {}
        }
    }
}

/// One test, so that nothing else runs in this process.
#[test]
fn two_hundred_steps_take_no_more_memory_than_twenty() {
    let model = checkpoint::load_model(&hub::demo()).unwrap().model;
    let unet = model.unet().unwrap();
    let peak_after = |steps: usize| {
        let options = SampleOptions { sampler: Sampler::Ddim, steps, guidance_scale: 5.0, eta: 0.0, size: None };
        model.sample_latents(&unet, &options, &["a red star"; 2], &[""; 2], &[1, 2]).unwrap();
        status("VmHWM")
    };
    let (few, many) = (peak_after(20), peak_after(200));
    println!("sampling: {few:.1} MiB after 20 steps, {many:.1} MiB after 200");
    assert!(many - few < 4.0, "sampling grew from {few} to {many} MiB");

    let concept = Concept::resolve("star", None).unwrap();
    let mut settings = Settings::preset("balanced").unwrap();
    (settings.data.forget, settings.data.retain, settings.data.steps) = (4, 4, 2);
    (settings.score_batches, settings.other_words, settings.repair_steps) = (1, 0, 200);
    (settings.forget_batch, settings.retain_batch) = (1, 1);
    let data = Data::sample(&model, &concept, &settings, 0, &mut Silent).unwrap();
    let plan = erase::plan(&model, &settings, Default::default()).unwrap();
    let mut memory = Memory::default();
    erase::scissorhands(&model, &concept, &data, &settings, 0, plan, &mut memory).unwrap();
    let (early, late) = (memory.steps[19], memory.steps[199]);
    println!("training: {early:.1} MiB at step 20, {late:.1} MiB at step 200");
    assert_eq!(memory.steps.len(), 200);
    assert!(late - early < 8.0, "training grew from {early} to {late} MiB");
}
