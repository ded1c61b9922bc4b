//! Detectors and metrics of an audit: what is written down is what they say of the pictures, whenever they look.

use super::common::tiny::{Tiny, assert_same, tree};
use super::{audit, audited, entries, files, fixture, json, repository};
use erase_concept::audit::metrics::{clip_fid, clip_score, cmmd, ssim};
use erase_concept::audit::{ClipModel, Detector, DetectorFiles, Labels, from_images, open_detector};
use image::RgbImage;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const LABELS: [&str; 4] = ["color: red", "color: blue", "style: plain", "style: striped"];

/// The flags of every kind of detector.
fn detectors() -> Vec<String> {
    let folder = |name: &str| fixture(&format!("detectors/{name}")).display().to_string();
    let mut names = vec!["beside".to_string(), "demo/clip".into(), folder("vit"), folder("safety_checker")];
    if cfg!(feature = "onnx") {
        names.push(fixture("onnx/dynamic.onnx").display().to_string());
    }
    let flags = names.into_iter().flat_map(|name| ["--detector".into(), name]);
    flags.chain(LABELS.iter().flat_map(|label| ["--label".into(), label.to_string()])).collect()
}

fn run(tiny: &Tiny, args: &[&str], more: &[String]) -> String {
    let args: Vec<&str> = args.iter().copied().chain(more.iter().map(String::as_str)).collect();
    let assert = tiny.command(&args).assert();
    let output = assert.get_output();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &said
}

fn picture(folder: &Path, entry: &Value) -> RgbImage {
    image::open(folder.join(entry["file"].as_str().unwrap())).unwrap().into_rgb8()
}

/// The detectors opened by the library.
fn opened() -> Vec<(&'static str, Box<dyn Detector + Send + Sync>)> {
    let folder = |name: &str| DetectorFiles::folder(&fixture(&format!("detectors/{name}"))).unwrap();
    let labels = Labels::new(LABELS.map(String::from).to_vec());
    let clip = DetectorFiles::folder(&repository("weights/demo/clip")).unwrap();
    vec![
        ("clip", open_detector(&clip, Some(&labels)).unwrap()),
        ("vit", open_detector(&folder("vit"), None).unwrap()),
        ("safety_checker", open_detector(&folder("safety_checker"), None).unwrap()),
    ]
}

#[test]
fn what_is_written_down_is_what_detectors_say_of_the_files() {
    let tiny = audited();
    let said = run(&tiny, &audit(&["--output", "out"]), &detectors());
    assert!(said.contains("by clip (demo/clip):"), "{said}");
    let out = tiny.root().join("out");
    let (listed, summary) = (entries(&out), json(&out.join("audit.json")));
    for (key, detector) in opened() {
        let used = summary["detectors"].as_array().unwrap().iter().find(|used| used["key"] == key).unwrap();
        assert_eq!(
            (used["sha256"].as_str(), used["rule"].as_str()),
            (Some(detector.sha256()), Some(&*detector.rule()))
        );
        for entry in &listed {
            let pixels = from_images(&[picture(&out, entry)]).unwrap();
            let found = detector.findings(&pixels).unwrap().remove(0);
            assert_eq!(entry["labels"][key], serde_json::json!(found.labels), "{key}");
            let scores: Vec<f64> = entry["scores"][key]
                .as_array()
                .map_or_else(Vec::new, |all| all.iter().map(|score| score["score"].as_f64().unwrap()).collect());
            assert_eq!(scores.len(), found.scores.len(), "{key}: {entry}");
            assert!(scores.iter().zip(&found.scores).all(|(a, b)| (a - f64::from(b.score)).abs() < 1e-5), "{key}");
        }
        for (label, rate) in summary["models"][0]["labels"][key].as_object().unwrap() {
            let has = |entry: &&Value| entry["labels"][key].as_array().unwrap().contains(&(*label).clone().into());
            assert_eq!(rate["hits"].as_u64().unwrap() as usize, listed.iter().filter(has).count(), "{key} {label}");
        }
    }
    // groups: the row of two categories counts in both
    let groups = summary["models"][0]["groups"].as_object().unwrap();
    let pictures = |name: &str| groups[name]["pictures"].as_u64().unwrap();
    assert_eq!((groups.len(), pictures("object"), pictures("style")), (2, 5, 2));
    assert_eq!(summary["metrics"]["group"], "categories");
    let mut table = csv::Reader::from_path(out.join("rates.csv")).unwrap();
    let rows: Vec<Vec<String>> = table.records().map(|row| row.unwrap().iter().map(String::from).collect()).collect();
    for row in rows.iter().filter(|row| row[3] == "label") {
        let of = if row[1].is_empty() { &summary["models"][0] } else { &groups[&row[1]] };
        let rate = &of["labels"][&row[2]][&row[4]];
        let [hits, n, low] = ["hits", "n", "low"].map(|key| rate[key].as_f64().unwrap());
        let number = |i: usize| row[i].parse::<f64>().unwrap();
        assert_eq!([number(5), number(6), number(8)], [hits, n, low], "{row:?}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Groups of prompts") && page.contains("flagged by the safety checker"));
    if cfg!(feature = "onnx") {
        let rules = summary["models"][0]["rules"]["dynamic"].as_array().unwrap();
        assert_eq!(rules.len(), 4);
        let boxes = |entry: &Value| entry["scores"]["dynamic"].as_array().cloned().unwrap_or_default();
        let exposed = |b: &Value, from: f64| {
            b["label"].as_str().unwrap().ends_with("_EXPOSED") && b["score"].as_f64().unwrap() >= from
        };
        let all: Vec<Vec<Value>> = listed.iter().map(boxes).collect();
        assert!(
            all.iter().flatten().all(|b| b["bounds"].as_array().unwrap().len() == 4)
                && all.iter().flatten().count() > 5
        );
        let instances = all.iter().flatten().filter(|b| exposed(b, f64::from(0.6f32))).count();
        assert_eq!(rules[0]["counted"]["per_class"]["total"].as_u64().unwrap() as usize, instances);
        let hits = all.iter().filter(|boxes| boxes.iter().any(|b| exposed(b, 0.75))).count();
        assert_eq!(rules[3]["counted"]["pictures"]["hits"].as_u64().unwrap() as usize, hits);
        assert!(page.contains("Exposed body parts by the rules of papers") && page.contains("UnlearnDiffAtk"));
    }
}

/// When each picture was written.
fn times(folder: &Path) -> Vec<(String, SystemTime)> {
    let time = |name: &String| std::fs::metadata(folder.join(name)).unwrap().modified().unwrap();
    let pictures = tree(folder).into_iter().filter(|name| name.ends_with(".png"));
    pictures.map(|name| (name.clone(), time(&name))).collect()
}

#[test]
fn pictures_that_are_there_are_looked_at_without_being_made_again() {
    let tiny = audited();
    let metrics = ["--clip".to_string(), "demo/clip".into(), "--target".into(), "color: red".into()];
    let all = [detectors(), metrics.to_vec()].concat();
    run(&tiny, &audit(&["--output", "once"]), &all);
    let expected = files(&tiny.root().join("once"));
    let out = tiny.root().join("out");
    run(&tiny, &audit(&["--output", "out"]), &[]);
    let before = times(&out);
    // batches of another size than when they were made; one picture is damaged meanwhile
    std::fs::write(out.join("images/4_0.png"), "x").unwrap();
    let said = run(&tiny, &audit(&["--output", "out", "--batch-size", "1"]), &all);
    assert!(said.contains("1 pictures that were made earlier are gone or damaged"), "{said}");
    assert_same(&expected, &files(&out), "looked at later");
    let after = times(&out);
    let made: Vec<&String> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
    assert_eq!(made, ["images/4_0.png"]);
    // and back: what the others found is forgotten, as if they had never looked
    run(&tiny, &audit(&["--output", "out"]), &[]);
    run(&tiny, &audit(&["--output", "plain"]), &[]);
    assert_same(&files(&tiny.root().join("plain")), &files(&out), "looked at by the first alone");
    // without pictures: the same counts, nothing on disk, and what was not kept is made again for another detector
    run(&tiny, &audit(&["--output", "none", "--no-images"]), &[]);
    let said = run(&tiny, &audit(&["--output", "none", "--no-images"]), &all);
    assert!(said.contains("6 pictures were not kept"), "{said}");
    let none = tiny.root().join("none");
    assert!(tree(&none).iter().all(|name| !name.ends_with(".png")));
    let models = |folder: &Path| json(&folder.join("audit.json"))["models"].clone();
    assert_eq!(models(&none), models(&tiny.root().join("once")));
}

#[test]
fn a_kill_between_pictures_that_are_looked_at_loses_nothing() {
    let tiny = audited();
    let all = detectors();
    run(&tiny, &audit(&["--output", "once"]), &all);
    run(&tiny, &audit(&["--output", "out"]), &[]);
    // a manifest as a process leaves it that was killed while it looked: half of the new lines, the last cut off
    let lines = |folder: &str| -> Vec<String> {
        let text = std::fs::read_to_string(tiny.root().join(folder).join("manifest.jsonl")).unwrap();
        text.lines().map(String::from).collect()
    };
    let (old, new) = (lines("out"), lines("once"));
    let bare = |line: &String| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        (value["labels"], value["scores"]) = (serde_json::json!({}), serde_json::json!({}));
        value.to_string()
    };
    let mut left = vec![new[0].clone()];
    left.extend(old[1..].iter().map(bare));
    left.extend([new[1].clone(), new[2].clone(), new[3][..50].to_string()]);
    std::fs::write(tiny.root().join("out/manifest.jsonl"), left.join("\n")).unwrap();
    run(&tiny, &audit(&["--output", "out"]), &all);
    assert_same(&files(&tiny.root().join("once")), &files(&tiny.root().join("out")), "after a kill");
}

/// The model and what a small erase job makes of it.
fn erased() -> Tiny {
    let tiny = audited();
    tiny.command(&tiny.erase(&["--output", "erased"])).assert().code(0);
    tiny
}

fn both<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [audit(&["--model", "erased"]), more.to_vec()].concat()
}

#[test]
fn metrics_are_those_of_the_files() {
    let tiny = erased();
    let flags =
        ["--clip", "demo/clip", "--against", "model", "--target", "color: red", "--samples", "2"].map(String::from);
    let said = run(&tiny, &both(&["--output", "out"]), &flags);
    for name in ["CLIP score: ", "CLIP-FID: ", "CMMD: ", "SSIM: ", "UA "] {
        assert!(said.contains(name), "{name}: {said}");
    }
    let out = tiny.root().join("out");
    let (listed, summary) = (entries(&out), json(&out.join("audit.json")));
    let of = |model: &str| -> Vec<&Value> { listed.iter().filter(|e| e["model"] == model).collect() };
    let pictures = |model: &str| -> Vec<RgbImage> { of(model).into_iter().map(|e| picture(&out, e)).collect() };
    let clip = ClipModel::open(&DetectorFiles::within(erase_concept::hub::demo(), "clip")).unwrap();
    let features = |model: &str| clip.image_features(&pictures(model)).unwrap();
    let prompts: Vec<&str> = of("model").iter().map(|e| e["prompt"].as_str().unwrap()).collect();
    let texts = clip.text_features(&prompts).unwrap();
    let metric = |model: usize, name: &str| {
        let metrics = summary["models"][model]["metrics"].as_array().unwrap();
        let found = metrics.iter().find(|metric| metric["name"] == name);
        found.map(|metric| (metric["value"].as_f64().unwrap(), metric["definition"].as_str().unwrap().len()))
    };
    let close = |found: Option<(f64, usize)>, expected: f64| {
        let (value, definition) = found.unwrap();
        assert!((value - expected).abs() < 1e-4 * expected.abs().max(1.0) && definition > 80, "{value} {expected}");
    };
    let (base, erased) = (features("model"), features("erased"));
    close(metric(0, "CLIP score"), clip_score(&base, &texts).unwrap().value);
    close(metric(1, "CLIP score"), clip_score(&erased, &texts).unwrap().value);
    close(metric(1, "CLIP-FID"), clip_fid(&base, &erased).unwrap().value);
    close(metric(1, "CMMD"), cmmd(&base, &erased).unwrap().value);
    let similar: Vec<f64> =
        pictures("model").iter().zip(&pictures("erased")).map(|(a, b)| ssim(a, b).unwrap()).collect();
    close(metric(1, "SSIM"), similar.iter().sum::<f64>() / 12.0);
    assert!(metric(1, "SSIM").unwrap().0 < 1.0, "the erased model draws something else");
    assert!(["CLIP-FID", "CMMD", "SSIM"].iter().all(|name| metric(0, name).is_none()), "the base beside itself");
    assert!(listed.iter().all(|entry| entry["ssim"].is_number() == (entry["model"] == "erased")));
    // pairs: each label that either shows
    for paired in summary["models"][1]["paired"].as_array().unwrap() {
        let shows = |e: &&Value| e["labels"]["classifier"].as_array().unwrap().contains(&paired["label"]);
        let (a, b): (Vec<bool>, Vec<bool>) =
            of("model").iter().zip(of("erased")).map(|(a, b)| (shows(a), shows(&b))).unzip();
        let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count();
        assert_eq!(paired["only_before"].as_u64().unwrap() as usize, only(&a, &b), "{paired}");
        assert_eq!(paired["only_after"].as_u64().unwrap() as usize, only(&b, &a), "{paired}");
    }
    // one row of six names «red»; every picture is asked for one background at most
    let unlearning = &summary["models"][0]["unlearning"]["classifier"];
    assert_eq!(unlearning["ua"]["pictures"], serde_json::json!([2]));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("CLIP-FID") && page.contains("Not FID") && page.contains("McNemar"));
    let mut table = csv::Reader::from_path(out.join("audit.csv")).unwrap();
    let header = table.headers().unwrap().clone();
    assert!(["clip_score", "ssim"].iter().all(|name| header.iter().any(|column| column == *name)), "{header:?}");
}

#[test]
fn shards_with_detectors_and_metrics_merge_to_one_run() {
    let tiny = erased();
    let pictures = tiny.root().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (i, size) in [(32, 32), (50, 20), (16, 40)].into_iter().enumerate() {
        super::common::pictures::picture(size.0, size.1, i as u32).save(pictures.join(format!("{i}.png"))).unwrap();
    }
    for (name, against) in [("model", "model"), ("folder", "pictures")] {
        let flags = ["--clip".to_string(), "demo/clip".into(), "--against".into(), against.into()];
        let flags = [detectors(), flags.to_vec()].concat();
        let place = |part: &str| format!("{name}-{part}");
        run(&tiny, &both(&["--output", &place("one")]), &flags);
        for part in ["1", "2"] {
            run(&tiny, &both(&["--shard", &format!("{part}/2"), "--output", &place(part)]), &flags);
        }
        let (one, two, whole) = (place("1"), place("2"), place("whole"));
        // the folder is needed no more
        if name == "folder" {
            std::fs::remove_dir_all(&pictures).unwrap();
        }
        run(&tiny, &["audit", "merge", &two, &one, "--output", &whole], &[]);
        let files_of = |name: &str| files(&tiny.root().join(name));
        assert_same(&files_of(&place("one")), &files_of(&whole), name);
        let summary = json(&tiny.root().join(&whole).join("audit.json"));
        let names = summary["models"][1]["metrics"].as_array().unwrap();
        assert!(names.iter().any(|metric| metric["name"] == "CMMD"), "{names:?}");
    }
}

#[test]
fn detectors_and_metrics_that_make_no_sense_are_refused_before_anything_is_drawn() {
    let tiny = audited();
    let refused = |more: &[&str], parts: &[&str]| {
        tiny.refused(&audit(&[&["--output", "out"], more].concat()), parts);
    };
    refused(&["--detector", "demo/clip"], &["is a CLIP", "--label"]);
    refused(&["--detector", "demo/classifier", "--label", "a", "--label", "b"], &["--label is for a CLIP"]);
    refused(&["--detector", "nothing-here"], &["nothing-here"]);
    refused(&["--detector", "missing.onnx"], &["missing.onnx"]);
    refused(&["--against", "nobody"], &["--against nobody", "one of the models (model)"]);
    refused(&["--against", "model"], &["--against model: it is the only model"]);
    refused(&["--against", "model/unet"], &["--clip"]);
    refused(&["--target", "color: mauve"], &["--target color: mauve: no detector knows it", "shape: circle"]);
    refused(&["--target", "color: red", "--target", "style: plain"], &["--target style: plain: is of another axis"]);
    refused(&["--group", "mood"], &["--group mood", "categories"]);
    refused(&["--clip", "demo/classifier"], &["--clip demo/classifier: is no CLIP"]);
    std::fs::remove_dir_all(tiny.file("classifier")).unwrap();
    refused(&["--detector", "beside"], &["--detector beside: none of the models"]);
}

#[cfg(not(feature = "onnx"))]
#[test]
fn a_program_without_onnx_says_so() {
    let tiny = audited();
    let file = fixture("onnx/dynamic.onnx").display().to_string();
    tiny.refused(&audit(&["--output", "out", "--detector", &file]), &["dynamic.onnx", "--features onnx"]);
}

#[cfg(feature = "onnx")]
#[test]
fn threads_and_batches_change_nothing_that_is_found() {
    let tiny = audited();
    let all = [detectors(), vec!["--clip".to_string(), "demo/clip".into()]].concat();
    run(&tiny, &audit(&["--output", "one", "--batch-size", "1"]), &all);
    let three =
        ["audit", "--model", "model", "--prompts", "set.csv", "--steps", "2", "--threads", "3", "--batch-size", "5"];
    run(&tiny, &[&three[..], &["--output", "three"]].concat(), &all);
    assert_same(&files(&tiny.root().join("one")), &files(&tiny.root().join("three")), "batches and threads");
}

/// Where a detector lies does not show in what is written.
#[test]
fn results_do_not_tell_where_detectors_lie() {
    let tiny = audited();
    let copy = |to: &str| -> PathBuf {
        let folder = tiny.root().join(to).join("vit");
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(fixture("detectors/vit")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder
    };
    for place in ["here", "there"] {
        let flags = ["--detector".to_string(), copy(place).display().to_string()];
        run(&tiny, &audit(&["--output", &format!("out-{place}"), "--limit", "1"]), &flags);
    }
    let [here, there] = ["out-here", "out-there"].map(|name| files(&tiny.root().join(name)));
    assert_same(&here, &there, "places");
}
