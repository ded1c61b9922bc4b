//! Random damage to a model's and a concept's files: the program refuses them or works, and never panics or aborts.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{Tiny, UNET, VAE};
use erase_concept::diffusion::Generator;
use erase_concept::sd::Tokenizer;
use std::time::Duration;

/// Runs of the program.
const RUNS: usize = 120;
/// Tokenizers made from damaged files.
const TOKENIZERS: usize = 60;
/// What is written into a file: digits and signs change the meaning of JSON more often than any byte would.
const SIGNS: &[u8] = b"0123456789-.,:{}[]\"eE+ tfn\\\0\xff";

/// Changes a few bytes, somewhere before `end`.
fn damage(bytes: &mut Vec<u8>, end: usize, random: &mut Generator) {
    for _ in 0..1 + random.below(4) {
        let end = end.min(bytes.len());
        if end == 0 {
            return;
        }
        let at = random.below(end);
        match random.below(8) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, bytes[at]),
            2 => bytes[at] = random.below(256) as u8,
            3 if random.below(4) == 0 => bytes.truncate(at),
            _ => bytes[at] = SIGNS[random.below(SIGNS.len())],
        }
    }
}

/// One damaged file; says what happened if that is neither success nor a refusal.
fn run(seed: u64) -> Result<(), String> {
    let (tiny, mut random) = (Tiny::new(), Generator::new(seed));
    let files = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "model_index.json",
        UNET,
        VAE,
        "../mine.toml",
    ];
    std::fs::write(tiny.file("../mine.toml"), include_str!("../prompts/church.toml")).unwrap();
    let rel = files[random.below(files.len())];
    let mut bytes = tiny.read(rel);
    let end = match rel.ends_with(".safetensors") {
        true => 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize,
        false => bytes.len(),
    };
    damage(&mut bytes, end, &mut random);
    tiny.put(rel, bytes);
    let sample = ["sample", "--model", "model", "--prompt", "a red star", "--steps", "1", "--output", "out"];
    let plan = ["--model", "model", "--concept", "mine.toml", "--dry-run", "--output", "out"];
    let args = if rel.ends_with(".toml") { &plan[..] } else { &sample };
    let mut command = tiny.command(args);
    let output = command.timeout(Duration::from_secs(60)).output().map_err(|e| format!("{seed}: {rel}: {e}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let fine = matches!(output.status.code(), Some(0 | 2)) && !stderr.contains("panicked");
    let left = output.status.code() == Some(2) && tiny.root().join("out").exists();
    if fine && !left { Ok(()) } else { Err(format!("{seed}: {rel}: {:?}\n{stderr}", output.status)) }
}

/// More runs, for a search: `CORRUPTION_SEEDS=1000..2000`.
fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("CORRUPTION_SEEDS").ok();
    let parse = |text: &str| Some(text.split_once("..")?.0.parse().ok()?..text.split_once("..")?.1.parse().ok()?);
    asked.and_then(|text| parse(&text)).unwrap_or(0..RUNS as u64)
}

#[test]
fn damaged_files_are_refused_or_work_and_never_panic() {
    let (seeds, half) = (seeds(), (seeds().start + seeds().end) / 2);
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(|| (half..seeds.end).map(run).filter_map(Result::err).collect::<Vec<_>>());
        let ours = (seeds.start..half).map(run).filter_map(Result::err).collect::<Vec<_>>();
        (ours, other.join().unwrap())
    });
    // found by a search: the tokenizers crate panicked
    let found = [2285].map(run).into_iter().filter_map(Result::err).collect();
    let failures = [a, b, found].concat();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn damaged_vocabularies_are_refused_or_work() {
    let demo = erase_concept::hub::demo();
    for seed in 0..TOKENIZERS as u64 {
        let mut random = Generator::new(seed);
        let name = ["vocab.json", "merges.txt"][random.below(2)];
        let mut bytes = demo.read(&format!("tokenizer/{name}")).unwrap().into_owned();
        let end = bytes.len();
        damage(&mut bytes, end, &mut random);
        let tokenizer = Tokenizer::from_files(&|file| match file == name {
            true => Ok(Some(bytes.clone())),
            false => Ok(demo.try_read(&format!("tokenizer/{file}"))?.map(std::borrow::Cow::into_owned)),
        });
        if let Ok(tokenizer) = tokenizer {
            let _ = tokenizer.encode(&["a red star", "", "ünïcödé ★"]);
        }
    }
}
