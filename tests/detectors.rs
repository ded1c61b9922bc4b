//! Detectors against transformers and diffusers, and what can be wrong with their files.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::pictures::picture;
use common::{assert_close, fixture, repository};
use erase_concept::audit::detectors::{ImageClassifier, SAFETY_CHECKER_LABEL, SafetyCheckerDetector, ZeroShot};
use erase_concept::audit::image_processor::{ImageProcessor, ProcessorKind};
use erase_concept::audit::{ClipModel, Detector, DetectorFiles, Labels, from_images, open_detector};
use image::RgbImage;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

fn goldens() -> (HashMap<String, Tensor>, Value) {
    let tensors = candle_core::safetensors::load(fixture("detectors/goldens.safetensors"), &Device::Cpu).unwrap();
    let facts = std::fs::read_to_string(fixture("detectors/goldens.json")).unwrap();
    (tensors, serde_json::from_str(&facts).unwrap())
}

fn folder(name: &str) -> DetectorFiles {
    DetectorFiles::folder(&fixture(&format!("detectors/{name}"))).unwrap()
}

/// The pictures of many sizes.
fn pictures() -> Vec<RgbImage> {
    let sizes = [(64, 64), (90, 67), (50, 120), (131, 100), (20, 24), (33, 33)];
    sizes.iter().enumerate().map(|(i, (w, h))| picture(*w, *h, i as u32)).collect()
}

/// The 32 drawn shapes.
fn shapes() -> Vec<RgbImage> {
    let all = image::open(fixture("detectors/shapes.png")).unwrap().to_rgb8();
    let tile = |i: u32| image::imageops::crop_imm(&all, i % 8 * 64, i / 8 * 64, 64, 64).to_image();
    (0..32).map(tile).collect()
}

fn tensor(rows: Vec<Vec<f32>>) -> Tensor {
    Tensor::new(rows, &Device::Cpu).unwrap()
}

/// What the processor of a fixture makes of the pictures is what transformers made of them, to the level.
fn check_levels(name: &str, kind: ProcessorKind, expected: &Tensor, pictures: &[RgbImage]) {
    let mut config = std::fs::read(fixture(&format!("detectors/{name}/preprocessor_config.json")));
    if name == "demo" {
        config = std::fs::read(repository("weights/demo/clip/preprocessor_config.json"));
    }
    let mut config: Value = serde_json::from_slice(&config.unwrap()).unwrap();
    (config["do_rescale"], config["do_normalize"]) = (false.into(), false.into());
    let ours = ImageProcessor::from_value(&config, kind).unwrap().prepare(pictures).unwrap();
    assert_close(name, &ours, &expected.to_dtype(DType::F32).unwrap(), 0.0);
}

#[test]
fn vit_equals_transformers() {
    let (g, _) = goldens();
    let vit = ImageClassifier::open(&folder("vit")).unwrap();
    assert_close("ViT", &tensor(vit.logits(&pictures()).unwrap()), &g["vit.logits"], 1e-4);
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("detectors/vit/preprocessor_config.json")).unwrap()).unwrap();
    let pixels = ImageProcessor::from_value(&config, ProcessorKind::Clip).unwrap().prepare(&pictures()).unwrap();
    assert_close("pixels", &pixels, &g["vit.pixels"], 0.0);
}

#[test]
fn resnet_equals_transformers() {
    let (g, _) = goldens();
    check_levels("resnet", ProcessorKind::ConvNext, &g["resnet.levels"], &pictures());
    let resnet = ImageClassifier::open(&folder("resnet")).unwrap();
    assert_close("ResNet", &tensor(resnet.logits(&pictures()).unwrap()), &g["resnet.logits"], 1e-4);
}

#[test]
fn a_classifier_names_the_largest_logit_and_scores_are_a_softmax() {
    let (g, _) = goldens();
    for name in ["vit", "resnet"] {
        let detector = open_detector(&folder(name), None).unwrap();
        assert_eq!(detector.labels(), ["tench", "church", "parachute", "garbage truck", "gas pump"]);
        let logits = g[&format!("{name}.logits")].to_vec2::<f32>().unwrap();
        for (picture, logits) in pictures().into_iter().zip(logits) {
            let pixels = from_images(&[picture]).unwrap();
            let best = (0..5).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(detector.detect(&pixels).unwrap(), [[detector.labels()[best].clone()]]);
            let sum: f32 = logits.iter().map(|x| x.exp()).sum();
            for (i, found) in detector.detections(&pixels).unwrap()[0].iter().enumerate() {
                assert!((found.score - logits[i].exp() / sum).abs() < 1e-4 && found.label == detector.labels()[i]);
            }
        }
    }
}

#[test]
fn the_safety_checker_equals_diffusers() {
    let (g, facts) = goldens();
    check_levels("safety_checker", ProcessorKind::Clip, &g["safety.levels"], &pictures());
    let checker = SafetyCheckerDetector::open(&folder("safety_checker")).unwrap();
    let verdicts = checker.verdicts(&pictures()).unwrap();
    let flagged: Vec<bool> = verdicts.iter().map(|verdict| verdict.is_flagged()).collect();
    assert_eq!(serde_json::json!(flagged), facts["safety_flagged"]);
    assert!(flagged.contains(&true) && flagged.contains(&false));
    let close = |ours: &[f32], theirs: &Value| {
        let theirs: Vec<f32> = serde_json::from_value(theirs.clone()).unwrap();
        assert_eq!(ours.len(), theirs.len());
        // a cosine at half a thousandth may be rounded to either side
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1.1e-3), "{ours:?} {theirs:?}");
    };
    for (verdict, scores) in verdicts.iter().zip(facts["safety_scores"].as_array().unwrap()) {
        close(&verdict.concept_scores, &scores["concepts"]);
        close(&verdict.special_scores, &scores["special"]);
    }
    // one picture only because special care lowers the other thresholds
    let plan: [usize; 3] = serde_json::from_value(facts["safety_plan"]["by special care"].clone()).unwrap();
    let labels = checker.detect(&from_images(&pictures()[plan[0]..=plan[0]]).unwrap()).unwrap();
    let expected =
        [SAFETY_CHECKER_LABEL.to_string(), format!("concept {}", plan[2]), format!("special care {}", plan[1])];
    assert_eq!(labels, [expected.to_vec()]);
    let seen = checker.detections(&from_images(&pictures()[plan[0]..=plan[0]]).unwrap()).unwrap();
    assert_eq!(seen[0].len(), 20);
    assert!(seen[0][plan[2]].score > 0.0 && seen[0][plan[2]].score < 0.01);
}

#[test]
fn a_safety_checker_of_before_transformers_5_is_the_same() {
    let old = tempfile::tempdir().unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(fixture("detectors/safety_checker").join(name), old.path().join(name)).unwrap();
    }
    let tensors =
        candle_core::safetensors::load(fixture("detectors/safety_checker/model.safetensors"), &Device::Cpu).unwrap();
    let mut renamed: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, t)| (name.replacen("vision_model.", "vision_model.vision_model.", 1), t))
        .collect();
    let ids = Tensor::arange(0i64, 17, &Device::Cpu).unwrap().reshape((1, 17)).unwrap();
    renamed.insert("vision_model.vision_model.embeddings.position_ids".into(), ids);
    candle_core::safetensors::save(&renamed, old.path().join("model.safetensors")).unwrap();
    let verdicts = |files: &DetectorFiles| SafetyCheckerDetector::open(files).unwrap().verdicts(&pictures()).unwrap();
    assert_eq!(verdicts(&DetectorFiles::folder(old.path()).unwrap()), verdicts(&folder("safety_checker")));
}

fn zero_shot() -> (ZeroShot, Value) {
    let facts = goldens().1["zero_shot"].clone();
    let labels = Labels {
        labels: serde_json::from_value(facts["labels"].clone()).unwrap(),
        template: facts["template"].as_str().unwrap().into(),
    };
    let clip = ClipModel::open(&DetectorFiles::folder(&repository("weights/demo/clip")).unwrap()).unwrap();
    (ZeroShot::new(clip, &labels).unwrap(), facts)
}

#[test]
fn zero_shot_equals_transformers() {
    let (g, _) = goldens();
    check_levels("demo", ProcessorKind::Clip, &g["zero_shot.levels"], &pictures());
    let (detector, _) = zero_shot();
    let all: Vec<RgbImage> = shapes().into_iter().chain(pictures()).collect();
    let logits = detector.logits(&all).unwrap();
    let logits = tensor(logits.into_iter().map(|row| row.into_iter().map(|x| x as f32).collect()).collect());
    assert_close("zero-shot", &logits, &g["zero_shot.logits_per_image"], 1e-3);
}

#[test]
fn the_demos_clip_tells_colours_styles_and_backgrounds_apart_but_not_shapes() {
    let (detector, facts) = zero_shot();
    let attributes = goldens().1["shapes"].clone();
    let found = detector.detect(&from_images(&shapes()).unwrap()).unwrap();
    for (axis, key) in [("shape", "shape"), ("color", "color"), ("style", "style"), ("background", "bg")] {
        let right = found.iter().zip(attributes.as_array().unwrap()).filter(|(labels, attributes)| {
            let named = labels.iter().find(|label| label.starts_with(&format!("{axis}:"))).unwrap();
            named.split([' ', ':']).any(|word| word == attributes[key].as_str().unwrap())
        });
        let right = right.count();
        println!("{axis}: {right} of 32");
        assert_eq!(right, facts["right_of_32"][axis].as_u64().unwrap() as usize, "{axis}");
        assert!(if axis == "shape" { right < 20 } else { right >= 31 }, "{axis}: {right}");
    }
    let scores = &detector.detections(&from_images(&shapes()[..1]).unwrap()).unwrap()[0];
    assert_eq!(scores.len(), detector.labels().len());
    for axis in ["shape", "color", "style", "background"] {
        let sum: f32 = scores.iter().filter(|s| s.label.starts_with(&format!("{axis}:"))).map(|s| s.score).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{axis}: {sum}");
    }
}

#[test]
fn every_detector_says_its_name_and_the_hash_of_its_file() {
    let labels = Labels::new(vec!["star".into(), "ring".into()]);
    for (files, labels) in [
        (folder("vit"), None),
        (folder("resnet"), None),
        (folder("safety_checker"), None),
        (DetectorFiles::folder(&repository("weights/demo/clip")).unwrap(), Some(&labels)),
    ] {
        let detector = open_detector(&files, labels).unwrap();
        let path = Path::new(detector.name()).join("model.safetensors");
        assert_eq!(detector.sha256(), erase_concept::checkpoint::sha256_file(path).unwrap());
        assert!(detector.rule().len() > 20);
    }
    let embedded = DetectorFiles::within(erase_concept::hub::demo(), "clip");
    let on_disk = DetectorFiles::folder(&repository("weights/demo/clip")).unwrap();
    let sha256 = |files| open_detector(files, Some(&labels)).unwrap().sha256().to_string();
    assert_eq!(sha256(&embedded), sha256(&on_disk));
}

#[test]
fn the_demos_classifier_is_one_of_these_too() {
    let ours = ImageClassifier::open(&DetectorFiles::within(erase_concept::hub::demo(), "classifier")).unwrap();
    let pixels = from_images(&shapes()).unwrap();
    let theirs = erase_concept::hub::demo_classifier().unwrap().classify(&pixels).unwrap();
    assert_eq!(ours.detect(&pixels).unwrap(), theirs);
}

/// A copy of a fixture with one file changed.
fn changed(name: &str, file: &str, change: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(&format!("detectors/{name}"))).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    match change(&std::fs::read_to_string(&path).unwrap_or_default()) {
        Some(text) => std::fs::write(path, text).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    }
    copy
}

fn complaint(folder: &Path, labels: Option<&Labels>) -> String {
    let opened = DetectorFiles::folder(folder).and_then(|files| open_detector(&files, labels));
    opened.err().unwrap().to_string()
}

#[test]
fn what_is_wrong_with_a_folder_is_said() {
    type Change = fn(&str) -> Option<String>;
    let cases: [(&str, &str, Change, &str); 11] = [
        ("vit", "config.json", |_| None, "config.json: no such file; a detector has it"),
        ("vit", "config.json", |_| Some("[1]".into()), "config.json: is not a JSON object"),
        (
            "vit",
            "config.json",
            |s| Some(s.replace("ViTFor", "BeitFor")),
            "is of [\"BeitForImageClassification\"]; a detector is",
        ),
        (
            "vit",
            "config.json",
            |s| Some(s.replace("\"0\": \"tench\"", "\"9\": \"tench\"")),
            "id2label must name the outputs",
        ),
        (
            "vit",
            "config.json",
            |s| Some(s.replace("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"tanh\"")),
            "unknown variant `tanh`",
        ),
        (
            "vit",
            "config.json",
            |s| Some(s.replace("\"patch_size\": 8", "\"patch_size\": 16")),
            "position_embeddings is [1, 17, 24]",
        ),
        (
            "resnet",
            "config.json",
            |s| Some(s.replace("\"relu\"", "\"silu\"")),
            "hidden_act is \"silu\"; only relu is known",
        ),
        (
            "resnet",
            "preprocessor_config.json",
            |_| None,
            "preprocessor_config.json: no such file; it says how pictures are prepared",
        ),
        (
            "safety_checker",
            "preprocessor_config.json",
            |s| Some(s.replace("CLIPImage", "LevitImage")),
            "LevitImageProcessor, which is not known",
        ),
        (
            "safety_checker",
            "config.json",
            |s| Some(s.replace("\"projection_dim\": 16", "\"projection_dim\": 17")),
            "concept_embeds is [17, 16]",
        ),
        ("safety_checker", "model.safetensors", |_| None, "model.safetensors: no such file"),
    ];
    for (name, file, change, expected) in cases {
        let folder = changed(name, file, change);
        let message = complaint(folder.path(), None);
        assert!(message.contains(expected), "{name}/{file}: {message}");
        assert!(message.contains(folder.path().to_str().unwrap()), "which file? {message}");
    }
    assert!(complaint(Path::new("/nowhere"), None).contains("is not a folder; a detector is a folder with"));
}

#[test]
fn labels_are_for_clip_alone_and_need_another_beside_them() {
    let clip = repository("weights/demo/clip");
    let labels = |names: &[&str]| Labels::new(names.iter().map(|name| name.to_string()).collect());
    assert!(complaint(&clip, None).contains("give at least two"));
    assert!(complaint(&clip, Some(&labels(&[]))).contains("give at least two"));
    assert!(complaint(&clip, Some(&labels(&["star"]))).contains("\"star\" has no other beside it"));
    assert!(complaint(&clip, Some(&labels(&["a: star", "b: red", "a: ring"]))).contains("\"b: red\" has no other"));
    assert!(complaint(&clip, Some(&labels(&["star", "star"]))).contains("stands twice"));
    let template = Labels { template: "a photo".into(), ..labels(&["star", "ring"]) };
    assert!(complaint(&clip, Some(&template)).contains("must have {} once"));
    let vit = fixture("detectors/vit");
    assert!(complaint(&vit, Some(&labels(&["star", "ring"]))).contains("is no CLIP: its labels are its own"));
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
