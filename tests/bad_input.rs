//! What a user can get wrong beside the model's files: names, concept files, settings, places. Each is refused with exit code
//! 2 and a message that says what, where and what next, and nothing is written.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{QUICK, Tiny};
use std::fs;

const CONCEPT: &str = r#"name = "x"
kind = "style"
forget = ["an x", "a big x"]
anchors = ["a y", "a big y"]
retain = ["a y", ""]
[verify]
forget = ["the x"]
synonyms = ["the ex"]
retain = [{ prompt = "the y", labels = [] }]
[detect]
labels = []
"#;

#[test]
fn an_unknown_model_is_told_what_there_is() {
    let tiny = Tiny::new();
    for args in [
        &["--concept", "star", "--model", "nowhere"][..],
        &["sample", "--prompt", "x", "--model", "nowhere"],
        &["bench", "--model", "nowhere"],
    ] {
        tiny.refused(args, &["--model \"nowhere\" is not there", "demo", "diffusers"]);
    }
    let hub = ["--concept", "star", "--model", "no-such-owner/no-such-model", "--offline"];
    tiny.refused(
        &hub,
        &["no-such-owner/no-such-model: nothing is fetched (offline)", "--model FOLDER", "--model demo"],
    );
    tiny.refused(
        &["--concept", "star", "--model", "model/model_index.json"],
        &["is one file of a model's folder; name the folder"],
    );
    tiny.refused(&["--concept", "star", "--model", "model/unet"], &["a folder without a model_index.json"]);
}

#[test]
fn an_unknown_concept_is_told_what_there_is() {
    let tiny = Tiny::new();
    let refused = |args: &[&str], parts: &[&str]| drop(tiny.refused(args, parts));
    refused(&["--concept", "sstar"], &["did you mean 'star'?", "circle, dotted", "--kind object", "FILE.toml"]);
    refused(&["--concept", "star", "--kind", "thing"], &["--kind", "object, style, content, identity"]);
    refused(&["--concept", "missing.toml"], &["missing.toml: no such concept file", "check the path", "star, striped"]);
    refused(&["--concept", " "], &["the concept's name is empty", "circle, dotted"]);
    refused(&["bench", "--concepts", "star,sstar"], &["did you mean 'star'?"]);
    fs::create_dir(tiny.root().join("folder.toml")).unwrap();
    refused(&["--concept", "folder.toml"], &["folder.toml: Is a directory"]);
    fs::write(tiny.root().join("latin.toml"), b"name = \"caf\xe9\"").unwrap();
    refused(&["--concept", "latin.toml"], &["latin.toml: not a text file (UTF-8)"]);
}

#[test]
fn a_wrong_concept_file_names_file_and_key() {
    let tiny = Tiny::new();
    let path = tiny.root().join("mine.toml");
    for (from, to, expected) in [
        ("forget = [\"an x\", \"a big x\"]", "forget = []", "mine.toml: forget is empty; it needs at least one prompt"),
        ("retain = [\"a y\", \"\"]", "retain = []", "mine.toml: retain is empty; it needs at least one prompt"),
        ("forget = [\"the x\"]", "forget = []", "mine.toml: verify.forget is empty; it needs"),
        ("[{ prompt = \"the y\", labels = [] }]", "[]", "mine.toml: verify.retain is empty; it needs"),
        (
            "anchors = [\"a y\", \"a big y\"]",
            "anchors = []",
            "forget has 2 prompts but anchors has 0; anchors[i] replaces",
        ),
        ("\"a big x\"]", "\" \"]", "forget has an empty prompt"),
        ("name = \"x\"", "name = \"\"", "name is empty"),
        ("kind = \"style\"", "kinds = 3", "mine.toml: line 2: unknown field `kinds`"),
        ("kind = \"style\"", "kind = \"object\"", "detect.labels is empty; kind object needs a label"),
        ("forget = [\"the x\"]", "forget = [\"an x\"]", "both in verify.forget and in forget"),
        ("labels = []\n", "labels = [\n", "mine.toml: line"),
    ] {
        assert!(CONCEPT.contains(from), "{from}");
        fs::write(&path, CONCEPT.replacen(from, to, 1)).unwrap();
        tiny.refused(&["--model", "model", "--concept", "mine.toml", "--output", "out"], &[expected]);
    }
    fs::write(&path, CONCEPT).unwrap();
    let args = [&["--model", "model", "--concept", "mine.toml", "--output", "out"], &QUICK[..]].concat();
    tiny.command(&args).assert().code(0);
}

#[test]
fn settings_that_make_no_sense_are_refused_by_their_flag() {
    let tiny = Tiny::new();
    for (setting, expected) in [
        ("--kept=1", "must lie above 0 and below 1 (1 would trim nothing)"),
        ("--kept=0", "must lie above 0 and below 1"),
        ("--kept=NaN", "--kept NaN must lie above 0 and below 1"),
        ("--kept=1e-9", "the kept fraction must lie above 0 and below 1"),
        ("--steps=0", "--steps must be at least 1"),
        ("--data-steps=1000", "1000 denoising steps: there may be 1 to 999"),
        ("--data-steps=0", "--data-steps must be at least 1"),
        ("--verify-steps=0", "--verify-steps must be at least 1"),
        ("--verify-steps=5000", "5000 denoising steps: there may be 1 to 999"),
        ("--repair-steps=0", "--repair-steps must be at least 1"),
        ("--repair-steps=-3", "--repair-steps"),
        ("--repair-steps=18446744073709551615", "--repair-steps 18446744073709551615 is more than 10000000"),
        ("--score-batches=0", "--score-batches must be at least 1"),
        ("--batch-size=0", "--batch-size must be at least 1"),
        ("--forget-latents=0", "--forget-latents must be at least 1"),
        ("--forget-latents=99999999999999", "--forget-latents 99999999999999 is more than"),
        ("--retain-latents=0", "--retain-latents must be at least 1"),
        ("--learning-rate=0", "--learning-rate 0 must be positive"),
        ("--learning-rate=inf", "--learning-rate inf must be positive"),
        ("--learning-rate=NaN", "--learning-rate NaN must be positive"),
        ("--lambda=-1", "--lambda -1 must not be negative"),
        ("--lambda=inf", "--lambda inf must not be negative"),
        ("--margin=NaN", "--margin NaN must not be negative"),
        ("--memories=11", "--memories 11 must be at most 10"),
        ("--guidance-scale=NaN", "--guidance-scale NaN must be a number from 0 up"),
        ("--guidance-scale=-1", "--guidance-scale -1 must be a number from 0 up"),
        ("--guidance-scale=1e300", "lower --guidance-scale"),
        ("--verify-images=0", "--verify-images must be at least 1"),
        ("--verify-images=99999999999999", "--verify-images 99999999999999 is more than"),
        ("--retain-images=0", "--retain-images must be at least 1"),
        ("--max-rate=5", "--max-rate 5 must lie between 0 and 1 (0.05 means 5 %)"),
        ("--max-rate=NaN", "--max-rate NaN must lie between 0 and 1"),
        ("--threads=10000000", "--threads 10000000 must lie between 1 and 1024"),
        ("--score-scope=nothing*", "scope \"nothing*\" matches no parameter of this UNet; use one of xattn"),
        ("--trim-scope=selfattn", "--trim-scope and --score-scope have no parameter in common"),
        ("--train-scope={a", "scope \"{a\""),
        ("--preset=oficial", "did you mean official?"),
        ("--scheduler=dimm", "choose ddim, pndm"),
        ("--seed=-1", "--seed"),
    ] {
        let (flag, value) = setting.split_once('=').unwrap();
        let mut args = tiny.erase(&["--output", "out"]);
        match args.iter().position(|arg| *arg == flag) {
            Some(at) => args.splice(at..at + 2, [setting]).for_each(drop),
            None => args.push(setting),
        }
        let kept = flag.trim_start_matches("--");
        tiny.refused(
            &args,
            &[expected, if expected.contains(value) { value } else { kept.split('-').next().unwrap() }],
        );
    }
}

#[test]
fn sample_refuses_what_makes_no_sense() {
    let tiny = Tiny::new();
    for (setting, expected) in [
        ("--num-images=0", "--num-images must be at least 1"),
        ("--num-images=99999999999999", "is more than 10000000"),
        ("--batch-size=0", "--batch-size must be at least 1"),
        ("--steps=1001", "1001 denoising steps: there may be 1 to 1000"),
        ("--guidance-scale=inf", "--guidance-scale inf must be a number from 0 up"),
        ("--guidance-scale=1e300", "lower --guidance-scale"),
        ("--eta=NaN", "--eta NaN must lie between 0 and 1"),
    ] {
        let mut args = vec!["sample", "--model", "model", "--prompt", "x", "--output", "out", setting];
        if !setting.starts_with("--steps") {
            args.push("--steps=2");
        }
        tiny.refused(&args, &[expected]);
    }
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_work() {
    let tiny = Tiny::new();
    fs::write(tiny.root().join("file"), "precious").unwrap();
    fs::create_dir(tiny.root().join("full")).unwrap();
    fs::write(tiny.root().join("full/mine"), "precious").unwrap();
    let mut cases = vec![
        ("file", "is a file; the output is a folder, choose another name"),
        ("file/out", "cannot create a folder here"),
        ("file/deep/out", "choose another place for the output"),
        ("full", "is there already and is not empty; choose another name, or pass --overwrite"),
        ("", "a value is required for '--output <DIR>'"),
        ("..", "not a name for a new folder; choose another"),
    ];
    if cfg!(target_os = "linux") {
        cases.push(("/proc/out", "/proc: cannot create a folder here"));
        cases.push(("/proc/deep/out", "cannot create a folder here"));
    }
    for (output, expected) in cases {
        tiny.refused(&tiny.erase(&["--output", output]), &[expected]);
        tiny.refused(&["sample", "--model", "model", "--prompt", "x", "--output", output], &[expected]);
    }
    // the folders above the output are made before the cache is found to be none, and removed again
    let args = tiny.erase(&["--output", "new/deep/out", "--cache", "file"]);
    tiny.refused(&args, &["file: cannot be used", "choose another --cache"]);
    let bench = ["bench", "--model", "model", "--concepts", "star", "--output", "file/out"];
    tiny.refused(&bench, &["file/out: cannot be used", "choose another --output"]);
}

#[test]
fn the_model_and_the_cache_are_never_replaced() {
    let tiny = Tiny::new();
    fs::create_dir_all(tiny.root().join("all/cache")).unwrap();
    for (output, flag) in [("model", "--model"), (".", "--model"), ("all", "--cache")] {
        let args = tiny.erase(&["--overwrite", "--output", output, "--cache", "all/cache"]);
        tiny.refused(&args, &[&format!("holds what {flag} names, which would be replaced; choose another --output")]);
    }
    let args = ["sample", "--model", "model", "--prompt", "x", "--output", "model", "--overwrite"];
    tiny.refused(&args, &["holds what --model names"]);
}

#[test]
fn a_prompt_that_is_too_long_is_cut_where_the_note_says() {
    let tiny = Tiny::new();
    // one token each, so that the cut is between words: 30 of them fit beside the start and the end
    let prompt = ('a'..='z').chain('a'..='n').map(String::from).collect::<Vec<_>>().join(" ");
    let sample = |prompt: &str, output: &str| {
        let args = ["sample", "--model", "model", "--prompt", prompt, "--steps", "2", "--output", output];
        let output = tiny.command(&args).assert().code(0).get_output().clone();
        String::from_utf8(output.stderr).unwrap()
    };
    let stderr = sample(&prompt, "long");
    let lost = stderr.split("left out at its end: \"").nth(1).expect(&stderr).split('"').next().unwrap();
    assert!(
        prompt.ends_with(lost) && lost.len() == 2 * 10 - 1 && stderr.contains("is longer than the model takes"),
        "{stderr}"
    );
    let kept = &prompt[..prompt.len() - lost.len()];
    assert!(!sample(kept, "cut").contains("longer"), "what is left fits");
    assert!(sample(&format!("{kept} lamp"), "other").contains("longer"), "nothing more fits");
    let pixels = |name: &str| image::open(tiny.root().join(name).join("00000_0.png")).unwrap().to_rgb8().into_raw();
    assert_eq!(pixels("long"), pixels("cut"), "what was drawn is not the prompt without what was left out");
    sample(&kept[..kept.len() - 2], "shorter");
    assert_ne!(pixels("long"), pixels("shorter"), "the last words that fit count");

    fs::write(tiny.root().join("mine.toml"), CONCEPT.replace("a big x", &prompt)).unwrap();
    let args = [&["--model", "model", "--concept", "mine.toml", "--output", "out"], &QUICK[..]].concat();
    let stderr = tiny.command(&args).assert().code(0).get_output().stderr.clone();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains("1 of the concept's prompts are longer than the model takes and are cut"), "{stderr}");
}

#[test]
fn instructions_that_do_not_exist_are_refused() {
    let tiny = Tiny::new();
    let mut command = tiny.command(&tiny.erase(&["--output", "out", "--dry-run"]));
    let output = command.env("ERASE_CONCEPT_INSTRUCTIONS", "avx1024").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("it may be portable, avx2, avx512 or amx"), "{text}");
}
