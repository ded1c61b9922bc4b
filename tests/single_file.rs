//! Single-file checkpoints: from a folder to one file and back, and what is said of files that are something else.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::tree;
use common::{fixture, repository};
use erase_concept::checkpoint::single_file::{Architecture, write_single_file};
use erase_concept::checkpoint::{ModelFiles, SingleFile, base_sha256, load_model, save_edited, sha256_file};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let row = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    parsed.iter().map(row).collect()
}

fn single(path: &Path) -> ModelFiles {
    ModelFiles::Single(Arc::new(SingleFile::open(path).unwrap()))
}

fn models() -> [(&'static str, std::path::PathBuf, Architecture); 3] {
    [
        ("demo", repository("weights/demo"), Architecture::Sd1),
        ("tiny-sd21", fixture("tiny-sd21"), Architecture::Sd2),
        ("tiny-sdxl", fixture("tiny-sdxl"), Architecture::Sdxl),
    ]
}

#[test]
fn every_tensor_survives_the_way_to_a_single_file_and_back() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, folder, architecture) in models() {
        let path = tmp.path().join(format!("{name}.safetensors"));
        write_single_file(&ModelFiles::Folder(folder.clone()), &path, &BTreeMap::new()).unwrap();
        let file = SingleFile::open(&path).unwrap();
        assert_eq!((file.architecture(), file.left_out(), file.notes()), (architecture, &[][..], &[][..]), "{name}");
        let back = tmp.path().join(name);
        std::fs::create_dir(&back).unwrap();
        save_edited(&single(&path), &BTreeMap::new(), &back, &BTreeMap::new()).unwrap();
        let mut weights = 0;
        for rel in tree(&back).iter().filter(|rel| back.join(rel).is_file()) {
            if rel.ends_with(".safetensors") {
                let (found, expected) = (tensors(&back.join(rel)), tensors(&folder.join(rel)));
                assert!(
                    found == expected,
                    "{name}/{rel}: {:?}",
                    found.keys().zip(expected.keys()).find(|(a, b)| a != b)
                );
                weights += 1;
            } else if rel.ends_with(".json") {
                let json = |path: &Path| -> serde_json::Value {
                    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
                };
                assert_eq!(json(&back.join(rel)), json(&folder.join(rel)), "{name}/{rel}");
            } else {
                assert_eq!(std::fs::read(back.join(rel)).unwrap(), std::fs::read(folder.join(rel)).unwrap());
            }
        }
        assert_eq!(weights, if architecture == Architecture::Sdxl { 4 } else { 3 }, "{name}");
    }
}
