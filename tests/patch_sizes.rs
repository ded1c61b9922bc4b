//! How large patches are, and how long they take, for a UNet of Stable Diffusion 1.x's shapes, with weights that are made up and moved
//! as an erase job moves them. Ten GB of disk in TMPDIR, some minutes:
//!
//!     cargo test --release --test patch_sizes -- --ignored --nocapture
#![allow(clippy::unwrap_used)]

mod common;

use common::original;
use erase_concept::checkpoint::{ModelFiles, patch};
use erase_concept::diffusion::Generator;
use erase_concept::progress::Silent;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

/// Fraction of the weights in scope that is drawn anew, as the preset `balanced` trims.
const TRIMMED: f32 = 0.005;
/// How far the others move: a hundred steps of Adam at a learning rate of 1e-5, which is between 1e-4 (steps without a common
/// direction) and 1e-3 (all in one).
const MOVED: f32 = 3e-4;

type Encode = fn(f32, &mut Vec<u8>);

const TYPES: [(&str, Encode); 3] = [
    ("F32", |x, out| out.extend(x.to_le_bytes())),
    ("F16", |x, out| out.extend(f16::from_f32(x).to_le_bytes())),
    ("BF16", |x, out| out.extend(bf16::from_f32(x).to_le_bytes())),
];

/// Writes the base and, with the tensors whose names have `scope` in them changed, the edited UNet.
fn write(root: &Path, (dtype, encode): (&str, Encode), scope: &str) -> [ModelFiles; 2] {
    let sd1 = original::models().into_iter().next().unwrap();
    let unet: Vec<_> = sd1.pairs.iter().filter(|pair| pair.component == "unet").collect();
    let width = if dtype == "F32" { 4 } else { 2 };
    let mut at = 0;
    let entry = |pair: &&original::Pair| {
        let from = at;
        at += width * pair.shape.iter().product::<usize>();
        format!(
            "{:?}:{{\"dtype\":{dtype:?},\"shape\":{:?},\"data_offsets\":[{from},{at}]}}",
            pair.diffusers, pair.shape
        )
    };
    let header = format!("{{{}}}", unet.iter().map(entry).collect::<Vec<_>>().join(","));
    let mut files = ["base", "edited"].map(|name| {
        let folder = root.join(name);
        fs::create_dir_all(folder.join("unet")).unwrap();
        fs::write(folder.join("model_index.json"), r#"{"unet": ["diffusers", "UNet2DConditionModel"]}"#).unwrap();
        let file = File::create(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file
    });
    let mut random = Generator::new(1);
    for pair in unet {
        let n: usize = pair.shape.iter().product();
        let inputs: usize = pair.shape[1..].iter().product();
        let (middle, deviation) = match (pair.shape.len(), pair.diffusers.contains("norm")) {
            (1, true) => (1.0, 0.1),
            (1, false) => (0.0, 0.05),
            _ => (0.0, 0.7 / (inputs as f32).sqrt()),
        };
        for part in (0..n).step_by(1 << 20) {
            let n = (n - part).min(1 << 20);
            let old: Vec<f32> = random.randn(n).iter().map(|x| middle + deviation * x).collect();
            let new: Vec<f32> = match pair.diffusers.contains(scope) {
                false => old.clone(),
                true => {
                    let (moves, drawn) = (random.randn(n), random.randn(n));
                    let new = old.iter().zip(moves.iter().zip(drawn));
                    new.map(|(x, (move_, drawn))| match random.uniform() < TRIMMED {
                        true => deviation * drawn,
                        false => x + MOVED * move_,
                    })
                    .collect()
                }
            };
            for (file, values) in files.iter_mut().zip([old, new]) {
                let mut bytes = Vec::with_capacity(width * n);
                values.into_iter().for_each(|x| encode(x, &mut bytes));
                file.write_all(&bytes).unwrap();
            }
        }
    }
    files.iter_mut().for_each(|file| file.flush().unwrap());
    ["base", "edited"].map(|name| ModelFiles::Folder(root.join(name)))
}

#[test]
#[ignore = "ten GB of disk, some minutes: a measurement"]
fn sizes_and_times() {
    println!(
        "| type | changed | their bytes | patch | share | create | apply | reverse |\n|---|---|---|---|---|---|---|---|"
    );
    for scope in [".attn2.", ""] {
        for dtype in TYPES {
            let tmp = tempfile::tempdir().unwrap();
            let [base, edited] = write(tmp.path(), dtype, scope);
            let path = tmp.path().join("patch.safetensors");
            let timed = |work: &mut dyn FnMut()| {
                let began = Instant::now();
                work();
                began.elapsed().as_secs_f64()
            };
            let mut summary = None;
            let create = timed(&mut || summary = Some(patch::create(&base, &edited, &path, &BTreeMap::new()).unwrap()));
            let [there, back] = ["there", "back"].map(|name| tmp.path().join(name));
            fs::create_dir(&there).unwrap();
            let apply = timed(&mut || drop(patch::apply(&base, &path, &there, &mut Silent).unwrap()));
            fs::remove_dir_all(tmp.path().join("edited")).unwrap();
            fs::create_dir(&back).unwrap();
            let there = ModelFiles::Folder(there);
            let reverse = timed(&mut || drop(patch::reverse(&there, &path, &back, &mut Silent).unwrap()));
            let s = summary.unwrap();
            let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
            println!(
                "| {} | {} tensors | {} | {} | {:.1} % | {create:.1} s | {apply:.1} s | {reverse:.1} s |",
                dtype.0,
                s.tensors,
                mb(s.tensor_bytes),
                mb(s.bytes),
                100.0 * s.bytes as f64 / s.tensor_bytes as f64,
            );
        }
    }
}
