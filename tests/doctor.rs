//! `doctor`: what it says of this machine, and when it says that something does not work.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use erase_concept::nn::Instructions;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

/// Whether this build may find GPUs.
const GPU_BUILD: bool = cfg!(any(feature = "cuda", feature = "metal"));

fn doctor(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("erase-concept").unwrap();
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", Instructions::LIMIT] {
        command.env_remove(name);
    }
    command.arg("doctor").args(args);
    command
}

fn json(command: &mut Command) -> Value {
    let output = command.assert().code(0).stderr("").get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

#[test]
fn it_says_what_is_here_on_stdout_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let text = contains("kernels")
        .and(contains(if GPU_BUILD { "devices" } else { "cpu (this build has no CUDA" }))
        .and(contains("Hub cache"))
        .and(contains("Stable Diffusion 1.4, 1.5"));
    doctor(&[])
        .current_dir(folder.path())
        .assert()
        .code(0)
        .stderr("")
        .stdout(text.and(contains(env!("CARGO_PKG_VERSION"))));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing behind");

    let found = json(doctor(&["--json"]).current_dir(folder.path()));
    assert_eq!(found["schema"], "erase-concept.doctor/1");
    assert_eq!((&found["version"], &found["candle"]), (&env!("CARGO_PKG_VERSION").into(), &"0.11.1".into()));
    assert!(found["rustc"].as_str().unwrap().starts_with("1."), "{}", found["rustc"]);
    assert_eq!(found["instructions"]["best"], Instructions::best().name());
    assert_eq!(found["instructions"]["used"], Instructions::best().name());
    let threads = std::thread::available_parallelism().unwrap().get();
    assert_eq!(found["threads"].as_u64().unwrap() as usize, threads);
    if !GPU_BUILD {
        assert_eq!((&found["devices"], &found["gpus"]), (&serde_json::json!(["cpu"]), &serde_json::json!([])));
    }
    assert!(found["self_test_seconds"].as_f64().unwrap() > 0.0 && found["disk"]["writable"] == true);
    assert_eq!(found["problems"], serde_json::json!([]));
    let sd = &found["models"][0];
    assert_eq!((&sd["pixels"], &sd["parameters"]), (&512.into(), &1_066_235_307u64.into()));
    let planned = found["memory"]["planned_bytes"].as_u64();
    if let Some(planned) = planned {
        assert!(planned < found["memory"]["total_bytes"].as_u64().unwrap());
        for precision in ["f32", "bf16"] {
            let fits = sd[precision]["least_bytes"].as_u64().unwrap() <= planned;
            assert_eq!(sd[precision]["fits"], fits, "{sd}");
        }
    }
}

#[test]
fn the_hub_cache_is_where_pythons_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    let path = |variables: &[(&str, &str)]| {
        let mut command = doctor(&["--json"]);
        command.env("HOME", root);
        for (name, value) in variables {
            command.env(name, format!("{root}/{value}"));
        }
        json(&mut command)["hub_cache"].clone()
    };
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], ".cache/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "xdg")], "xdg/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "xdg"), ("HF_HOME", "hf")], "hf/hub"),
        (&[("HF_HOME", "hf"), ("HUGGINGFACE_HUB_CACHE", "old")], "old"),
        (&[("HUGGINGFACE_HUB_CACHE", "old"), ("HF_HUB_CACHE", "new")], "new"),
    ];
    for (variables, expected) in cases {
        let found = path(variables);
        assert_eq!(found["path"], format!("{root}/{expected}"), "{variables:?}");
        assert_eq!((&found["exists"], &found["models"], &found["bytes"]), (&false.into(), &0.into(), &0.into()));
    }
    let blobs = folder.path().join("new/models--a--b/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("x"), [0; 12345]).unwrap();
    let found = path(&[("HF_HUB_CACHE", "new")]);
    assert_eq!((&found["exists"], &found["models"], &found["bytes"]), (&true.into(), &1.into(), &12345.into()));
}

#[test]
fn slower_kernels_are_a_warning_and_a_folder_that_cannot_be_written_is_a_problem() {
    let portable = Instructions::Portable.name();
    let found = json(doctor(&["--json"]).env(Instructions::LIMIT, portable));
    assert_eq!(found["instructions"]["used"], portable);
    if Instructions::best() > Instructions::Portable {
        let warnings = found["warnings"].to_string();
        assert!(warnings.contains("limits the kernels to portable"), "{warnings}");
    }
    doctor(&[])
        .env(Instructions::LIMIT, "sse9")
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("portable, avx2 or avx512"));
    if cfg!(target_os = "linux") {
        // nobody can write there
        doctor(&[]).current_dir("/proc").env("HF_HOME", "/proc/hf").assert().code(1).stderr("").stdout(
            contains("problem: nothing can be written in /proc")
                .and(contains("warning: nothing can be written in the Hub's cache /proc/hf/hub"))
                .and(contains("Everything needed works").not()),
        );
    }
}
