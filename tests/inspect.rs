//! `inspect`: what a model or a file is, its hashes as Python computes them, and what differs from a base.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{TEXT, Tiny, UNET, VAE};
use erase_concept::checkpoint::single_file::write_single_file;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn inspect(tiny: &Tiny, args: &[&str]) -> Value {
    let args = [&["inspect", "--json"], args].concat();
    let output = tiny.command(&args).assert().code(0).stderr("").get_output().stdout.clone();
    let found: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(found["schema"], "erase-concept.inspect/1");
    found
}

/// Runs a Python script; `None` where there is no Python.
fn python(script: &str, args: &[&str]) -> Option<String> {
    let output = Command::new("python3").args(["-c", script]).args(args).output();
    let Ok(output) = output else {
        eprintln!("python3 is not here: not checked");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_changed_is_drawn_block_by_block() {
    let tiny = Tiny::new();
    tiny.command(&tiny.erase(&["--output", "out", "--quiet", "--format", "diffusers", "--format", "single-file"]))
        .assert()
        .code(0);
    let draw = |what: &str, base: &str, picture: &str| {
        tiny.command(&["inspect", what, "--base", base, "--picture", picture]).assert().code(0);
        std::fs::read_to_string(tiny.root().join(picture)).unwrap()
    };
    let folder = draw("out", "model", "a.svg");
    assert!(folder.starts_with("<svg xmlns=") && folder.contains("What changed in the UNet of out"), "{folder}");
    for block in ["down 0: ", "mid: ", "up 0: "] {
        assert!(folder.contains(block), "{folder}");
    }
    assert!(folder.contains("class=\"fill\"") && !folder.contains("down 0: 0 of"));
    let figure = |svg: &str| svg.split_once(". input").unwrap().1.to_string();
    // a single file, and the UNet alone, say the same
    let file = draw("out/erased.safetensors", "model", "b.svg");
    assert_eq!(figure(&file), figure(&folder));
    let unet = draw(&format!("out/{UNET}"), &format!("model/{UNET}"), "c.svg");
    assert_eq!(figure(&unet), figure(&folder));
    let vae = format!("model/{VAE}");
    tiny.refused(&["inspect", &vae, "--base", &vae, "--picture", "d.svg"], &["--picture", "no UNet"]);
    tiny.refused(&["inspect", "out", "--picture", "d.svg"], &["--base"]);
}

#[test]
fn hashes_are_those_that_python_computes() {
    let script = "
import hashlib, json, sys, zlib
data = open(sys.argv[1], 'rb').read()
file = hashlib.sha256(data).hexdigest().upper()
header = int.from_bytes(data[:8], 'little')
print(json.dumps({
    'AutoV1': hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8].upper(),
    'AutoV2': file[:10],
    'AutoV3': hashlib.sha256(data[8 + header:]).hexdigest()[:12].upper(),
    'SHA256': file,
    'CRC32': '%08X' % zlib.crc32(data),
}))";
    let tiny = Tiny::new();
    // the demo's UNet has more than 1 MiB + 64 KiB, the tiny model's text encoder less
    let demo = common::repository("weights/demo").join(UNET);
    for path in [demo, tiny.file(TEXT)] {
        let path = path.to_str().unwrap();
        let Some(expected) = python(script, &[path]) else { return };
        let mut found = inspect(&tiny, &[path])["files"][0]["hashes"].clone();
        let blake3 = found.as_object_mut().unwrap().remove("BLAKE3").unwrap();
        assert_eq!(blake3.as_str().unwrap().len(), 64);
        assert_eq!(found, serde_json::from_str::<Value>(&expected).unwrap(), "{path}");
        // the same of a program's own files
        if path.contains("demo") {
            let built_in = inspect(&tiny, &["demo"]);
            let file = built_in["files"].as_array().unwrap().iter().find(|file| file["path"] == UNET).unwrap();
            assert_eq!(file["hashes"]["SHA256"], found["SHA256"]);
        }
    }
}

#[test]
fn a_folder_is_described_by_its_components() {
    let tiny = Tiny::new();
    tiny.put("notes.ckpt", "not the model's");
    let found = inspect(&tiny, &["model"]);
    assert_eq!(found["components"]["unet"], "UNet2DConditionModel");
    let what = found["what"].as_str().unwrap();
    assert!(what.starts_with("folder in diffusers' layout, StableDiffusionPipeline: "), "{what}");
    let paths: Vec<&str> =
        found["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths, [TEXT, UNET, VAE]);
    let sum: u64 = found["files"].as_array().unwrap().iter().map(|f| f["count"]["parameters"].as_u64().unwrap()).sum();
    assert_eq!(found["count"]["parameters"], sum);
    let unet = common::tensors(tiny.file(UNET));
    let elements: usize = unet.values().map(|t| t.elem_count()).sum();
    assert_eq!(
        (&found["files"][1]["count"]["tensors"], &found["files"][1]["count"]["parameters"]),
        (&unet.len().into(), &elements.into())
    );
    assert_eq!(found["left_out"], json!(["notes.ckpt"]));
    let files = erase_concept::checkpoint::ModelFiles::Folder(tiny.file(""));
    assert_eq!(found["model_sha256"], erase_concept::checkpoint::base_sha256(&files).unwrap());
    let text =
        contains("AutoV3").and(contains("text encoder (CLIP")).and(contains("not part of the model: notes.ckpt"));
    tiny.command(&["inspect", "model"]).assert().code(0).stdout(text);
}

#[test]
fn what_differs_from_a_base_is_said_by_tensor_and_block() {
    let tiny = Tiny::new();
    let copy = |to: &str| {
        let status = Command::new("cp").args(["-r", "model", to]).current_dir(tiny.root()).status().unwrap();
        assert!(status.success());
    };
    copy("base");
    let same = inspect(&tiny, &["model", "--base", "base"]);
    let tensors = same["count"]["tensors"].clone();
    assert_eq!((&same["difference"]["same"], &same["difference"]["changed"]), (&tensors, &json!([])));

    let old = common::tensors(tiny.file(UNET));
    let name = tiny.poke(UNET, 100.0);
    let found = inspect(&tiny, &["model", "--base", "base"]);
    let difference = &found["difference"];
    assert_eq!(difference["same"].as_u64().unwrap() + 1, tensors.as_u64().unwrap());
    assert_eq!(difference["changed"].as_array().unwrap().len(), 1);
    let change = &difference["changed"][0];
    assert_eq!((&change["name"], &change["changed"]), (&format!("unet/{name}").into(), &1.into()));
    let values = old[&name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let distance = (100.0 - f64::from(values[0])).abs();
    assert!((change["largest"].as_f64().unwrap() - distance).abs() < 1e-6 * distance, "{change}");
    assert!((change["relative"].as_f64().unwrap() - distance / norm).abs() < 1e-6 * distance / norm, "{change}");
    assert_eq!((&difference["blocks"][0]["changed"], difference["blocks"].as_array().unwrap().len()), (&1.into(), 1));
    assert_eq!(difference["blocks"][0]["block"], change["block"]);

    // a component alone against a folder, and the other way round
    let unet = tiny.file(UNET);
    let alone = inspect(&tiny, &[unet.to_str().unwrap(), "--base", "base"]);
    assert_eq!(
        (&alone["difference"]["changed"][0]["name"], &alone["difference"]["missing"]),
        (&name.clone().into(), &json!([]))
    );
    let turned = inspect(&tiny, &["base", "--base", unet.to_str().unwrap()]);
    assert_eq!(turned["difference"]["changed"][0]["name"], name);

    // files that have nothing in common
    let vae = tiny.file(VAE);
    tiny.command(&["inspect", unet.to_str().unwrap(), "--base", vae.to_str().unwrap()])
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("has no tensor of the same name").and(contains("same layout")));
}

#[test]
fn a_result_of_this_program_says_how_it_was_made_and_what_changed() {
    let tiny = Tiny::new();
    tiny.command(&tiny.erase(&["--output", "out", "-q"])).assert().code(0);
    let found = inspect(&tiny, &["out", "--base", "model"]);
    let erased = &found["erased"];
    assert_eq!((&erased["metadata"]["erase.concept"], &erased["report"]["seed"]), (&"star".into(), &0.into()));
    assert!(erased["run"]["total_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(erased["report"]["base_sha256"], inspect(&tiny, &["model"])["model_sha256"]);
    let changed = found["difference"]["changed"].as_array().unwrap();
    assert!(changed.len() > 4, "{changed:?}");
    for change in changed {
        let name = change["name"].as_str().unwrap();
        assert!(name.starts_with("unet/") && name.contains("attn2"), "{name}");
    }
    // the file alone finds the records too
    let unet = tiny.root().join("out").join(UNET);
    assert_eq!(inspect(&tiny, &[unet.to_str().unwrap()])["erased"]["report"]["concept"], "star");
    let text = contains("made by erase-concept").and(contains("erase.preset")).and(contains("by block"));
    tiny.command(&["inspect", "out", "--base", "model"]).assert().code(0).stdout(text);
    assert!(inspect(&tiny, &["model"]).get("erased").is_none());
}

#[test]
fn wrong_files_get_the_messages_that_loading_has() {
    let tiny = Tiny::new();
    let whole = tiny.read(TEXT);
    let overlap = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
    let overlap = [&(overlap.len() as u64).to_le_bytes()[..], overlap, &[0; 6]].concat();
    let cases: [(&str, &[u8], &str); 6] = [
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git-LFS pointer"),
        ("html", b"<!DOCTYPE html><html>", "an HTML page instead of the file"),
        ("empty", b"", "the file is empty"),
        ("short", &whole[..whole.len() - 10], "truncated: the tensors should have"),
        ("overlap", &overlap, "a broken safetensors header"),
        ("text", b"hello, world, this is text", "not a safetensors file"),
    ];
    for (name, bytes, expected) in cases {
        let name = format!("{name}.safetensors");
        std::fs::write(tiny.root().join(&name), bytes).unwrap();
        tiny.refused(&["inspect", &name], &[&name, expected]);
        let text = tiny.file(TEXT);
        tiny.refused(&["inspect", text.to_str().unwrap(), "--base", &name], &[&name, expected]);
        tiny.put(TEXT, bytes);
        tiny.refused(&["inspect", "model"], &[TEXT, expected]);
        tiny.put(TEXT, &whole);
    }
    std::fs::create_dir(tiny.root().join("folder")).unwrap();
    tiny.refused(&["inspect", "folder"], &["folder: a folder without a model_index.json"]);
    tiny.refused(&["inspect", "nowhere"], &["nowhere: no such file or folder"]);
    // a pickle is not opened, but has hashes
    std::fs::write(tiny.root().join("old.ckpt"), b"PK\x03\x04rest").unwrap();
    let found = inspect(&tiny, &["old.ckpt"]);
    assert!(found["what"].as_str().unwrap().contains("not opened") && found["files"][0]["hashes"]["AutoV3"].is_null());
    let errors = tiny.command(&["inspect", "--json", "nowhere"]).assert().code(2).get_output().stdout.clone();
    assert_eq!(serde_json::from_slice::<Value>(&errors).unwrap()["event"], "error");
}

/// A sparse file of eight tensors, `bytes` in all, whose last byte is `last`.
fn large(path: &Path, bytes: u64, last: u8) {
    use std::io::{Seek, SeekFrom, Write};
    let each = bytes / 8;
    let tensor = |i: u64| {
        let (shape, from) = (each / 4, i * each);
        format!("\"t.{i}\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[{from},{}]}}", from + each)
    };
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.seek(SeekFrom::Current(bytes as i64 - 1)).unwrap();
    file.write_all(&[last]).unwrap();
}

#[test]
fn large_files_are_read_piece_by_piece() {
    const BYTES: u64 = 512 << 20;
    let tiny = Tiny::new();
    large(&tiny.root().join("a.safetensors"), BYTES, 0);
    large(&tiny.root().join("b.safetensors"), BYTES, 0x3f);
    let script = "
import os, resource, subprocess, sys
out = subprocess.run(sys.argv[2:], cwd=sys.argv[1], stdout=subprocess.PIPE, check=True).stdout
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(out.decode())";
    let program = assert_cmd::cargo::cargo_bin("erase-concept");
    let args = [
        tiny.root().to_str().unwrap(),
        program.to_str().unwrap(),
        "inspect",
        "--json",
        "a.safetensors",
        "--base",
        "b.safetensors",
    ];
    let Some(output) = python(script, &args) else { return };
    let (peak, found) = output.split_once('\n').unwrap();
    let found: Value = serde_json::from_str(found).unwrap();
    assert_eq!((&found["count"]["parameters"], &found["difference"]["same"]), (&(BYTES / 4).into(), &7.into()));
    assert_eq!(found["difference"]["changed"][0]["changed"], 1);
    let peak = peak.parse::<u64>().unwrap() << 10;
    println!("{} MiB for two files of {} MiB", peak >> 20, BYTES >> 20);
    assert!(peak < BYTES * 3 / 4, "{} MiB", peak >> 20);
}

/// The names differ, the tensors do not.
#[test]
fn a_folder_is_compared_with_the_single_file_that_it_came_from() {
    let tiny = Tiny::new();
    let file = tiny.root().join("model.safetensors");
    let files = erase_concept::checkpoint::ModelFiles::Folder(tiny.root().join("model"));
    write_single_file(&files, &file, &Default::default()).unwrap();
    let difference = |what: &str, base: &str| inspect(&tiny, &[what, "--base", base])["difference"].clone();
    let same = difference("model", "model.safetensors");
    let expected = inspect(&tiny, &["model"])["count"]["tensors"].as_u64().unwrap();
    assert_eq!((&same["same"], &same["changed"]), (&json!(expected), &json!([])), "{same}");
    let name = tiny.poke(UNET, 0.25);
    for (what, base) in [("model", "model.safetensors"), ("model.safetensors", "model")] {
        let found = difference(what, base);
        assert_eq!(found["changed"][0]["name"], format!("unet/{name}"), "{what}: {found}");
        assert_eq!((&found["changed"][0]["changed"], &found["same"]), (&json!(1), &json!(expected - 1)));
        assert_eq!((&found["missing"], &found["added"]), (&json!([]), &json!([])));
    }
    // two single files by their own names
    let alike = difference("model.safetensors", "model.safetensors");
    assert!(alike["same"].as_u64().unwrap() > 0 && alike["changed"] == json!([]));
}
