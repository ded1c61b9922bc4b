//! `audit` and `compare` from outside, on a very small model: a prompt set with I2P's header, interruptions, shards, limits.
//!
//! `AUDIT_KILLS=20` kills the program more often.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod detectors;
mod interruption;
mod shards;

use common::tiny::{Tiny, assert_same, tree};
use common::{fixture, repository};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of the fixture that can be drawn, as their files are called.
const CASES: [&str; 6] = ["0", "1", "2", "4", "7", "7-2"];
/// Lines of its other rows.
const MALFORMED: [u64; 3] = [6, 8, 9];

/// The smallest model with the demo's classifier beside it, and a prompt set with I2P's header.
fn audited() -> Tiny {
    let tiny = Tiny::with_classifier();
    std::fs::copy(fixture("prompts/i2p_like.csv"), tiny.root().join("set.csv")).unwrap();
    tiny
}

/// A prompt set of so many plain rows.
fn plain_set(tiny: &Tiny, rows: usize) {
    let mut text = "case_number,prompt,evaluation_seed,evaluation_guidance\n".to_string();
    (0..rows).for_each(|i| text.push_str(&format!("{i},a red star number {i},{},{}\n", 10 + i, 5 + i % 2)));
    std::fs::write(tiny.root().join("set.csv"), text).unwrap();
}

/// The arguments of a small audit.
fn audit<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let base = ["audit", "--model", "model", "--prompts", "set.csv", "--steps", "2", "--threads", "1"];
    [&base, more].concat()
}

/// Every file of an audit but `run.json`, which differs between equal audits.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    common::tiny::result(folder)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The entries of a manifest, without its first line.
fn entries(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("manifest.jsonl")).unwrap();
    text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn infotext(path: &Path) -> String {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    let info = decoder.read_info().unwrap();
    let info = info.info();
    let latin = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == "parameters");
    let unicode = info.utf8_text.iter().find(|chunk| chunk.keyword == "parameters");
    latin.map(|chunk| chunk.text.clone()).or_else(|| unicode.map(|chunk| chunk.get_text().unwrap())).unwrap()
}

fn size(path: &Path) -> (u32, u32) {
    image::image_dimensions(path).unwrap()
}

#[test]
fn a_set_with_i2ps_header_is_drawn_and_counted() {
    let tiny = audited();
    let out = tiny.root().join("out");
    let assert = tiny.command(&audit(&["--output", "out", "--samples", "2", "--seed", "100"])).assert().code(0);
    let stdout = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    for line in MALFORMED {
        assert!(stdout.contains(&format!("skipped line {line}: ")), "{stdout}");
    }
    let images = out.join("images");
    let mut expected: Vec<String> =
        CASES.iter().flat_map(|case| [0, 1].map(|sample| format!("{case}_{sample}.png"))).collect();
    expected.sort();
    assert_eq!(tree(&images), expected);
    assert_eq!((size(&images.join("0_0.png")), size(&images.join("1_1.png"))), ((32, 32), (40, 24)));
    assert_eq!(size(&images.join("4_0.png")), (32, 32), "the model's own size");
    let text = |file: &str| infotext(&images.join(file));
    assert!(text("0_0.png").contains("a red star, with a \"quoted\" word\nSteps: 2"));
    assert!(text("0_0.png").contains("CFG scale: 7, Seed: 4048790253, Size: 32x32"));
    assert!(text("0_1.png").contains("Seed: 4049790253,"), "a million further");
    assert!(text("1_0.png").contains("two lines\nof one prompt\n") && text("1_0.png").contains("Size: 40x24"));
    assert!(text("2_0.png").contains("🌟 and a café") && text("2_0.png").contains("CFG scale: 10, Seed: 102,"));
    assert!(text("4_0.png").contains("CFG scale: 7.5, Seed: 77,"));

    let listed = entries(&out);
    assert_eq!(listed.len(), 12);
    for entry in &listed {
        let file = out.join(entry["file"].as_str().unwrap());
        assert_eq!(entry["sha256"].as_str().unwrap(), sha256(&std::fs::read(file).unwrap()));
        assert_eq!(entry["labels"]["classifier"].as_array().unwrap().len(), 4, "one label an axis");
    }
    assert_eq!((&listed[2]["columns"]["nudity_percentage"], &listed[2]["line"]), (&"12.5".into(), &3.into()));
    let summary = json(&out.join("audit.json"));
    let rates = summary["models"][0]["labels"]["classifier"].as_object().unwrap();
    let on_axis = |axis: &str| -> u64 {
        let of_axis = rates.iter().filter(|(label, _)| label.starts_with(axis));
        of_axis.map(|(_, rate)| rate["hits"].as_u64().unwrap()).sum()
    };
    for axis in ["shape:", "color:", "style:", "background:"] {
        assert_eq!(on_axis(axis), 12, "{axis}");
    }
    for (label, rate) in rates {
        let found =
            listed.iter().filter(|e| e["labels"]["classifier"].as_array().unwrap().contains(&(*label).clone().into()));
        assert_eq!(rate["hits"].as_u64().unwrap() as usize, found.count(), "{label}");
    }
    let skipped: Vec<u64> =
        summary["prompts"]["skipped"].as_array().unwrap().iter().map(|row| row["line"].as_u64().unwrap()).collect();
    assert_eq!(skipped, MALFORMED);
    let mut table = csv::Reader::from_path(out.join("audit.csv")).unwrap();
    let header = table.headers().unwrap().clone();
    let columns = ["case_number", "seed", "categories", "classifier"]
        .map(|name| header.iter().position(|column| column == name).unwrap());
    let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 12);
    assert_eq!((&rows[2][columns[0]], &rows[2][columns[1]], &rows[2][columns[2]]), ("1", "1", "object, style"));
    assert!(rows[2][columns[3]].contains("shape: "));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Audit of model") && page.contains("line 6: has no prompt") && !page.contains("http:"));
    // once more: nothing is made again, and nothing changes
    let before = (files(&out), std::fs::read(out.join("run.json")).unwrap());
    tiny.command(&audit(&["--output", "out", "--samples", "2", "--seed", "100"])).assert().code(0);
    assert_eq!((files(&out), std::fs::read(out.join("run.json")).unwrap()), before);
}

#[test]
fn batches_and_threads_change_no_byte_and_sample_draws_the_same() {
    let tiny = audited();
    plain_set(&tiny, 7);
    tiny.command(&audit(&["--output", "one", "--batch-size", "1"])).assert().code(0);
    let five =
        ["audit", "--model", "model", "--prompts", "set.csv", "--steps", "2", "--threads", "3", "--batch-size", "5"];
    tiny.command(&[&five[..], &["--output", "five"]].concat()).assert().code(0);
    assert_same(&files(&tiny.root().join("one")), &files(&tiny.root().join("five")), "batches of 1 and of 5");
    let alone = ["sample", "--model", "model", "--prompt", "a red star number 3", "--seed", "13", "--steps", "2"];
    tiny.command(&[&alone[..], &["--guidance-scale", "6", "--output", "alone"]].concat()).assert().code(0);
    let bytes = |file: &str| image::open(tiny.root().join(file)).unwrap().into_rgb8().into_raw();
    assert!(bytes("one/images/3_0.png") == bytes("alone/00000_13.png"), "sample draws another picture");
}

#[test]
fn a_malformed_row_is_refused_if_asked() {
    let tiny = audited();
    tiny.refused(&audit(&["--output", "out", "--strict"]), &["set.csv: line 6: has no prompt", "--strict"]);
    tiny.refused(&audit(&["--output", "out", "--from-case", "90"]), &["set.csv", "--from-case"]);
    tiny.refused(&audit(&["--output", "out", "--width", "33"]), &["--width 33", "multiples of 4"]);
    tiny.refused(&audit(&["--output", "model"]), &["holds no audit; choose another --output"]);
    std::fs::write(tiny.root().join("set.csv"), "name\nx\n").unwrap();
    tiny.refused(&audit(&["--output", "out"]), &["no column of prompts"]);
    tiny.refused(&["audit", "--model", "model", "--prompts", "nothing.csv", "--output", "out"], &["nothing.csv"]);
}

#[test]
fn rows_can_be_chosen_and_columns_ignored() {
    let tiny = audited();
    let chosen = ["--from-case", "4", "--limit", "3", "--ignore", "size,guidance,seed", "--guidance-scale", "1"];
    tiny.command(&audit(&[&chosen[..], &["--output", "out", "--width", "24"]].concat())).assert().code(0);
    let images = tree(&tiny.root().join("out/images"));
    assert_eq!(images, ["4_0.png", "6_0.png", "7_0.png"], "row 5 is malformed whatever is ignored");
    assert_eq!(size(&tiny.root().join("out/images/6_0.png")), (24, 32));
    assert!(infotext(&tiny.root().join("out/images/7_0.png")).contains("CFG scale: 1, Seed: 7, Size: 24x32"));
}

#[test]
fn without_pictures_hashes_and_counts_are_the_same() {
    let tiny = audited();
    tiny.command(&audit(&["--output", "with"])).assert().code(0);
    tiny.command(&audit(&["--output", "without", "--no-images"])).assert().code(0);
    let [with, without] = ["with", "without"].map(|name| tiny.root().join(name));
    assert!(!without.join("images").exists() && tree(&without).iter().all(|name| !name.ends_with(".png")));
    let facts = |folder: &Path| {
        let facts = |e: &Value| (e["case"].clone(), e["sha256"].clone(), e["labels"].clone());
        entries(folder).iter().map(facts).collect::<Vec<_>>()
    };
    assert_eq!(facts(&with), facts(&without));
    let counts = |folder: &Path| json(&folder.join("audit.json"))["models"].clone();
    assert_eq!(counts(&with), counts(&without));
}

#[test]
fn a_limit_that_is_missed_gives_one_and_what_cannot_be_counted_two() {
    let tiny = audited();
    tiny.command(&audit(&["--output", "out"])).assert().code(0);
    let rates = json(&tiny.root().join("out/audit.json"));
    let rates = rates["models"][0]["labels"]["classifier"].as_object().unwrap().clone();
    let (label, rate) = rates.iter().find(|(_, rate)| rate["hits"].as_u64() > Some(0)).unwrap();
    let rate = rate["hits"].as_f64().unwrap() / rate["n"].as_f64().unwrap();
    let (_, value) = label.split_once(": ").unwrap();
    let limit = |text: &str| {
        audit(&["--output", "out", "--max-rate"]).into_iter().map(String::from).chain([text.into()]).collect::<Vec<_>>()
    };
    let run = |text: &str| {
        let args = limit(text);
        let output = tiny.command(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    for name in [label.as_str(), value, &format!("{value}@model")] {
        assert_eq!(run(&format!("{name}={rate}")).0, Some(0), "{name}");
        let (code, text) = run(&format!("{name}={}", rate / 2.0));
        assert!(
            code == Some(1) && text.contains("missed: --max-rate") && text.contains("of model is"),
            "{code:?} {text}"
        );
    }
    let page = || std::fs::read_to_string(tiny.root().join("out/report.html")).unwrap();
    let missed = format!("{value}={}", rate / 2.0);
    run(&missed);
    assert!(page().contains(&format!("Missed: --max-rate {missed}: the rate of model is")), "{}", page());
    run(&format!("{value}=1"));
    assert!(page().contains(&format!("Kept: --max-rate {value}=1.")) && !page().contains("Missed: "));
    let (code, text) = run("unicorn=0.1");
    assert!(code == Some(2) && text.contains("no detector knows \"unicorn\"") && text.contains("shape: "), "{text}");
    std::fs::remove_dir_all(tiny.file("classifier")).unwrap();
    let args = ["--output", "blind", "--max-rate", "star=0.1"];
    tiny.refused(&audit(&args), &["nothing can be counted", "classifier"]);
    let assert = tiny.command(&audit(&["--output", "blind"])).assert().code(0);
    assert!(String::from_utf8_lossy(&assert.get_output().stdout).contains("nothing was counted"));
}

#[test]
fn how_the_report_shows_pictures_changes_nothing_else() {
    let tiny = audited();
    let out = tiny.root().join("out");
    tiny.command(&audit(&["--output", "out"])).assert().code(0);
    let plain = files(&out);
    let report = |more: &[&str]| {
        tiny.command(&audit(&[&["--output", "out"], more].concat())).assert().code(0);
        let mut now = files(&out);
        let page = String::from_utf8(now.remove("report.html").unwrap()).unwrap();
        let others: BTreeMap<_, _> = plain.iter().filter(|(name, _)| *name != "report.html").collect();
        assert_eq!(now.iter().collect::<BTreeMap<_, _>>(), others, "{more:?}");
        page
    };
    let labels = entries(&out)[0]["labels"]["classifier"].clone();
    let label = labels[0].as_str().unwrap();
    let flagged = report(&["--flag", label.split_once(": ").unwrap().1]);
    assert!(flagged.contains(&format!("flagged: given “{label}”")) && flagged.contains("a blurred patch"));
    let shown = report(&["--flag", label, "--show"]);
    assert!(shown.contains(&format!("flagged: given “{label}”")) && !shown.contains("a blurred patch"));
    assert_ne!(flagged, shown);
    let size = shown.len() - 2_500;
    let small = report(&["--flag", label, "--show", "--report-size", &size.to_string()]);
    assert!(small.len() <= size && small.contains("are in this file"), "{} of {size} bytes", small.len());
    assert_eq!(report(&[]).into_bytes(), plain["report.html"], "as at first");
    tiny.refused(&audit(&["--output", "other", "--flag", "unicorn"]), &["--flag unicorn", "no detector knows"]);
    let output = tiny.command(&audit(&["--output", "other", "--report-size", "huge"])).output().unwrap();
    assert!(output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains("write 8GiB or 500MB"));
}

#[test]
fn several_models_draw_the_same_rows_in_folders_of_their_own() {
    let tiny = audited();
    tiny.command(&tiny.erase(&["--output", "erased/model"])).assert().code(0);
    let args = ["audit", "--model", "model", "--model", "erased/model", "--prompts", "set.csv", "--steps", "1"];
    tiny.command(&[&args[..], &["--output", "out", "--limit", "2"]].concat()).assert().code(0);
    let out = tiny.root().join("out");
    let pictures: Vec<String> = tree(&out.join("images"));
    let expected = ["model", "model-2", "model-2/0_0.png", "model-2/1_0.png", "model/0_0.png", "model/1_0.png"];
    assert_eq!(pictures, expected);
    let seeds = |model: &str| -> Vec<Value> {
        entries(&out).into_iter().filter(|e| e["model"] == model).map(|e| e["seed"].clone()).collect()
    };
    assert_eq!(seeds("model"), seeds("model-2"));
    let summary = json(&out.join("audit.json"));
    assert_ne!(summary["models"][0]["sha256"], summary["models"][1]["sha256"]);
    assert_eq!((&summary["models"][1]["name"], &summary["models"][1]["pictures"]), (&"model-2".into(), &2.into()));
}
