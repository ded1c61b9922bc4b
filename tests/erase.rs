//! The whole erase job, small: what it writes, that it is the same twice, what `--cache` keeps.

#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use erase_concept::nn::Instructions;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A job of a few seconds: the figures mean nothing, the files do.
const SMALL: [&str; 20] = [
    "--forget-latents",
    "4",
    "--retain-latents",
    "4",
    "--data-steps",
    "2",
    "--score-batches",
    "1",
    "--repair-steps",
    "3",
    "--batch-size",
    "2",
    "--verify-images",
    "4",
    "--synonym-images",
    "2",
    "--retain-images",
    "4",
    "--verify-steps",
    "2",
];

fn erase(output: &Path, more: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("erase-concept").unwrap();
    command.args(["--model", "demo", "--concept", "star", "--quiet", "--output"]).arg(output);
    command.args(SMALL).args(more).assert()
}

/// Every file below a folder, by relative path.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn without_run(mut files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    assert!(files.remove("run.json").is_some());
    files
}

#[test]
fn with_halved_weights_only_what_is_trained_differs_and_the_report_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = ["a", "b"].map(|name| folder.path().join(name));
    for (out, threads) in outputs.iter().zip(["1", "3"]) {
        erase(out, &["--dtype", "bf16", "--threads", threads]).success();
    }
    let [found, again] = outputs.map(|out| files(&out));
    assert!(without_run(found.clone()) == without_run(again), "the same bytes with any number of threads");
    let demo = files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo")));
    let unet = |files: &BTreeMap<String, Vec<u8>>| {
        let file = safetensors::SafeTensors::deserialize(&files["unet/diffusion_pytorch_model.safetensors"]).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, t)| (name, (t.dtype(), t.data().to_vec())));
        tensors.collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (unet(&demo), unet(&found));
    for (name, tensor) in &before {
        let trained = name.contains("attn2") && name.ends_with(".weight");
        assert_eq!(tensor != &after[name], trained, "{name}");
    }
    for file in ["report.json", "run.json"] {
        let value: Value = serde_json::from_slice(&found[file]).unwrap();
        assert_eq!(value["dtype"], "bf16", "{file}");
        assert_eq!((&value["device"], &value["tf32"]), (&"cpu".into(), &false.into()), "{file}");
    }
    let run: Value = serde_json::from_slice(&found["run.json"]).unwrap();
    let brief = Instructions::used() == Instructions::Amx;
    assert_eq!(run["products"], if brief { "bf16" } else { "f32" });
    let report: Value = serde_json::from_slice(&found["report.json"]).unwrap();
    assert!(report["command"].as_str().unwrap().contains(" --dtype bf16 "));
}

/// The demo is published in f16: kept so, the result is byte for byte that of f32.
#[test]
fn weights_that_are_f16_are_kept_exactly_in_f16() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, half] = ["f32", "f16"].map(|dtype| {
        let out = folder.path().join(dtype);
        erase(&out, &["--dtype", dtype]).success();
        files(&out)
    });
    let weights = |files: &BTreeMap<String, Vec<u8>>| {
        files.clone().into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect::<BTreeMap<_, _>>()
    };
    assert!(weights(&whole).len() > 2 && weights(&whole) == weights(&half));
    let report: Value = serde_json::from_slice(&half["report.json"]).unwrap();
    assert_eq!(report["dtype"], "f16");
    assert!(report["command"].as_str().unwrap().contains(" --dtype f16 "));
}

#[test]
fn writes_a_model_that_differs_in_the_unet_alone_and_its_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    erase(&out, &["--keep-images"]).success();
    let found = files(&out);
    let demo = files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo")));
    for (name, bytes) in &demo {
        let same = &found[name] == bytes;
        assert_eq!(same, name != "unet/diffusion_pytorch_model.safetensors", "{name}");
    }
    assert!(found.contains_key("report.html") && found["grid.png"].starts_with(b"\x89PNG"));
    assert_eq!(found.keys().filter(|name| name.starts_with("images/after/")).count(), 10);
    assert_eq!(found.keys().filter(|name| name.starts_with("images/training/")).count(), 8);
    let report: Value = serde_json::from_slice(&found["report.json"]).unwrap();
    for path in [
        "/schema",
        "/concept",
        "/method",
        "/preset",
        "/seed",
        "/base_sha256",
        "/rate/before/hits",
        "/rate/after/n",
        "/rate/after/low",
        "/rate/after/high",
        "/synonyms/before/hits",
        "/synonyms/after/high",
        "/retain/shape/before",
        "/retain/shape/after",
        "/retain/shape/n",
        "/settings/kept",
        "/other_words/0/distance",
        "/trim/threshold",
        "/losses/2/retain",
        "/drift/prompts/0/difference",
        "/drift/retain/ssim",
    ] {
        assert!(report.pointer(path).is_some(), "{path} is not in {report}");
    }
    let blocks = report["blocks"].as_array().unwrap();
    let trimmed: u64 = blocks.iter().map(|block| block["trimmed"].as_u64().unwrap()).sum();
    assert_eq!(report["trim"]["total"], trimmed, "every trimmed weight lies in a block");
    assert_eq!((&report["drift"]["retain"]["n"], &report["drift"]["concept"]["n"]), (&4.into(), &4.into()));
    assert!(report["command"].as_str().unwrap().starts_with("erase-concept --model demo --concept star --seed 0 "));
    let page = String::from_utf8(found["report.html"].clone()).unwrap();
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">") && page.ends_with("</html>"));
    for hash in [&report["base_sha256"], &report["detector"]["sha256"], &report["command"]] {
        let shown = hash.as_str().unwrap().split(" --").last().unwrap();
        assert!(page.contains(shown), "{shown} is not in report.html");
    }
    assert_eq!((&report["concept"], &report["rate"]["before"]["n"]), (&"star".into(), &4.into()));
    let run: Value = serde_json::from_slice(&found["run.json"]).unwrap();
    assert!(run["total_seconds"].as_f64().unwrap() > 0.0);
    // of the UNet, only cross-attention changed
    let before = safetensors::SafeTensors::deserialize(&demo["unet/diffusion_pytorch_model.safetensors"]).unwrap();
    let after = safetensors::SafeTensors::deserialize(&found["unet/diffusion_pytorch_model.safetensors"]).unwrap();
    let mut changed = 0;
    for (name, tensor) in before.tensors() {
        let now = after.tensor(&name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (now.dtype(), now.shape()), "{name}");
        if tensor.data() != now.data() {
            assert!(name.contains("attn2"), "{name}");
            changed += 1;
        }
    }
    assert!(changed > 20, "{changed}");
    // nothing else is left in the parent
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_any_threads_and_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, path) = (folder.path().join("cache"), |name: &str| folder.path().join(name));
    let cache = cache.to_str().unwrap();
    let run = |name: &str, more: &[&str]| {
        erase(&path(name), &[&["--keep-images"], more].concat()).success();
        without_run(files(&path(name)))
    };
    let a = run("a", &["--threads", "1"]);
    let b = run("b", &["--threads", "2", "--cache", cache]);
    let c = run("c", &["--threads", "8"]);
    let d = run("d", &["--threads", "3", "--cache", cache]);
    assert!(a.keys().any(|name| name.starts_with("images/after/")) && a.contains_key("report.html"));
    for other in [&b, &c, &d] {
        for (name, bytes) in &a {
            assert!(other[name] == *bytes, "{name} differs");
        }
        assert_eq!(a.len(), other.len());
    }
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let other = run("other", &["--seed", "1"]);
    assert_ne!(a[unet], other[unet], "another seed is another result");
    let before = |name: &&String| name.starts_with("images/before/");
    assert!(a.keys().filter(before).eq(other.keys().filter(before)), "pictures are drawn from the same seeds");
    assert_eq!(std::fs::read_dir(cache).unwrap().count(), 3, "found again, not made again");
}

#[test]
fn a_limit_that_is_missed_is_exit_code_1_and_the_result_is_still_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // after three steps of so little data, pictures of two denoising steps are all taken for something
    let limited = erase(&out, &["--max-rate", "1", "--max-synonym-rate", "1"]);
    limited.code(0);
    std::fs::write(
        folder.path().join("all.toml"),
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/prompts/star.toml")).unwrap().replace(
            "labels = [\"shape: star\"]\n",
            "labels = [\"shape: star\", \"background: white\", \"background: black\", \"background: gray\", \"background: teal\"]\n",
        ),
    )
    .unwrap();
    let concept = folder.path().join("all.toml");
    let mut command = Command::cargo_bin("erase-concept").unwrap();
    command.args(["--concept"]).arg(concept).args(["--output"]).arg(folder.path().join("limited")).args(SMALL);
    command.args(["--max-rate", "0.5"]).assert().code(1).stdout(predicates::str::contains("missed: --max-rate 0.5"));
    assert!(folder.path().join("limited/report.json").exists());
}

#[test]
fn an_existing_result_needs_overwrite() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine.txt"), "mine").unwrap();
    erase(&out, &[]).code(2).stderr(predicates::str::contains("--overwrite"));
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["mine.txt"]);
    erase(&out, &["--overwrite"]).success();
    assert!(!files(&out).contains_key("mine.txt"));
}
