//! What the golden tests share.
#![allow(dead_code)]

pub mod ckpt;
pub mod original;
pub mod pictures;
pub mod tiny;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A path below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A path below the repository's root.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The arrays of `tests/fixtures/goldens/NAME.safetensors`.
pub fn goldens(name: &str) -> HashMap<String, Tensor> {
    let path = fixture(&format!("goldens/{name}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).expect("golden arrays")
}

/// The facts of `tests/fixtures/goldens/NAME.json`.
pub fn facts(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(fixture(&format!("goldens/{name}.json"))).expect("golden facts");
    serde_json::from_str(&text).expect("golden facts are JSON")
}

/// Tensors by name: type, shape, and bytes as they lie in a file.
pub type Raw = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors and the metadata of a safetensors file.
pub fn raw(path: &Path) -> (Raw, BTreeMap<String, String>) {
    let bytes = std::fs::read(path).expect("a file");
    let parsed = SafeTensors::deserialize(&bytes).expect("safetensors");
    let row = |(name, view): (&str, TensorView<'_>)| {
        (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    (parsed.iter().map(row).collect(), header.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// The tensors of a safetensors file in f32, by name.
pub fn tensors(path: PathBuf) -> BTreeMap<String, Tensor> {
    let loaded = candle_core::safetensors::load(path, &Device::Cpu).expect("weights");
    loaded.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).expect("f32"))).collect()
}

/// Runs the other tests of this file again, in a process each, with every lesser set of vector instructions.
pub fn with_lesser_instructions(this: &str) {
    use erase_concept::nn::Instructions;
    assert!(Instructions::used() <= Instructions::best());
    for set in Instructions::ALL.into_iter().filter(|set| *set < Instructions::used()) {
        let mut tests = std::process::Command::new(std::env::current_exe().expect("this program"));
        let output = tests.args(["--skip", this]).env(Instructions::LIMIT, set.name()).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains(" 0 passed"), "with {set:?}:\n{text}");
    }
}

/// Largest and mean absolute difference.
pub fn difference(a: &Tensor, b: &Tensor) -> (f32, f32) {
    assert_eq!(a.dims(), b.dims());
    let d = (a - b).and_then(|d| d.abs()).and_then(|d| d.flatten_all()).expect("same shape");
    assert!(d.sum_all().and_then(|s| s.to_scalar::<f32>()).expect("sum").is_finite(), "not finite");
    let get = |t: candle_core::Result<Tensor>| t.and_then(|t| t.to_scalar::<f32>()).expect("scalar");
    (get(d.max(0)), get(d.mean_all()))
}

/// Asserts that the largest absolute difference is at most `tolerance`.
pub fn assert_close(what: &str, ours: &Tensor, golden: &Tensor, tolerance: f32) {
    let (max, mean) = difference(ours, golden);
    println!("{what}: max {max:.2e} mean {mean:.2e}");
    assert!(max <= tolerance, "{what}: max difference {max:e} > {tolerance:e}");
}
