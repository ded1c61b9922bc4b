//! The program, run on copies of a very small model: the whole job takes a fraction of a second.

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The smallest job: the figures mean nothing, the files do.
pub const QUICK: [&str; 20] = [
    "--forget-latents",
    "2",
    "--retain-latents",
    "2",
    "--data-steps",
    "1",
    "--score-batches",
    "1",
    "--repair-steps",
    "2",
    "--batch-size",
    "2",
    "--verify-images",
    "2",
    "--synonym-images",
    "1",
    "--retain-images",
    "2",
    "--verify-steps",
    "1",
];

pub const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
pub const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
pub const TEXT: &str = "text_encoder/model.safetensors";

/// A folder of its own with a copy of `tests/fixtures/tiny-sd21` in `model`.
pub struct Tiny(tempfile::TempDir);

impl Tiny {
    pub fn new() -> Self {
        Self::of("tiny-sd21")
    }

    /// A copy of another fixture.
    pub fn of(model: &str) -> Self {
        let tiny = Self(tempfile::tempdir().expect("tempdir"));
        copy(&super::fixture(model), &tiny.root().join("model"));
        tiny
    }

    /// As [`Tiny::new`], with the demo's classifier beside the model.
    pub fn with_classifier() -> Self {
        let tiny = Self::new();
        copy(&super::repository("weights/demo/classifier"), &tiny.file("classifier"));
        tiny
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// A file of the model.
    pub fn file(&self, rel: &str) -> PathBuf {
        self.root().join("model").join(rel)
    }

    pub fn read(&self, rel: &str) -> Vec<u8> {
        fs::read(self.file(rel)).expect(rel)
    }

    pub fn put(&self, rel: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.file(rel), bytes).expect(rel);
    }

    /// Replaces text in a file of the model.
    pub fn edit(&self, rel: &str, from: &str, to: &str) {
        let text = String::from_utf8(self.read(rel)).expect("text");
        assert!(text.contains(from), "{rel} has no {from:?}");
        self.put(rel, text.replacen(from, to, 1));
    }

    /// Overwrites the first value of a tensor of the model; returns the tensor's name.
    pub fn poke(&self, rel: &str, value: f32) -> String {
        let mut bytes = self.read(rel);
        let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("header");
        let offsets = metadata.offset_keys();
        let name = offsets.iter().find(|name| name.ends_with(".weight")).expect("a weight").clone();
        let info = metadata.info(&name).expect("a tensor");
        let start = 8 + header + info.data_offsets.0;
        match info.dtype {
            safetensors::Dtype::F32 => bytes[start..start + 4].copy_from_slice(&value.to_le_bytes()),
            safetensors::Dtype::F16 => {
                bytes[start..start + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
            other => panic!("{other:?}"),
        }
        self.put(rel, bytes);
        name
    }

    /// The program, in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("erase-concept").expect("the program");
        command.current_dir(self.root()).args(args);
        command
    }

    /// The arguments of the smallest erase job.
    pub fn erase<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        [&["--model", "model", "--concept", "star"], &QUICK[..], more].concat()
    }

    /// Runs the program and checks that it ends with 2, says all of `parts` and leaves everything as it was.
    pub fn refused(&self, args: &[&str], parts: &[&str]) -> Assert {
        let before = tree(self.root());
        let assert = self.command(args).timeout(std::time::Duration::from_secs(60)).assert();
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        let shown = args.join(" ");
        assert_eq!(assert.get_output().status.code(), Some(2), "{shown}: {stderr}");
        assert!(!stderr.contains("panicked"), "{shown}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{shown}\nsaid: {stderr}\nbut not: {part}");
        }
        assert_eq!(tree(self.root()), before, "{shown} left something behind");
        assert
    }

    /// [`Tiny::refused`] for the erase job and for `sample`: both read the model.
    pub fn both_refuse(&self, parts: &[&str]) {
        self.refused(&self.erase(&["--output", "out"]), parts);
        self.refused(&["sample", "--model", "model", "--prompt", "x", "--steps", "1", "--output", "out"], parts);
    }

    /// The program as a child whose stdout can be read line by line, and that can be stopped.
    pub fn spawn(&self, args: &[&str]) -> std::process::Child {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("erase-concept"));
        command.current_dir(self.root()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start")
    }
}

/// Every file and folder below a folder, by relative path.
pub fn tree(root: &Path) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            found.push(path.strip_prefix(root).expect("below").to_string_lossy().into_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The content of every file of a result, but `run.json`, which differs between equal runs.
pub fn result(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = tree(folder).into_iter().filter(|rel| folder.join(rel).is_file());
    let mut files: BTreeMap<_, _> = files.map(|rel| (rel.clone(), fs::read(folder.join(rel)).expect("file"))).collect();
    assert!(files.remove("run.json").is_some(), "{} has no run.json", folder.display());
    files
}

/// Asserts that two results are the same, byte for byte.
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in a {
        assert!(b[name] == *bytes, "{what}: {name} differs");
    }
}

/// A file with a text in it replaced by another of the same length.
pub fn replaced(good: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = good.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
    let mut bytes = good.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("folder") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copy");
        }
    }
}
