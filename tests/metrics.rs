//! Metrics against NumPy, SciPy and scikit-image, on fixed arrays.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::fixture;
use common::pictures::picture;
use erase_concept::audit::metrics::{
    Metric, Stated, clip_fid, clip_score, clip_scores, cmmd, mcnemar, paired_bootstrap, ssim, ssim_mean, unlearn_canvas,
};
use image::RgbImage;
use serde_json::Value;
use std::collections::HashMap;

fn facts() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("metrics/metrics.json")).unwrap()).unwrap()
}

fn features() -> HashMap<String, Vec<Vec<f32>>> {
    let tensors = candle_core::safetensors::load(fixture("metrics/features.safetensors"), &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, t): (String, Tensor)| (name, t.to_vec2().unwrap())).collect()
}

fn close(what: &str, ours: f64, theirs: &Value) {
    let theirs = theirs.as_f64().unwrap();
    println!("{what}: {ours} {theirs}");
    assert!((ours - theirs).abs() < 1e-4 * theirs.abs().clamp(1e-3, 1.0), "{what}: {ours}, reference {theirs}");
}

#[test]
fn clip_fid_equals_scipy() {
    let (f, facts) = (features(), facts());
    for (name, a, b) in [("a", "a", "b"), ("many", "many_a", "many_b"), ("few", "few_a", "few_b")] {
        let metric = clip_fid(&f[a], &f[b]).unwrap();
        close(name, metric.value, &facts["clip_fid"][name]);
        close(name, clip_fid(&f[b], &f[a]).unwrap().value, &facts["clip_fid"][name]);
        assert_eq!(metric.pictures, [f[a].len(), f[b].len()]);
        assert!(clip_fid(&f[a], &f[a]).unwrap().value < 1e-5 * metric.value, "equal sets");
    }
}

#[test]
fn cmmd_equals_the_published_formula() {
    let (f, facts) = (features(), facts());
    for (name, a, b) in [("a", "a", "b"), ("many", "many_a", "many_b"), ("few", "few_a", "few_b")] {
        close(name, cmmd(&f[a], &f[b]).unwrap().value, &facts["cmmd"][name]);
        assert!(cmmd(&f[a], &f[a]).unwrap().value.abs() < 1e-9, "equal sets");
    }
}

#[test]
fn clip_scores_are_clamped_cosines() {
    let (f, facts) = (features(), facts());
    let pictures = &f["a"][..45];
    let theirs: Vec<f64> = serde_json::from_value(facts["clip_scores"].clone()).unwrap();
    let ours = clip_scores(pictures, &f["b"]).unwrap();
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4) && ours.len() == theirs.len());
    close("CLIP score", clip_score(pictures, &f["b"]).unwrap().value, &facts["clip_score"]);
    let longer: Vec<Vec<f32>> = pictures.iter().map(|row| row.iter().map(|x| x * 7.0).collect()).collect();
    close("length does not matter", clip_score(&longer, &f["b"]).unwrap().value, &facts["clip_score"]);
}

#[test]
fn ssim_equals_scikit_image() {
    let facts = facts();
    let darker = |image: &RgbImage| {
        let mut image = image.clone();
        image.iter_mut().for_each(|level| *level /= 2);
        image
    };
    let (other, narrow) = ((picture(64, 48, 0), picture(64, 48, 1)), picture(11, 30, 3));
    let cases = [
        ("other", other.0.clone(), other.1.clone()),
        ("darker", picture(40, 40, 2), darker(&picture(40, 40, 2))),
        ("narrow", narrow.clone(), image::imageops::flip_vertical(&narrow)),
    ];
    for (name, a, b) in &cases {
        close(name, ssim(a, b).unwrap(), &facts["ssim"][*name]);
        assert!((ssim(a, a).unwrap() - 1.0).abs() < 1e-12);
    }
    let mean = ssim_mean(&[other.0.clone(), other.0.clone()], &[other.1, other.0]).unwrap();
    assert!((mean.value - (1.0 + facts["ssim"]["other"].as_f64().unwrap()) / 2.0).abs() < 1e-6);
}

#[test]
fn mcnemar_equals_scipys_binomial_test() {
    for case in facts()["mcnemar"].as_array().unwrap() {
        let count = |i: usize| case[i].as_u64().unwrap() as usize;
        let (b, c) = (count(0), count(1));
        // pairs that agree change nothing
        let before = [vec![true; b], vec![false; c], vec![true; 5], vec![false; 3]].concat();
        let after = [vec![false; b], vec![true; c], vec![true; 5], vec![false; 3]].concat();
        let test = mcnemar(&before, &after).unwrap();
        assert_eq!((test.only_before, test.only_after), (b, c));
        let theirs = case[2].as_f64().unwrap();
        assert!((test.p / theirs - 1.0).abs() < 1e-9, "{b}, {c}: {} {theirs}", test.p);
    }
}

#[test]
fn the_bootstrap_equals_numpys_on_the_same_draws() {
    let f = &facts()["bootstrap"];
    let numbers = |key: &str| serde_json::from_value::<Vec<f64>>(f[key].clone()).unwrap();
    let (before, after) = (numbers("before"), numbers("after"));
    let draws = f["resamples"].as_u64().unwrap() as usize;
    let ours = paired_bootstrap(&before, &after, draws, f["seed"].as_u64().unwrap()).unwrap();
    close("mean", ours.mean, &f["mean"]);
    close("low", ours.low, &f["low"]);
    close("high", ours.high, &f["high"]);
    assert_ne!(paired_bootstrap(&before, &after, draws, 12).unwrap(), ours);
}

#[test]
fn unlearn_canvas_counts_as_its_script_does() {
    let f = &facts()["unlearn_canvas"];
    let answers: Vec<(String, bool)> = serde_json::from_value(f["answers"].clone()).unwrap();
    let answers: Vec<Stated<'_>> = answers.iter().map(|(label, right)| Stated { label, right: *right }).collect();
    let target = f["target"].as_str().unwrap();
    let found = unlearn_canvas(&[target], &answers).unwrap();
    for (name, metric, pictures) in [("ua", &found.ua, 15), ("ira", &found.ira, 45), ("cra", &found.cra, 60)] {
        let metric = metric.as_ref().unwrap();
        close(name, metric.value, &f[name]);
        assert_eq!(metric.pictures, [pictures]);
    }
    let styles: Vec<Stated<'_>> = answers.iter().filter(|a| a.label.starts_with("style")).cloned().collect();
    assert_eq!(unlearn_canvas(&[target], &styles).unwrap().cra, None);
    assert!(unlearn_canvas(&[], &answers).is_err());
    assert!(unlearn_canvas(&[target, "object: Cats"], &answers).is_err());
}

#[test]
fn every_number_says_what_it_is_and_none_is_called_fid() {
    let f = features();
    let metrics: [Metric; 3] = [
        clip_fid(&f["a"], &f["b"]).unwrap(),
        cmmd(&f["a"], &f["b"]).unwrap(),
        clip_score(&f["a"][..45], &f["b"]).unwrap(),
    ];
    for metric in &metrics {
        assert_ne!(metric.name, "FID");
        assert!(metric.definition.len() > 80);
        let json = serde_json::to_value(metric).unwrap();
        assert!(["name", "definition", "value", "pictures"].iter().all(|key| json.get(key).is_some()));
    }
    assert_eq!(metrics.map(|metric| metric.name), ["CLIP-FID", "CMMD", "CLIP score"]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let f = features();
    let message = |result: erase_concept::Result<Metric>| result.unwrap_err().to_string();
    assert!(message(clip_fid(&f["a"], &f["few_b"])).contains("features of 12 and of 20 numbers"));
    assert!(message(clip_fid(&f["a"][..1], &f["b"])).contains("needs at least 2 pictures"));
    assert!(message(cmmd(&[], &f["b"])).contains("needs at least 1 pictures"));
    assert!(message(clip_score(&f["a"], &f["b"])).contains("60 pictures and 45 prompts"));
    let mut odd = f["a"].clone();
    odd[3].pop();
    assert!(message(cmmd(&odd, &f["b"])).contains("several lengths"));
    odd[3].push(f32::NAN);
    assert!(message(cmmd(&odd, &f["b"])).contains("NaN"));
    let small = RgbImage::new(10, 40);
    assert!(ssim(&small, &small).unwrap_err().to_string().contains("at least 11x11"));
    assert!(ssim_mean(&[], &[]).is_err() && mcnemar(&[true], &[]).is_err());
    assert!(paired_bootstrap(&[], &[], 10, 0).is_err() && paired_bootstrap(&[1.0], &[1.0], 0, 0).is_err());
}
