//! Ctrl-C at every stage: exit code 130 within a step, no output, nothing temporary; with `--cache` a rerun goes on and gives
//! the same bytes.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use common::tiny::{Tiny, assert_same, result, tree};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// The stages of the erase job before the last, as they call themselves.
const STAGES: [&str; 8] = [
    "loading the model",
    "sampling forget latents",
    "sampling retain latents",
    "scoring",
    "trimming",
    "repairing",
    "writing the model",
    "verifying: pictures before",
];

fn signal(child: &Child, name: &str) {
    // a child that has ended is still there until we wait for it, so this never fails
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "kill {name}");
}

/// What a run printed, and how it ended.
struct Ended {
    status: ExitStatus,
    events: Vec<Value>,
    stderr: String,
}

impl Ended {
    fn has_stage(&self, name: &str) -> bool {
        self.events.iter().any(|event| event["event"] == "stage" && event["name"] == name)
    }
}

/// Runs the program and sends `kind` when the event for which `when` is true is printed.
fn stopped(tiny: &Tiny, args: &[&str], kind: &str, when: impl Fn(&Value) -> bool) -> Ended {
    let mut child = tiny.spawn(&[args, &["--json"]].concat());
    let (mut events, mut sent, mut steps) = (Vec::new(), false, 0);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if !sent && when(&event) {
            signal(&child, kind);
            sent = true;
        }
        steps += usize::from(sent && event["event"] == "step");
        if steps > 1000 {
            child.kill().unwrap();
            panic!("1000 steps after the signal it still runs");
        }
        events.push(event);
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(sent, "the event never came: {stderr}");
    Ended { status: child.wait().unwrap(), events, stderr }
}

fn stage(name: &str) -> impl Fn(&Value) -> bool + '_ {
    move |event| event["event"] == "stage" && event["name"] == name
}

/// The result of a run that nothing disturbs.
fn undisturbed(tiny: &Tiny) -> std::collections::BTreeMap<String, Vec<u8>> {
    tiny.command(&tiny.erase(&["--output", "undisturbed", "--quiet"])).assert().code(0);
    let files = result(&tiny.root().join("undisturbed"));
    std::fs::remove_dir_all(tiny.root().join("undisturbed")).unwrap();
    files
}

#[test]
fn every_stage_can_be_stopped_and_leaves_nothing() {
    let tiny = Tiny::new();
    let before = tree(tiny.root());
    let more = ["--output", "deep/out", "--verify-images", "48"];
    let mut args = tiny.erase(&[]);
    let at = args.iter().position(|arg| *arg == "--verify-images").unwrap();
    args.splice(at..at + 2, more).for_each(drop);
    for (i, name) in STAGES.iter().chain(&["verifying: pictures after"]).enumerate() {
        let kind = if i % 2 == 0 { "-INT" } else { "-TERM" };
        let ended = stopped(&tiny, &args, kind, stage(name));
        assert_eq!(ended.status.code(), Some(130), "{name}: {}", ended.stderr);
        assert!(ended.stderr.contains("stopping after this step"), "{name}: {}", ended.stderr);
        let last = ended.events.last().unwrap();
        assert_eq!((&last["event"], &last["interrupted"]), (&"error".into(), &true.into()), "{name}");
        assert!(!ended.has_stage("moving the result into place"), "{name}");
        assert_eq!(tree(tiny.root()), before, "{name} left something behind");
    }
}

#[test]
fn stopped_at_the_very_end_the_result_is_whole_or_absent() {
    let tiny = Tiny::new();
    let expected = undisturbed(&tiny);
    let before = tree(tiny.root());
    let out = tiny.root().join("out");
    for delay in 0..16 {
        let overwrite = delay % 2 == 0;
        if overwrite {
            std::fs::create_dir(&out).unwrap();
            std::fs::write(out.join("old"), "old").unwrap();
        }
        let args = tiny.erase(&["--output", "out", "--overwrite"]);
        // from before the move until after it, which no event marks
        let moving = stage("moving the result into place");
        let ended = stopped(&tiny, &args, "-INT", |event| {
            moving(event) && {
                std::thread::sleep(Duration::from_millis(4 * delay));
                true
            }
        });
        match ended.status.code() {
            Some(0) => assert_same(&expected, &result(&out), "committed"),
            Some(130) if overwrite => assert_eq!(tree(&out), ["old"]),
            Some(130) => assert!(!out.exists()),
            other => panic!("{other:?}: {}", ended.stderr),
        }
        let _ = std::fs::remove_dir_all(&out);
        assert_eq!(tree(tiny.root()), before, "something is left");
    }
}

#[test]
fn an_old_result_is_untouched_when_its_replacement_is_stopped() {
    let tiny = Tiny::new();
    tiny.command(&tiny.erase(&["--output", "out"])).assert().code(0);
    let (old, before) = (result(&tiny.root().join("out")), tree(tiny.root()));
    let args = tiny.erase(&["--output", "out", "--overwrite", "--seed", "1"]);
    for name in ["repairing", "verifying: pictures before"] {
        let ended = stopped(&tiny, &args, "-INT", stage(name));
        assert_eq!(ended.status.code(), Some(130), "{name}: {}", ended.stderr);
        assert_same(&old, &result(&tiny.root().join("out")), name);
        assert_eq!(tree(tiny.root()), before, "{name}");
    }
}

#[test]
fn with_a_cache_finished_stages_are_kept_and_the_result_is_the_same() {
    let tiny = Tiny::new();
    let expected = undisturbed(&tiny);
    let args = tiny.erase(&["--output", "out", "--cache", "cache"]);
    for (name, kept) in [
        ("sampling forget latents", &[][..]),
        ("scoring", &["forget-latents", "retain-latents"]),
        ("verifying: pictures before", &["forget-latents", "repaired", "retain-latents"]),
    ] {
        let ended = stopped(&tiny, &args, "-INT", stage(name));
        assert_eq!(ended.status.code(), Some(130), "{name}: {}", ended.stderr);
        let mut found: Vec<_> = tree(&tiny.root().join("cache"));
        found.iter_mut().for_each(|file| file.truncate(file.rfind('-').unwrap()));
        assert!(kept.iter().all(|kept| found.iter().any(|found| found == kept)), "{name}: {found:?}");
        assert!(!tiny.root().join("out").exists());
    }
    let stderr = tiny.command(&args).assert().code(0).get_output().stderr.clone();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(
        stderr.contains("repaired from ") && !stderr.contains("scoring") && !stderr.contains("sampling"),
        "{stderr}"
    );
    assert_same(&expected, &result(&tiny.root().join("out")), "from the cache");

    // another seed is another entry
    tiny.command(&tiny.erase(&["--output", "other", "--cache", "cache", "--seed", "1"])).assert().code(0);
    assert_eq!(tree(&tiny.root().join("cache")).len(), 6);
}

#[test]
fn a_damaged_cache_entry_is_made_anew_with_a_note() {
    let tiny = Tiny::new();
    let expected = undisturbed(&tiny);
    let args = tiny.erase(&["--output", "out", "--overwrite", "--cache", "cache"]);
    tiny.command(&args).assert().code(0);
    let cache = tiny.root().join("cache");
    for (i, name) in tree(&cache).iter().enumerate() {
        let good = std::fs::read(cache.join(name)).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() - 3] ^= 4;
        for bad in [&flipped[..], &good[..good.len() / 2], b"", b"not a cache entry"] {
            std::fs::write(cache.join(name), bad).unwrap();
            let stderr = tiny.command(&args).assert().code(0).get_output().stderr.clone();
            let stderr = String::from_utf8(stderr).unwrap();
            // latents are not asked for again where the repaired weights are there, but they are read all the same
            assert!(stderr.contains(&format!("{name}: damaged, and made anew")), "{i}: {stderr}");
            assert!(std::fs::read(cache.join(name)).unwrap() == good, "{name}");
            assert_same(&expected, &result(&tiny.root().join("out")), name);
        }
    }
}

#[test]
fn two_runs_at_once_may_share_a_cache() {
    let tiny = Tiny::new();
    let expected = undisturbed(&tiny);
    let children = ["a", "b", "c"].map(|output| {
        let mut child = tiny.spawn(&tiny.erase(&["--output", output, "--cache", "cache", "--quiet"]));
        drop(child.stdout.take());
        (output, child)
    });
    for (output, mut child) in children {
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{stderr}");
        assert_same(&expected, &result(&tiny.root().join(output)), output);
    }
    assert_eq!(tree(&tiny.root().join("cache")).len(), 3, "{:?}", tree(&tiny.root().join("cache")));
}

#[test]
fn long_stages_stop_within_a_step() {
    let tiny = Tiny::new();
    let mut args = tiny.erase(&["--output", "out"]);
    let at = args.iter().position(|arg| *arg == "--repair-steps").unwrap();
    args[at + 1] = "1000000";
    args.extend(["--memories", "0"]);
    let third = |event: &Value| event["event"] == "step" && event["step"] == 3 && event["steps"] == 1_000_000;
    let ended = stopped(&tiny, &args, "-INT", third);
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);

    let sample =
        ["sample", "--model", "demo", "-n", "64", "--prompt", "a star", "--steps", "900", "--output", "samples/out"];
    let began = Instant::now();
    let ended = stopped(&tiny, &sample, "-INT", stage("rendering"));
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(30), "a batch would take minutes, a step less than a second");
    assert!(!tiny.root().join("samples").exists());
}

#[test]
fn several_devices_stop_too() {
    let tiny = Tiny::new();
    let before = tree(tiny.root());
    let mut args = tiny.erase(&["--output", "deep/out", "--device", "cpu,cpu,cpu"]);
    for (flag, value) in [("--forget-latents", "100"), ("--batch-size", "40"), ("--verify-images", "100")] {
        let at = args.iter().position(|arg| *arg == flag).unwrap();
        args[at + 1] = value;
    }
    for name in ["sampling forget latents", "scoring", "repairing", "verifying: pictures before"] {
        let ended = stopped(&tiny, &args, "-INT", stage(name));
        assert_eq!(ended.status.code(), Some(130), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr.matches("interrupted").count(), 1, "{name}: {}", ended.stderr);
        let errors = ended.events.iter().filter(|event| event["event"] == "error").count();
        assert_eq!(errors, 1, "{name}: it is said once");
        assert_eq!(tree(tiny.root()), before, "{name} left something behind");
    }
    let sample = [
        "sample",
        "--model",
        "demo",
        "-n",
        "64",
        "--batch-size",
        "8",
        "--prompt",
        "a star",
        "--steps",
        "900",
        "--output",
        "samples/out",
        "--device",
        "cpu,cpu",
    ];
    let began = Instant::now();
    let ended = stopped(&tiny, &sample, "-INT", stage("rendering"));
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(30), "a batch would take minutes, a step less than a second");
    assert!(!tiny.root().join("samples").exists());
}

#[test]
fn bench_stops_too_and_goes_on_later() {
    let tiny = Tiny::new();
    let grid = "[[variant]]\nname = \"a\"\n[variant.set]\nrepair_steps = 2\nscore_batches = 1\n\"data.forget\" = 2\n\"data.retain\" = \
                2\n\"data.steps\" = 1\n[[variant]]\nname = \"b\"\n[variant.set]\nrepair_steps = 3\nscore_batches = \
                1\n\"data.forget\" = 2\n\"data.retain\" = 2\n\"data.steps\" = 1\n";
    std::fs::write(tiny.root().join("grid.toml"), grid).unwrap();
    let args = ["bench", "--model", "model", "--grid", "grid.toml", "--concepts", "star", "--output", "bench"];
    let few = ["--verify-images", "2", "--synonym-images", "1", "--retain-images", "2", "--verify-steps", "1"];
    let args = [&args[..], &few].concat();
    for name in ["loading the model", "repairing", "verifying: pictures after"] {
        let ended = stopped(&tiny, &args, "-INT", stage(name));
        assert_eq!(ended.status.code(), Some(130), "{name}: {}", ended.stderr);
        let left = if tiny.root().join("bench").exists() { tree(&tiny.root().join("bench")) } else { Vec::new() };
        assert!(left.iter().all(|file| ["results.jsonl", "table.md", "plot.svg"].contains(&file.as_str())), "{left:?}");
    }
    let stopped_twice = stopped(&tiny, &args, "-TERM", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.starts_with("2 of 2"))
    });
    assert_eq!(stopped_twice.status.code(), Some(130), "{}", stopped_twice.stderr);
    let lines = || std::fs::read_to_string(tiny.root().join("bench/results.jsonl")).unwrap().lines().count();
    assert_eq!(lines(), 1, "the first is kept");
    tiny.command(&args).assert().code(0);
    assert_eq!(lines(), 2);
    assert_eq!(tree(&tiny.root().join("bench")), ["plot.svg", "results.jsonl", "table.md"]);
}

#[test]
fn a_second_signal_ends_at_once_and_cleans_up() {
    let tiny = Tiny::new();
    let before = tree(tiny.root());
    for wait in [0, 20, 50, 100, 200, 300, 400, 500] {
        let args = [
            "sample",
            "--model",
            "demo",
            "-n",
            "256",
            "--batch-size",
            "256",
            "--steps",
            "3",
            "--prompt",
            "star",
            "--output",
            "deep/out",
        ];
        let mut child = tiny.spawn(&[&args[..], &["--json"]].concat());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("rendering")));
        std::thread::sleep(Duration::from_millis(wait));
        let both = format!("kill -INT {0}; sleep 0.03; kill -INT {0} || true", child.id());
        assert!(std::process::Command::new("sh").args(["-c", &both]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "after {wait} ms");
        let left: Vec<_> =
            tree(tiny.root()).into_iter().filter(|name| !before.contains(name) && name != "deep").collect();
        assert!(left.is_empty(), "after {wait} ms: {left:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_nobodys_problem() {
    let tiny = Tiny::new();
    let mut child = tiny.spawn(&tiny.erase(&["--output", "out", "--json"]));
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap(); // then it is closed, as by `| head -1`
    assert!(first.contains("loading the model"), "{first}");
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
    assert!(tiny.root().join("out/report.json").exists());

    // neither does a closed stderr keep Ctrl-C from working
    let sample = [
        "sample", "--model", "demo", "-n", "64", "--prompt", "a star", "--steps", "900", "--output", "samples",
        "--json",
    ];
    let mut child = tiny.spawn(&sample);
    drop(child.stderr.take());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("rendering")));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!tiny.root().join("samples").exists());
}
