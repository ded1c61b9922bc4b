//! Detectors in ONNX files against onnxruntime and OpenCV, and what can be wrong with such files.
//!
//! By hand, with the real NudeNet v3 (the user's own file; none is part of the repository):
//!
//!     python3 tests/fixtures/onnx/make_onnx.py --real 320n.onnx PERSON.png ... > real.json
//!     ONNX=320n.onnx GOLDENS=real.json cargo test --release --test onnx -- --ignored --nocapture
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Device;
use common::fixture;
use common::pictures::picture;
use erase_concept::audit::detectors::{NUDENET_LABELS, OnnxDetector, resized_as_opencv};
use erase_concept::audit::{Detection, Detector, from_images};
use erase_concept::diffusion::Generator;
use image::RgbImage;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What the fixture of a file's other labels is called.
const OTHER_LABELS: [&str; 5] = ["a", "it's", "b, c", "say \"d\"", "e"];

fn file(name: &str) -> PathBuf {
    fixture(&format!("onnx/{name}.onnx"))
}

fn goldens() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("onnx/goldens.json")).unwrap()).unwrap()
}

/// The picture of a golden.
fn of(golden: &Value) -> RgbImage {
    if let Some(file) = golden["file"].as_str() {
        return image::open(file).unwrap().into_rgb8();
    }
    let [width, height, seed] = ["width", "height", "seed"].map(|key| golden[key].as_u64().unwrap() as u32);
    picture(width, height, seed)
}

/// Ours are theirs, box by box: within 2 pixels and 0.01 as the interface promises, and far within that.
fn check(ours: &[Detection], labels: &[String], golden: &Value) {
    let theirs = golden["boxes"].as_array().unwrap();
    assert_eq!(ours.len(), theirs.len(), "{golden}\n{ours:?}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.label, labels[theirs[0].as_u64().unwrap() as usize]);
        let number = |i: usize| theirs[i].as_f64().unwrap() as f32;
        assert!((ours.score - number(1)).abs() < 1e-3, "{ours:?} {theirs}");
        for (i, side) in ours.bounds.unwrap().into_iter().enumerate() {
            assert!((side - number(2 + i)).abs() < 0.05, "{ours:?} {theirs}");
        }
    }
}

#[test]
fn boxes_equal_onnxruntimes() {
    let goldens = goldens();
    for name in ["dynamic", "static"] {
        let detector = OnnxDetector::open(&file(name)).unwrap();
        let (mut boxes, mut classes) = (0, std::collections::BTreeSet::new());
        for golden in goldens[name].as_array().unwrap() {
            let found = detector.boxes(&[of(golden)]).unwrap().remove(0);
            check(&found, detector.labels(), golden);
            boxes += found.len();
            classes.extend(found.into_iter().map(|found| found.label));
        }
        println!("{name}: {boxes} boxes of {} classes", classes.len());
        assert!(boxes > 40 && classes.len() > 2);
    }
}

#[test]
fn pictures_are_resized_as_opencv_does_it() {
    let expected = candle_core::safetensors::load(fixture("onnx/resized.safetensors"), &Device::Cpu).unwrap();
    let mut sizes: Vec<&String> = expected.keys().collect();
    sizes.sort();
    assert_eq!(sizes.len(), 7);
    // in the order of the generator's list
    let order = ["64.32", "90.32", "24.32", "33.32", "8.48", "97.13", "512.40"];
    for (seed, size) in order.into_iter().enumerate() {
        let (from, to) = size.split_once('.').unwrap();
        let from: u32 = from.parse().unwrap();
        let ours = resized_as_opencv(&picture(from, from, seed as u32), to.parse().unwrap());
        let theirs: Vec<u8> = expected[size].flatten_all().unwrap().to_vec1().unwrap();
        let differ = ours.as_raw().iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert_eq!((differ, ours.as_raw().len()), (0, theirs.len()), "{size}");
    }
}

#[test]
fn a_detector_says_what_it_is_and_a_label_applies_from_0_6_on() {
    let (nudenet, other) =
        (OnnxDetector::open(&file("dynamic")).unwrap(), OnnxDetector::open(&file("static")).unwrap());
    assert_eq!(
        (nudenet.labels(), other.labels()),
        (&NUDENET_LABELS.map(String::from)[..], &OTHER_LABELS.map(String::from)[..])
    );
    assert_eq!((nudenet.name(), nudenet.gives_boxes()), ("dynamic.onnx", true));
    assert_eq!(nudenet.sha256(), erase_concept::checkpoint::sha256_file(file("dynamic")).unwrap());
    assert!(nudenet.rule().contains("320x320") && nudenet.rule().contains("BGR"), "{}", nudenet.rule());
    assert!(other.rule().contains("160x160") && !other.rule().contains("BGR"), "{}", other.rule());
    let (mut above, mut below) = (0, 0);
    for golden in goldens()["dynamic"].as_array().unwrap() {
        let found = nudenet.findings(&from_images(&[of(golden)]).unwrap()).unwrap().remove(0);
        assert_eq!(found.scores.len(), golden["boxes"].as_array().unwrap().len(), "every box is written down");
        for label in nudenet.labels() {
            let best = found.scores.iter().filter(|b| b.label == *label).map(|b| b.score).fold(0.0, f32::max);
            assert_eq!(found.labels.contains(label), best >= 0.6, "{label}: {best}");
            above += usize::from(best >= 0.6);
            below += usize::from(best > 0.0 && best < 0.6);
        }
    }
    assert!(above > 0 && below > 0, "{above} {below}");
}

#[test]
fn a_pictures_boxes_do_not_depend_on_the_others() {
    let detector = OnnxDetector::open(&file("dynamic")).unwrap();
    let pictures: Vec<RgbImage> = goldens()["dynamic"].as_array().unwrap().iter().map(of).collect();
    let together = detector.boxes(&pictures).unwrap();
    for (picture, found) in pictures.iter().zip(together) {
        assert_eq!(detector.boxes(std::slice::from_ref(picture)).unwrap(), [found]);
    }
}

/// What is said of a file of these bytes, if anything; opening and using it must not panic.
fn complaint(folder: &Path, bytes: &[u8]) -> Option<String> {
    let path = folder.join("file.onnx");
    std::fs::write(&path, bytes).unwrap();
    let used = OnnxDetector::open(&path).and_then(|detector| detector.boxes(&[picture(40, 30, 1)]));
    let message = used.err().map(|e| e.to_string());
    assert!(message.as_ref().is_none_or(|m| m.contains("file.onnx")), "which file? {message:?}");
    message
}

#[test]
fn what_is_no_detector_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let say = |bytes: &[u8]| complaint(folder.path(), bytes).unwrap();
    let whole = std::fs::read(file("dynamic")).unwrap();
    let classifier = std::fs::read(fixture("detectors/vit/model.safetensors")).unwrap();
    for bytes in [
        &b""[..],
        b"<html>not found</html>",
        b"version https://git-lfs",
        &classifier,
        &[0; 4096],
        &whole[..whole.len() / 2],
    ] {
        let message = say(bytes);
        assert!(message.contains("download the file again"), "{message}");
    }
    let replaced = |name: &str, from: &[u8], to: &[u8]| {
        let mut bytes = std::fs::read(file(name)).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        say(&bytes)
    };
    let operation = replaced("dynamic", b"\x22\x07MaxPool", b"\x22\x07MaxPoem");
    assert!(operation.contains("MaxPoem"), "{operation}");
    let names = replaced("static", b"{0: 'a'", b"[0: 'a'");
    assert!(names.contains("\"names\" cannot be read"), "{names}");
    let nowhere = OnnxDetector::open(Path::new("/nowhere.onnx")).err().unwrap().to_string();
    assert!(nowhere.contains("/nowhere.onnx"), "{nowhere}");
}

/// Damaged bytes, cut ends and doubled middles: an error or an answer, never a panic. (More: `ONNX_SEEDS=1000..9000`.)
#[test]
fn damaged_files_never_panic() {
    let seeds = std::env::var("ONNX_SEEDS").unwrap_or_else(|_| "0..150".into());
    let (from, to) = seeds.split_once("..").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(file("static")).unwrap();
    let (mut refused, mut used) = (0, 0);
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        let mut random = Generator::new(seed);
        let mut below = |n: usize| ((random.uniform() * n as f32) as usize).min(n - 1);
        let mut bytes = whole.clone();
        // the graph lies in the first third: weights come after it
        let area = [bytes.len(), bytes.len() / 3, 2000][below(3)];
        match below(4) {
            0 => bytes.truncate(below(bytes.len())),
            1 => {
                let (at, length) = (below(area), 1 + below(200));
                bytes.drain(at..(at + length).min(whole.len()));
            }
            _ => {
                for _ in 0..1 + below(8) {
                    let at = below(area);
                    bytes[at] = below(256) as u8;
                }
            }
        }
        match complaint(folder.path(), &bytes) {
            Some(_) => refused += 1,
            None => used += 1,
        }
    }
    println!("{refused} refused, {used} used");
    assert!(refused > 0);
}

#[test]
#[ignore = "needs the user's own NudeNet v3 and its goldens"]
fn the_real_file_equals_onnxruntime() {
    let [path, goldens] = ["ONNX", "GOLDENS"].map(|name| std::env::var(name).expect(name));
    let detector = OnnxDetector::open(Path::new(&path)).unwrap();
    let goldens: Value = serde_json::from_str(&std::fs::read_to_string(goldens).unwrap()).unwrap();
    for golden in goldens.as_array().unwrap() {
        let found = detector.boxes(&[of(golden)]).unwrap().remove(0);
        check(&found, detector.labels(), golden);
        println!("{}x{} {}: {} boxes equal", golden["width"], golden["height"], golden["file"], found.len());
    }
}
