//! An audit's memory does not grow with the number of pictures, but by what is written down of each.

#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;

use common::tiny::Tiny;
use erase_concept::cli::{ExitCode, Request};
use erase_concept::counting::{self, Counting};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The program's allocator, counting.
#[global_allocator]
static ALLOCATOR: Counting<mimalloc::MiMalloc> = Counting(mimalloc::MiMalloc);

/// Bytes that a picture may add: its line of the manifest, taken apart. Its pixels alone are more.
const A_PICTURE: usize = 6_000;
/// Width and height.
const SIDE: usize = 64;
/// Pictures.
const ROWS: usize = 400;

/// How many lines a manifest has, and the bytes that are given out, again and again until the audit is over.
fn watched(manifest: &Path, over: &AtomicBool) -> Vec<(usize, usize)> {
    let mut seen = Vec::new();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
        let live = counting::live();
        let lines = std::fs::read(manifest).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
        seen.push((lines, live));
    }
    seen
}

/// One test, so that nothing else runs in this process.
#[test]
fn memory_does_not_grow_with_the_number_of_pictures() {
    let tiny = Tiny::with_classifier();
    let mut set = "case_number,prompt,evaluation_seed,width,height\n".to_string();
    (0..ROWS).for_each(|i| set.push_str(&format!("{i},a red star number {i},{i},{SIDE},{SIDE}\n")));
    let [prompts, model, output] = ["set.csv", "model", "out"].map(|name| tiny.root().join(name).display().to_string());
    std::fs::write(&prompts, set).unwrap();
    let args = ["erase-concept", "audit", "--model", &model, "--prompts", &prompts, "--output", &output];
    let more = ["--steps", "1", "--batch-size", "8", "--quiet"];
    let request = Request::from_args(args.iter().chain(&more).map(std::ffi::OsString::from)).unwrap();
    let (over, manifest) = (AtomicBool::new(false), tiny.root().join("out/manifest.jsonl"));
    let seen = std::thread::scope(|scope| {
        let seen = scope.spawn(|| watched(&manifest, &over));
        let job = std::thread::Builder::new().stack_size(64 << 20).spawn(|| request.run()).unwrap();
        assert_eq!(job.join().unwrap(), ExitCode::Done);
        over.store(true, Ordering::Relaxed);
        seen.join().unwrap()
    });
    // between two batches least is given out, so that the least of many moments tells what is kept
    let kept = |from: usize, to: usize| {
        let of: Vec<usize> =
            seen.iter().filter(|(lines, _)| (from..to).contains(lines)).map(|(_, live)| *live).collect();
        assert!(of.len() > 100, "only {} moments between pictures {from} and {to}", of.len());
        of.into_iter().min().unwrap()
    };
    let points = [ROWS / 8, ROWS / 2, 7 * ROWS / 8].map(|at| kept(at - ROWS / 16, at + ROWS / 16));
    println!("kept about pictures {}, {} and {}: {points:?} bytes", ROWS / 8, ROWS / 2, 7 * ROWS / 8);
    let (grown, drawn) = (points[2].saturating_sub(points[0]), 3 * ROWS / 4);
    assert!(grown < drawn * A_PICTURE && A_PICTURE < 3 * SIDE * SIDE, "{grown} bytes more after {drawn} pictures");
}
