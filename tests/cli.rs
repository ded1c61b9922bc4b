//! The command line from outside: messages, streams, exit codes.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;

/// The program, in an empty folder of its own.
fn program(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::cargo_bin("erase-concept").unwrap();
    command.current_dir(folder.path());
    command
}

fn run(args: &[&str]) -> assert_cmd::assert::Assert {
    let folder = tempfile::tempdir().unwrap();
    let assert = program(&folder).args(args).assert();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?} left something behind");
    assert
}

fn refused(args: &[&str], parts: &[&str]) {
    let mut assert = run(args).code(2).stdout("");
    for part in parts {
        assert = assert.stderr(contains(*part));
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    run(&["--help"])
        .code(0)
        .stdout(contains("--concept").and(contains("Exit codes")).and(contains("sample")))
        .stderr("");
    run(&["sample", "--help"]).code(0).stdout(contains("--negative-prompt")).stderr("");
    run(&["--version"]).code(0).stdout(contains(env!("CARGO_PKG_VERSION"))).stderr("");
}

#[test]
fn nothing_at_all_is_answered_with_help() {
    refused(&[], &["Usage: erase-concept", "--concept"]);
}

/// The demo's concepts are erased from the demo, all others from Stable Diffusion 1.4 (which is not here).
#[test]
fn where_no_model_is_named_the_concept_decides() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = program(&folder);
        command.env("HF_HOME", folder.path()).env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
        command.args(args).args(["--dry-run", "--offline"]).assert()
    };
    run(&["--concept", "star"]).code(0).stdout(contains("from demo"));
    let sd = "CompVis/stable-diffusion-v1-4: nothing is fetched (offline)";
    run(&["--concept", "nudity"]).code(2).stderr(contains(sd).and(contains("--model demo")));
    run(&["--concept", "a unicorn", "--kind", "object"]).code(2).stderr(contains(sd));
    let both = ["--concept", "star", "--concept", "nudity"];
    run(&both).code(2).stderr(contains("«star» is made for demo, «nudity» for CompVis").and(contains("--model")));
    let mut sample = program(&folder);
    sample.env("HF_HOME", folder.path()).env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
    sample.args(["sample", "--prompt", "x", "--offline"]).assert().code(2).stderr(contains(sd));
}

#[test]
fn wrong_flags_are_refused() {
    refused(&["--concpt", "star"], &["--concpt", "--concept"]);
    refused(&["--model", "demo"], &["--concept NAME is missing", "star, striped"]);
    refused(&["--concept", "star", "sample", "--prompt", "x"], &["cannot be used with"]);
    refused(&["sample"], &["--prompt"]);
    refused(&["sample", "--prompt", "x", "--num-images", "0"], &["--num-images must be at least 1"]);
    refused(&["sample", "--prompt", "x", "--eta", "2"], &["--eta 2 must lie between 0 and 1"]);
    refused(&["sample", "--prompt", "x", "--eta", "0.5", "--scheduler", "euler"], &["--eta", "ddim"]);
    refused(&["sample", "--prompt", "x", "--scheduler", "dimm"], &["--scheduler", "ddim, pndm"]);
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        refused(
            &["--concept", "star", "--device", "cuda"],
            &["--device cuda", "no CUDA", "scripts/build-cuda.sh", "--device cpu"],
        );
        refused(&["sample", "--prompt", "x", "--device", "metal"], &["--device metal", "no Metal", "--features metal"]);
        refused(&["compare", "demo", "demo", "--prompt", "x", "--device", "CUDA:1"], &["--device cuda:1", "no CUDA"]);
    }
    refused(&["--concept", "star", "--device", "tpu"], &["--device tpu is not a device", "auto, cpu, cuda"]);
    refused(&["--concept", "star", "--device", "cpu", "--tf32"], &["--tf32 goes with an NVIDIA GPU", "on cpu"]);
    refused(&["--concept", "star", "--dtype", "f8"], &["--dtype f8", "choose f32, or f16 or bf16"]);
    refused(&["--concept", "star", "-q", "-v"], &["cannot be used with"]);
    refused(&["--concept", "unicorn", "--kind", "object", "--max-rate", "0.1"], &["no detect.labels"]);
    refused(&["--concept", "red", "--max-synonym-rate", "0.1"], &["no synonyms"]);
}

#[test]
fn errors_are_json_too_when_asked_for() {
    let output = run(&["--concept", "star", "--model", "nowhere", "--json"]).code(2).get_output().stdout.clone();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["schema"], &last["event"]), (&"erase-concept.events/1".into(), &"error".into()));
    assert!(last["message"].as_str().unwrap().contains("nowhere"));
}

#[test]
fn sample_writes_pictures_that_say_how_they_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "sample",
        "--model",
        "demo",
        "--prompt",
        "a red star ✓",
        "-n",
        "2",
        "--seed",
        "7",
        "--steps",
        "2",
        "--output",
        "out",
        "--json",
    ];
    let output = program(&folder).args(args).assert().code(0).stderr("").get_output().stdout.clone();
    let last: serde_json::Value =
        serde_json::from_str(String::from_utf8(output).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(last["result"]["images"][1]["file"], "00001_8.png");
    let names = |folder: &std::path::Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), ["out"]);
    assert_eq!(names(&folder.path().join("out")), ["00000_7.png", "00001_8.png"]);

    let read = |path: &str| std::fs::read(folder.path().join(path)).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(read("out/00001_8.png"))).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (64, 64));
    let text = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == "parameters").unwrap().get_text().unwrap();
    assert!(text.starts_with("a red star ✓\nSteps: 2, Sampler: "), "{text}");
    assert!(text.contains("Seed: 8, Size: 64x64, Model hash: ") && text.contains("RNG: CPU"), "{text}");
    assert_ne!(read("out/00000_7.png"), read("out/00001_8.png"));

    let before = read("out/00000_7.png");
    let full = ["sample", "--model", "demo", "--prompt", "x", "--steps", "2", "--output", "out"];
    program(&folder).args(full).assert().code(2).stderr(contains("--overwrite"));
    assert_eq!(read("out/00000_7.png"), before);
    program(&folder).args(full).arg("--overwrite").assert().code(0).stdout(contains("1 picture in out"));
    assert_eq!(names(&folder.path().join("out")), ["00000_0.png"]);
}

#[test]
fn an_image_can_be_made_again_alone() {
    let folder = tempfile::tempdir().unwrap();
    let sample = |seed: &str, count: &str, output: &str| {
        let flags = [
            "sample", "--model", "demo", "--prompt", "a star", "--steps", "2", "--seed", seed, "-n", count, "--output",
            output,
        ];
        program(&folder).args(flags).assert().code(0);
    };
    sample("5", "3", "three");
    sample("7", "1", "one");
    let pixels = |path: &str| image::open(folder.path().join(path)).unwrap().to_rgb8().into_raw();
    let (together, alone) = (pixels("three/00002_7.png"), pixels("one/00000_7.png"));
    let far = together.iter().zip(&alone).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert_eq!(far, 0, "more than rounding differs");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_writes_nothing() {
    run(&["--concept", "star", "--dry-run", "--repair-steps", "77", "-q"]).code(0).stdout("").stderr("");
    run(&["--concept", "star", "--dry-run", "--repair-steps", "77"])
        .code(0)
        .stdout(contains("would erase 'star' (object) from demo").and(contains("77 repair steps")));
    refused(&["--concept", "star", "--dry-run", "--train-scope", "nothing*"], &["nothing*"]);
    refused(&["--concept", "star", "--train-scope", "nothing*"], &["nothing*"]);
}

#[test]
fn a_memory_limit_is_kept_to_by_checkpoints_or_refused_with_what_is_needed() {
    let plan = |limit: &str| -> serde_json::Value {
        let output =
            run(&["--concept", "star", "--dry-run", "--json", "--memory-limit", limit]).code(0).get_output().clone();
        let last = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_string();
        let line: serde_json::Value = serde_json::from_str(&last).unwrap();
        line.get("result").unwrap_or(&line).clone()
    };
    let all = plan("100GiB");
    assert_eq!(all["checkpointing"], false, "{all}");
    let less = plan(&(all["memory_bytes"].as_u64().unwrap() - 1).to_string());
    assert_eq!(less["checkpointing"], true, "{less}");
    let least = less["memory_bytes"].as_u64().unwrap();
    assert!(least < all["memory_bytes"].as_u64().unwrap());
    let too_little = (least - 1).to_string();
    let limit = ["--concept", "star", "--memory-limit", too_little.as_str()];
    refused(&limit, &["--memory-limit", "this job needs about", "--batch-size", "--dtype bf16"]);
    refused(&["--concept", "star", "--memory-limit", "8 apples"], &["8 apples", "8GiB"]);
}
