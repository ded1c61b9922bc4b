//! The demo's classifier against transformers.

#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_close, facts, goldens};

#[test]
fn logits_and_labels_equal_transformers() {
    let classifier = erase_concept::hub::demo_classifier().unwrap();
    let g = goldens("demo");
    assert_close("logits", &classifier.logits(&g["clip.pixels"]).unwrap(), &g["classifier.logits"], 1e-3);
    let labels: Vec<String> = serde_json::from_value(facts("demo")["classifier_labels"].clone()).unwrap();
    assert_eq!(classifier.labels(), labels);
}

#[test]
fn one_label_an_axis_by_the_largest_logit() {
    let classifier = erase_concept::hub::demo_classifier().unwrap();
    let axes: Vec<(String, usize)> = classifier.axes().into_iter().map(|a| (a.name, a.labels.len())).collect();
    let expected = [("shape", 8), ("color", 8), ("style", 4), ("background", 4)].map(|(n, c)| (n.to_string(), c));
    assert_eq!(axes, expected);
    let g = goldens("demo");
    let logits = g["classifier.logits"].to_vec2::<f32>().unwrap();
    for (row, found) in logits.iter().zip(classifier.classify(&g["clip.pixels"]).unwrap()) {
        for (axis, label) in classifier.axes().iter().zip(found) {
            let best = axis.labels.iter().copied().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            assert_eq!(label, classifier.labels()[best]);
        }
    }
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
