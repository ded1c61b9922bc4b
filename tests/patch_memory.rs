//! How much memory patches take: some blocks, however large the tensors are.
#![allow(clippy::unwrap_used)]

use erase_concept::checkpoint::{ModelFiles, patch};
use erase_concept::counting::{self, Counting};
use erase_concept::progress::Silent;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

#[global_allocator]
static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

/// Bytes of the one tensor.
const TENSOR: usize = 384 << 20;
/// A group of blocks of f32 with planes, what they are packed into, and what is written.
const LIMIT: usize = 96 << 20;

/// A folder of one large tensor, of noise that depends on the seed in its low bits.
fn model(folder: &Path, seed: u32) -> ModelFiles {
    fs::create_dir_all(folder.join("unet")).unwrap();
    fs::write(folder.join("model_index.json"), r#"{"unet": ["diffusers", "UNet2DConditionModel"]}"#).unwrap();
    let header = format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[0,{TENSOR}]}}}}", TENSOR / 4);
    let file = File::create(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for i in 0..TENSOR as u32 / 4 {
        let noise = i.wrapping_mul(2_654_435_761).rotate_left(15).wrapping_mul(seed) >> 12;
        file.write_all(&(0x3c00_0000 | noise).to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    ModelFiles::Folder(folder.to_path_buf())
}

/// One test: the memory that is measured is the process's.
#[test]
fn memory_does_not_grow_with_the_tensors() {
    let tmp = tempfile::tempdir().unwrap();
    let (base, edited) = (model(&tmp.path().join("base"), 0x9e37_79b1), model(&tmp.path().join("edited"), 0x85eb_ca6b));
    let (path, into) = (tmp.path().join("patch.safetensors"), tmp.path().join("into"));
    fs::create_dir(&into).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let measured = |what: &str, work: &(dyn Fn() + Sync)| {
        let before = counting::live();
        let taken = pool.install(|| counting::peak_of(work)) - before;
        println!("{what}: {} MiB for a tensor of {} MiB", taken >> 20, TENSOR >> 20);
        assert!(taken < LIMIT, "{what}: {} MiB", taken >> 20);
    };
    measured("create", &|| {
        let summary = patch::create(&base, &edited, &path, &BTreeMap::new()).unwrap();
        assert!(summary.bytes > TENSOR as u64 / 2, "{} bytes", summary.bytes);
    });
    measured("apply", &|| drop(patch::apply(&base, &path, &into, &mut Silent).unwrap()));
    let hungry =
        std::panic::catch_unwind(|| counting::peak_of(|| drop(std::hint::black_box(vec![1u8; LIMIT]))) >= LIMIT);
    assert!(hungry.unwrap(), "memory is measured");
}
