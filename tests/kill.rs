//! Killed (SIGKILL) at random moments: a rerun succeeds, gives the bytes of an undisturbed run, and leaves nothing temporary.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use common::tiny::{Tiny, assert_same, result, tree};
use erase_concept::diffusion::Generator;
use std::collections::BTreeMap;
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
