//! Parts of an audit, and their merger.

use super::common::tiny::{Tiny, assert_same};
use super::{audit, audited, files, json, plain_set};

fn part(tiny: &Tiny, number: usize, more: &[&str]) {
    let (shard, output) = (format!("{number}/4"), format!("part-{number}"));
    tiny.command(&[audit(&["--shard", &shard, "--output", &output]), more.to_vec()].concat()).assert().code(0);
}

fn merge<'a>(parts: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [&["audit", "merge"], parts, more].concat()
}

#[test]
fn four_shards_merged_are_one_run() {
    let tiny = audited();
    let samples = ["--samples", "2"];
    tiny.command(&[audit(&["--output", "one"]), samples.to_vec()].concat()).assert().code(0);
    (1..=4).for_each(|number| part(&tiny, number, &samples));
    let parts = ["part-3", "part-1", "part-4", "part-2"];
    assert_eq!(json(&tiny.root().join("part-2/audit.json"))["models"][0]["pictures"], 4);
    tiny.command(&merge(&parts, &["--output", "whole"])).assert().code(0);
    assert_same(&files(&tiny.root().join("one")), &files(&tiny.root().join("whole")), "merged");
    // limits hold for the whole
    let label = "--max-rate=plain=0";
    let code = |args: &[&str]| tiny.command(args).output().unwrap().status.code();
    let one = code(&[audit(&["--output", "one", label]), samples.to_vec()].concat());
    assert_eq!(code(&merge(&parts, &["--output", "whole", "--overwrite", label])), one);

    let refused = |parts: &[&str], said: &[&str]| {
        tiny.refused(&merge(parts, &["--output", "other"]), said);
    };
    refused(&["part-1", "part-2", "part-4"], &["one is missing: 3/4"]);
    refused(&["part-1", "part-2", "part-1", "part-4"], &["part-1: is part 1/4, and so is part-1"]);
    refused(&["part-1", "one"], &["one: is a part of another audit than part-1", "shard is 1/4 there and 1/1 here"]);
    refused(&["part-1", "nowhere"], &["nowhere/manifest.jsonl"]);
    tiny.refused(&merge(&parts, &["--output", "part-1", "--overwrite"]), &["part-1", "choose another --output"]);
    // a picture that was changed, a part that is not finished
    let picture = tiny.root().join("part-2/images/1_0.png");
    let old = std::fs::read(&picture).unwrap();
    std::fs::write(&picture, "x").unwrap();
    refused(&parts, &["part-2/images/1_0.png: is not what its part wrote"]);
    std::fs::write(&picture, old).unwrap();
    let manifest = tiny.root().join("part-2/manifest.jsonl");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&manifest, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    refused(&parts, &["part-2: is not finished: 3 of its 4 pictures are there"]);
    std::fs::write(&manifest, [lines[0], lines[2], lines[1], lines[3], lines[4]].join("\n") + "\n").unwrap();
    refused(&parts, &["part-2: its pictures are not in order"]);
}

#[test]
fn slurm_and_kubernetes_say_which_part_it_is() {
    let tiny = audited();
    plain_set(&tiny, 4);
    let run = |output: &str, shard: &str, variables: &[(&str, &str)]| {
        let mut command = tiny.command(&audit(&["--shard", shard, "--output", output, "--no-images"]));
        command.envs(variables.iter().copied()).assert().code(0);
        json(&tiny.root().join(output).join("audit.json"))["shard"].clone()
    };
    let slurm = [
        ("SLURM_ARRAY_TASK_ID", "6"),
        ("SLURM_ARRAY_TASK_MIN", "5"),
        ("SLURM_ARRAY_TASK_MAX", "7"),
        ("SLURM_ARRAY_TASK_COUNT", "3"),
    ];
    assert_eq!(run("slurm", "auto", &slurm), "2/3");
    assert_eq!(run("kubernetes", "auto/4", &[("JOB_COMPLETION_INDEX", "3")]), "4/4");
    tiny.refused(&audit(&["--shard", "auto", "--output", "none"]), &["--shard auto", "no task of a Slurm array"]);
}
