//! PyTorch checkpoints (`.ckpt`): read on request, without running anything.
#![allow(clippy::unwrap_used)]

mod common;

use common::ckpt::{Pickle, archive, write};
use common::fixture;
use common::tiny::Tiny;
use erase_concept::checkpoint::single_file::{Architecture, write_single_file};
use erase_concept::checkpoint::{ModelFiles, SingleFile, save_edited, sha256_file};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn open(path: &Path) -> erase_concept::Result<SingleFile> {
    SingleFile::open_with(path, true)
}

#[test]
fn a_model_is_read_from_a_pickle_on_request() {
    let tiny = Tiny::new();
    let (single, ckpt) = (tiny.root().join("model.safetensors"), tiny.root().join("model.ckpt"));
    common::original::smallest(&tiny.root().join("small"), Architecture::Sd1);
    write_single_file(&ModelFiles::Folder(tiny.root().join("small")), &single, &BTreeMap::new()).unwrap();
    let bytes = std::fs::read(&single).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let all: BTreeMap<_, _> =
        parsed.iter().map(|(n, v)| (n.to_string(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
    write(&ckpt, &all);
    let sample = ["sample", "--model", "model.ckpt", "--prompt", "a cat", "--steps", "1", "--output", "a"];
    tiny.refused(&sample, &["model.ckpt: a PyTorch pickle", "--allow-pickle"]);
    tiny.command(&[&sample[..], &["--allow-pickle"]].concat()).assert().code(0);
    let picture = std::fs::read(tiny.root().join("a/00000_0.png")).unwrap();
    let hash = sha256_file(&ckpt).unwrap();
    assert!(String::from_utf8_lossy(&picture).contains(&format!("Model hash: {}, Model: model", &hash[..10])));
    // as a folder it has the tensors that the other file has
    let folders = [("b", open(&ckpt).unwrap()), ("c", SingleFile::open(&single).unwrap())];
    for (out, file) in folders {
        std::fs::create_dir(tiny.root().join(out)).unwrap();
        let files = ModelFiles::Single(Arc::new(file));
        save_edited(&files, &BTreeMap::new(), &tiny.root().join(out), &BTreeMap::new()).unwrap();
    }
    for rel in [common::tiny::UNET, common::tiny::VAE, common::tiny::TEXT] {
        let read = |out: &str| std::fs::read(tiny.root().join(out).join(rel)).unwrap();
        assert!(read("b") == read("c"), "{rel}");
    }
}

#[test]
fn what_is_wrong_with_a_pickle_is_said() {
    let tiny = Tiny::new();
    let path = tiny.root().join("bad.ckpt");
    let pickle = |class: &str, key: &str, offset: i64, shape: &[i64], strides: &[i64]| {
        let mut pickle = Pickle::default();
        pickle.raw(b"\x80\x02}(").tensor("w", class, key, offset, shape, strides).raw(b"u.");
        pickle.0
    };
    let good = pickle("FloatStorage", "0", 0, &[2, 2], &[2, 1]);
    let float = |offset: i64, shape: &[i64], strides: &[i64]| pickle("FloatStorage", "0", offset, shape, strides);
    let cases: [(Vec<u8>, &str); 15] = [
        (good.clone(), "of a kind that is not known (its tensors: w)"),
        (float(1, &[2, 2], &[2, 1]), "w: lies outside its storage; the file is damaged"),
        (float(0, &[3, 2], &[2, 1]), "w: lies outside its storage"),
        (float(i64::MAX, &[1], &[1]), "w: lies outside its storage"),
        (float(0, &[i64::MAX, i64::MAX], &[i64::MAX, 1]), "w: lies outside its storage"),
        (float(0, &[i64::MAX / 2], &[1]), "w: lies outside its storage"),
        (float(0, &[2, 2], &[1, 2]), "w: its elements are not in order; save the model again with contiguous tensors"),
        (float(0, &[4], &[0]), "w: its elements are not in order"),
        (float(0, &[4], &[]), "w: lies outside its storage"),
        (float(-1, &[4], &[1]), "w: a tensor that is not told in the known way"),
        (float(0, &[-4], &[1]), "w: a tensor that is not told in the known way"),
        (pickle("FloatStorage", "../0", 0, &[4], &[1]), "w: its storage ../0 is missing or compressed"),
        (pickle("FloatStorage", "1", 0, &[4], &[1]), "w: its storage 1 is missing or compressed"),
        (
            b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec(),
            "asks for posix.system, which no tensor needs; it may be an attack. Nothing was run",
        ),
        (b"\x80\x02K\x01.".to_vec(), "a PyTorch file without a dictionary of tensors"),
    ];
    for (pickle, expected) in cases {
        archive(&path, &[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]);
        let args = ["sample", "--model", "bad.ckpt", "--allow-pickle", "--prompt", "x", "--output", "out"];
        tiny.refused(&args, &["bad.ckpt: ", expected]);
    }
    for (members, expected) in [
        (&[("a/data.pkl", &good[..]), ("b/data.pkl", &good)][..], "a zip archive with 2 data.pkl"),
        (&[("a/other", &good)], "a zip archive with 0 data.pkl"),
        (&[("a/data.pkl", b"")], "data.pkl ends in the middle"),
    ] {
        archive(&path, members);
        let message = open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    archive(&path, &[("a/data.pkl", &good), ("a/data/0", &[0; 16])]);
    let whole = std::fs::read(&path).unwrap();
    for length in [10, 100, whole.len() / 2, whole.len() - 30] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = open(&path).unwrap_err().to_string();
        assert!(message.contains("a damaged PyTorch checkpoint"), "{message}");
    }
    // the flag is for pickles, and changes nothing for other files
    let message = open(&fixture("tiny-sd21/unet/diffusion_pytorch_model.safetensors")).unwrap_err().to_string();
    assert!(message.contains("a UNet in diffusers' layout alone"), "{message}");
}
