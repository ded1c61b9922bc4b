//! The fuzzers' corpora, and many small damages of each of their files: no panic, no more memory than twice the file (and a
//! fixed slack). What the fuzzers themselves found is in the corpora. (`fuzz/README.md` tells how to run them.)

#![allow(clippy::unwrap_used)]

use erase_concept::counting::Counting;
use erase_concept::diffusion::Generator;
use erase_concept::fuzzing;

#[global_allocator]
static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

/// Damages of each file of a corpus; `FUZZ_DAMAGES` asks for more, `FUZZ_TARGET` for those of one fuzzer alone.
const DAMAGES: usize = 100;

fn damaged(bytes: &[u8], random: &mut Generator) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(5) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 if at < bytes.len() => {
                let part = bytes[at..(at + random.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.insert(at.min(bytes.len()), b"\"{}[],:0\n\x80\xff"[random.below(11)]),
        }
    }
    bytes
}

/// One test: the memory that is measured is the process's.
#[test]
fn every_file_and_its_damages_are_read_without_a_panic_and_in_little_memory() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut random = Generator::new(1);
    let variable = |name: &str| std::env::var(name).ok();
    let damages = variable("FUZZ_DAMAGES").map_or(DAMAGES, |number| number.parse().unwrap());
    let target = variable("FUZZ_TARGET");
    for (name, read, slack) in fuzzing::TARGETS {
        if target.as_ref().is_some_and(|target| target != name) {
            continue;
        }
        let mut inputs = 0;
        let mut files: Vec<_> = std::fs::read_dir(root.join(name)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{name} has a corpus");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            fuzzing::measured(&bytes, read, slack);
            (0..damages).for_each(|_| fuzzing::measured(&damaged(&bytes, &mut random), read, slack));
            inputs += damages;
        }
        println!("{name}: {inputs} inputs");
    }
    fuzzing::measured(&hostile(), fuzzing::safetensors, fuzzing::SLACK);
    fuzzing::measured("a=[".repeat(1 << 20).as_bytes(), fuzzing::concept, fuzzing::SLACK);
    let hungry = |_: &[u8]| drop(std::hint::black_box(vec![1u8; 2 << 20]));
    let taken = std::panic::catch_unwind(|| fuzzing::measured(&[1; 64], hungry, fuzzing::SLACK));
    assert!(taken.is_err(), "memory is measured");
}

/// Fifteen MB of lists that mean nothing: the crate that reads headers takes 27 times that for them.
fn hostile() -> Vec<u8> {
    let header = format!("{{\"a\":[{}0]}}", "[],".repeat(5_000_000));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}
