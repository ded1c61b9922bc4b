//! Writing a model takes little more memory than its largest tensor. Alone in its file: it counts what this process allocates.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::raw;
use common::tiny::{Tiny, UNET};
use erase_concept::checkpoint::single_file::write_single_file;
use erase_concept::checkpoint::{
    ModelFiles, SingleFile, load_tensors, save_edited, write_edited_single_file, write_safetensors,
};
use erase_concept::counting::{Counting, live, peak_of};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

/// Bytes of the largest tensor: large beside buffers and headers.
const LARGEST: usize = 48 << 20;

#[test]
fn writing_takes_less_than_a_third_more_than_the_largest_tensor() {
    let tiny = Tiny::new();
    // a single file with large tensors that are no part of the model
    let original = tiny.root().join("v2.safetensors");
    write_single_file(&ModelFiles::Folder(tiny.file("")), &original, &BTreeMap::new()).unwrap();
    let (mut all, metadata) = raw(&original);
    for i in 0..4 {
        all.insert(format!("large.{i}"), (Dtype::F32, vec![LARGEST / 4], vec![i; LARGEST]));
    }
    let large = tiny.root().join("large.safetensors");
    write_safetensors(&large, &all, &metadata).unwrap();
    drop(all);
    let single = ModelFiles::Single(Arc::new(SingleFile::open(&large).unwrap()));
    let component = load_tensors(&single, UNET).unwrap();
    let name = component.tensors.keys().find(|name| name.ends_with("attn2.to_k.weight")).unwrap().clone();
    let changed = BTreeMap::from([(name.clone(), component.tensors[&name].affine(2.0, 0.0).unwrap())]);
    drop(component);
    let before = live();
    let out = tiny.root().join("out.safetensors");
    let peak = peak_of(|| drop(write_edited_single_file(&single, &changed, &out, &BTreeMap::new()).unwrap())) - before;
    println!("a single file with tensors of {LARGEST} bytes: {peak} more bytes at the peak");
    assert!(peak < LARGEST * 3 / 10, "written as they lie in the map: {peak}");

    // a folder whose large tensors change, and have to be rounded
    let folder = tiny.file(UNET);
    let (mut all, _) = raw(&folder);
    for i in 0..3 {
        all.insert(format!("large.{i}"), (Dtype::F16, vec![LARGEST / 2], vec![0; LARGEST]));
    }
    write_safetensors(&folder, &all, &BTreeMap::new()).unwrap();
    drop(all);
    let value = |i: u8| Tensor::full(f32::from(i), LARGEST / 2, &Device::Cpu).unwrap().contiguous().unwrap();
    let changed: BTreeMap<String, Tensor> = (0..3).map(|i| (format!("large.{i}"), value(i + 1))).collect();
    let into = tiny.root().join("into");
    std::fs::create_dir(&into).unwrap();
    let before = live();
    let files = ModelFiles::Folder(tiny.file(""));
    let peak = peak_of(|| drop(save_edited(&files, &changed, &into, &BTreeMap::new()).unwrap())) - before;
    let share = peak as f64 / LARGEST as f64;
    println!("a folder with three such tensors changed: {peak} more bytes at the peak, {share:.2} of the largest");
    assert!(share <= 1.3, "{share}");
}
