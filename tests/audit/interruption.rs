//! Killed, stopped, damaged, out of room: the same command goes on, and the folder ends up as if nothing had happened.

use super::common::tiny::{Tiny, assert_same};
use super::{audit, audited, entries, files, plain_set};
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

/// Rows of the sets here.
const ROWS: usize = 24;

/// Small batches, so that there is something between the first picture and the last.
fn args(output: &str) -> Vec<&str> {
    audit(&["--output", output, "--batch-size", "2"])
}

fn undisturbed(tiny: &Tiny) -> (std::collections::BTreeMap<String, Vec<u8>>, Duration) {
    plain_set(tiny, ROWS);
    let began = Instant::now();
    tiny.command(&args("undisturbed")).assert().code(0);
    (files(&tiny.root().join("undisturbed")), began.elapsed())
}

#[test]
fn after_kills_at_random_moments_nothing_is_lost_and_nothing_made_twice() {
    let tiny = audited();
    let (expected, took) = undisturbed(&tiny);
    let kills: u64 = std::env::var("AUDIT_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let out = tiny.root().join("out");
    let (mut running, mut between) = (0, 0);
    for kill in 0..kills {
        let moment = took.mul_f32(erase_concept::diffusion::Generator::new(kill).uniform());
        let mut child = tiny.spawn(&args("out"));
        std::thread::sleep(moment);
        running += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let lines = std::fs::read_to_string(out.join("manifest.jsonl")).map_or(0, |text| text.lines().count());
        between += usize::from((2..=ROWS).contains(&lines));
        let assert = tiny.command(&args("out")).assert().code(0);
        let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(lines < 3 || said.contains("pictures are there already"), "kill {kill}, {lines} lines: {said}");
        assert_same(&expected, &files(&out), &format!("kill {kill} at {moment:?}"));
        std::fs::remove_dir_all(&out).unwrap();
    }
    println!("{running} of {kills} were running when killed, {between} of them between the first picture and the last");
    assert!(running > 0, "none was running when killed");
}

#[test]
fn an_unfinished_line_and_damaged_or_missing_pictures_are_mended() {
    let tiny = audited();
    let (expected, _) = undisturbed(&tiny);
    let folder = tiny.root().join("undisturbed");
    let manifest = String::from_utf8(expected["manifest.jsonl"].clone()).unwrap();
    let lines: Vec<&str> = manifest.lines().collect();
    // in another order than the final one, and a last line that was cut off
    let left = [lines[0], lines[9], lines[3], lines[4], &lines[7][..60]].join("\n");
    std::fs::write(folder.join("manifest.jsonl"), left).unwrap();
    std::fs::write(folder.join("images/2_0.png"), "damaged").unwrap();
    std::fs::remove_file(folder.join("images/3_0.png")).unwrap();
    for file in ["audit.json", "audit.csv", "report.html"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    let assert = tiny.command(&args("undisturbed")).assert().code(0);
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(said.contains("2 pictures that were made earlier are gone or damaged"), "{said}");
    assert!(said.contains(&format!("1 of {ROWS} pictures are there already")), "{said}");
    assert_same(&expected, &files(&folder), "mended");
}

#[test]
fn ctrl_c_gives_130_and_the_same_command_goes_on() {
    let tiny = audited();
    let (expected, _) = undisturbed(&tiny);
    // as many devices as there are change nothing: another number may go on
    for device in ["cpu", "cpu,cpu"] {
        stopped_and_gone_on_with(&tiny, device, &expected);
        std::fs::remove_dir_all(tiny.root().join("out")).unwrap();
    }
}

fn stopped_and_gone_on_with(tiny: &Tiny, device: &str, expected: &std::collections::BTreeMap<String, Vec<u8>>) {
    let mut child = tiny.spawn(&[args("out"), vec!["--json", "--device", device]].concat());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.by_ref().map(Result::unwrap).find(|line| line.contains("\"rendering: model\""));
    let first = first.and_then(|_| lines.by_ref().map(Result::unwrap).find(|line| line.contains("\"step\"")));
    assert!(first.is_some(), "no picture was made");
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(rest.iter().any(|line| line.contains("the same command goes on from there")), "{rest:?}");
    let out = tiny.root().join("out");
    let made = entries(&out).len();
    assert!((1..ROWS).contains(&made) && !out.join("audit.json").exists(), "{made} pictures");
    tiny.command(&args("out")).assert().code(0);
    assert_same(expected, &files(&out), "after Ctrl-C");
}

#[test]
fn an_audit_that_was_begun_otherwise_is_not_gone_on_with() {
    let tiny = audited();
    plain_set(&tiny, 3);
    tiny.command(&args("out")).assert().code(0);
    let expected = files(&tiny.root().join("out"));
    let refused = |more: &[&str], parts: &[&str]| {
        let args = [&args("out"), more].concat();
        tiny.refused(&args, &[&["manifest.jsonl: was begun otherwise", "choose another --output"], parts].concat());
    };
    let with = |flag: &'static str, value: &'static str, what: &'static str| {
        let base = ["audit", "--model", "model", "--prompts", "set.csv", "--output", "out"];
        let steps = if flag == "--steps" { vec![] } else { vec!["--steps", "2"] };
        let parts = ["manifest.jsonl: was begun otherwise", what];
        tiny.refused(&[&base[..], &steps, &[flag, value]].concat(), &parts);
    };
    with("--steps", "3", "settings.steps is 2 there and 3 here");
    with("--scheduler", "euler", "settings.scheduler");
    with("--guidance-scale", "3", "settings.guidance_scale is 7.5 there and 3");
    with("--dtype", "bf16", "settings.dtype is f32 there and bf16 here");
    with("--samples", "2", "settings.samples is 1 there and 2 here");
    with("--limit", "2", "settings.limit is not given there and 2 here");
    with("--shard", "1/2", "shard is 1/1 there and 1/2 here");
    refused(&["--no-images"], &["settings.images is true there and false here"]);
    std::fs::copy(tiny.root().join("set.csv"), tiny.root().join("old.csv")).unwrap();
    plain_set(&tiny, 4);
    refused(&[], &["prompts.sha256 is ", "prompts.rows is 3 there and 4 here"]);
    std::fs::copy(tiny.root().join("old.csv"), tiny.root().join("set.csv")).unwrap();
    let old = tiny.read(super::common::tiny::UNET);
    tiny.poke(super::common::tiny::UNET, 0.25);
    refused(&[], &["models[0].sha256 is "]);
    tiny.put(super::common::tiny::UNET, old);
    assert_same(&expected, &files(&tiny.root().join("out")), "after all refusals");
    tiny.command(&args("out")).assert().code(0);
}
