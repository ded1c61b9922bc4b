//! A picture's bytes depend on its own prompt, seed and settings alone: not on what is rendered beside it.
#![allow(clippy::unwrap_used)]

mod common;

use common::fixture;
use erase_concept::audit::to_images;
use erase_concept::checkpoint::{ModelFiles, load_model};
use erase_concept::diffusion::Sampler;
use erase_concept::hub;
use erase_concept::sd::{SampleOptions, StableDiffusion};
use image::RgbImage;

/// Numbers and prompts of different length, the seed of each.
fn row(i: usize) -> (String, u64) {
    let words = ["a red star", "two blue rings on a green background beside a circle", "", "a striped heart"];
    (format!("{} {}", words[i % words.len()], "x".repeat(i % 3)), 1_000 + i as u64 * 7)
}

fn render(model: &StableDiffusion, rows: &[usize], sampling: &SampleOptions) -> Vec<RgbImage> {
    let unet = model.unet().unwrap();
    let (prompts, seeds): (Vec<String>, Vec<u64>) = rows.iter().map(|i| row(*i)).unzip();
    let negatives = vec![String::new(); rows.len()];
    let latents = model.sample_latents(&unet, sampling, &prompts, &negatives, &seeds).unwrap();
    to_images(&model.decode_latents(&latents).unwrap()).unwrap()
}

fn same_in_every_batch(files: &ModelFiles, size: Option<(usize, usize)>, batch: usize) {
    let model = load_model(files).unwrap().model;
    let sampling =
        SampleOptions { sampler: Sampler::DpmSolverPlusPlus2M, steps: 1, guidance_scale: 7.5, eta: 0.0, size };
    let all: Vec<usize> = (0..batch).collect();
    let together = render(&model, &all, &sampling);
    let backwards: Vec<usize> = all.iter().rev().copied().collect();
    let mut reversed = render(&model, &backwards, &sampling);
    reversed.reverse();
    for i in 0..batch {
        assert!(together[i] == reversed[i], "{}: picture {i} depends on its place", files.describe(""));
    }
    for i in [0, 1, batch - 1] {
        let alone = render(&model, &[i], &sampling);
        assert!(together[i] == alone[0], "{}: picture {i} depends on the others", files.describe(""));
    }
    for n in [2, 3, 5] {
        let few = render(&model, &all[1..1 + n], &sampling);
        assert!(together[1..1 + n] == few, "{}: a batch of {n} gives something else", files.describe(""));
    }
}

#[test]
fn pictures_of_the_demo_are_the_same_alone_and_in_any_batch() {
    same_in_every_batch(&hub::demo(), None, 32);
}

#[test]
fn pictures_of_other_models_and_sizes_too() {
    same_in_every_batch(&ModelFiles::Folder(fixture("tiny-sd21")), None, 9);
    same_in_every_batch(&ModelFiles::Folder(fixture("tiny-sdxl")), None, 9);
    same_in_every_batch(&ModelFiles::Folder(fixture("tiny-sd21")), Some((40, 24)), 9);
}
