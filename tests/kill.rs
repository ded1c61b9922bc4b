//! Killed (SIGKILL) at random moments: a rerun succeeds, gives the bytes of an undisturbed run, and leaves nothing temporary.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use common::tiny::{Tiny, assert_same, result, tree};
use erase_concept::diffusion::Generator;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Kills in all, shared by two threads.
const KILLS: usize = 50;

type Files = BTreeMap<String, Vec<u8>>;

/// One kill: `i` decides whether there is a cache, and whether an old result is being replaced. Says whether the program
/// was running, and how long the rerun took.
fn kill_and_rerun(i: usize, moment: Duration, expected: &Files, old: &Files) -> (bool, Duration) {
    let tiny = Tiny::new();
    let (cached, replaced) = (i.is_multiple_of(2), i % 4 < 2);
    let out = tiny.root().join("out");
    let before = tree(tiny.root());
    if replaced {
        for (name, bytes) in old {
            std::fs::create_dir_all(out.join(name).parent().unwrap()).unwrap();
            std::fs::write(out.join(name), bytes).unwrap();
        }
        std::fs::write(out.join("run.json"), "old").unwrap();
    }
    let mut args = tiny.erase(&["--output", "out", "--overwrite", "--quiet", "--threads", "1"]);
    args.extend(["--cache", "cache"].iter().filter(|_| cached));
    let mut child = tiny.spawn(&args);
    std::thread::sleep(moment);
    let was_running = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    child.wait().unwrap();
    if out.exists() {
        let found = result(&out);
        assert!(found == *expected || (replaced && found == *old), "kill {i}: a result that is neither old nor new");
    } else {
        assert!(!replaced, "kill {i}: the old result is gone and the new one is not there");
    }
    let began = Instant::now();
    tiny.command(&args).assert().code(0);
    let took = began.elapsed();
    assert_same(expected, &result(&out), &format!("kill {i} at {moment:?}"));
    let own = |name: &String| name == "out" || name.starts_with("out/") || before.contains(name);
    let others: Vec<_> = tree(tiny.root()).into_iter().filter(|name| !own(name)).collect();
    let entries = others.iter().filter(|name| name.starts_with("cache/") && name.ends_with(".safetensors")).count();
    let kept = others.iter().all(|name| name == "cache" || !name.contains("partial"));
    assert!(kept && entries == if cached { 3 } else { 0 }, "kill {i} left {others:?}");
    (was_running, took)
}

/// Kills of an export, which takes a fraction of a second.
const EXPORTS: usize = 200;

/// One kill of an export, of a folder or of a single file, in most cases over an old one.
fn kill_an_export(tiny: &Tiny, i: usize, took: Duration, [old, new]: [&Path; 2]) -> bool {
    let folder = i.is_multiple_of(2);
    let (format, output) =
        if folder { ("diffusers", format!("out-{i}")) } else { ("single-file", format!("out-{i}.x")) };
    let out = tiny.root().join(&output);
    let content = |path: &Path| -> Option<Files> {
        match std::fs::metadata(path).ok()?.is_dir() {
            true => Some(
                tree(path).iter().filter_map(|rel| Some((rel.clone(), std::fs::read(path.join(rel)).ok()?))).collect(),
            ),
            false => Some([("".to_string(), std::fs::read(path).ok()?)].into()),
        }
    };
    let name = |root: &Path| root.join(if folder { "folder" } else { "file" });
    let (old, new) = (content(&name(old)).unwrap(), content(&name(new)).unwrap());
    let replaced = i % 8 < 6;
    for (rel, bytes) in old.iter().filter(|_| replaced) {
        let path = if folder { out.join(rel) } else { out.clone() };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let args = ["export", "model", "--format", format, "--output", &output, "--overwrite"];
    let mut child = tiny.spawn(&args);
    std::thread::sleep(took.mul_f32(1.1 * Generator::new(i as u64).uniform()));
    let was_running = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    child.wait().unwrap();
    match content(&out) {
        None => assert!(!replaced, "kill {i}: the old result is gone and the new one is not there"),
        Some(found) => assert!(found == new || (replaced && found == old), "kill {i}: neither old nor new"),
    }
    tiny.command(&args).assert().code(0);
    assert!(content(&out).unwrap() == new, "kill {i}: after another run");
    was_running
}

#[test]
fn after_two_hundred_kills_of_an_export_the_target_was_never_a_mixture() {
    let tiny = Tiny::new();
    let export = |format: &str, output: &str| {
        tiny.command(&["export", "model", "--format", format, "--output", output]).assert().code(0);
    };
    let both = |root: &str| {
        std::fs::create_dir(tiny.root().join(root)).unwrap();
        export("diffusers", &format!("{root}/folder"));
        export("single-file", &format!("{root}/file"));
    };
    tiny.poke(common::tiny::UNET, 0.5);
    both("old");
    tiny.poke(common::tiny::UNET, 0.25);
    let began = Instant::now();
    both("new");
    let took = began.elapsed() / 2;
    let (old, new) = (tiny.root().join("old"), tiny.root().join("new"));
    let half = |which: usize| {
        let (tiny, old, new) = (&tiny, &old, &new);
        move || {
            (0..EXPORTS).filter(|i| i / 2 % 2 == which).filter(|i| kill_an_export(tiny, *i, took, [old, new])).count()
        }
    };
    let running = std::thread::scope(|scope| {
        let other = scope.spawn(half(1));
        half(0)() + other.join().unwrap()
    });
    println!("{running} of {EXPORTS} exports of {took:?} were running when killed; all took {:?}", began.elapsed());
    assert!(running > EXPORTS / 3, "{running} of {EXPORTS} were running when killed");
    let left: Vec<String> = tree(tiny.root()).into_iter().filter(|name| name.contains(".partial-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn after_fifty_kills_everything_is_as_if_nothing_had_happened() {
    let began = Instant::now();
    let tiny = Tiny::new();
    let run = |output: &str, seed: &str| {
        let began = Instant::now();
        let args = tiny.erase(&["--output", output, "--quiet", "--threads", "1", "--seed", seed]);
        tiny.command(&args).assert().code(0);
        (result(&tiny.root().join(output)), began.elapsed())
    };
    let ((old, _), (expected, took)) = (run("old", "1"), run("new", "0"));
    let half = |which: usize| {
        let (expected, old) = (&expected, &old);
        move || {
            let (mut took, mut running) = (took, 0);
            for i in (0..KILLS).filter(|i| i % 8 / 4 == which) {
                let moment = took.mul_f32(1.1 * Generator::new(i as u64).uniform());
                let (was_running, rerun) = kill_and_rerun(i, moment, expected, old);
                running += usize::from(was_running);
                if i % 2 == 1 {
                    took = rerun; // all of the work, without a cache, beside another run
                }
            }
            running
        }
    };
    let running = std::thread::scope(|scope| {
        let other = scope.spawn(half(1));
        half(0)() + other.join().unwrap()
    });
    println!("{running} of {KILLS} were running when killed; a run takes {took:?}, all {:?}", began.elapsed());
    assert!(running > KILLS / 2, "{running} of {KILLS} were running when killed");
}
