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
        for precision in ["f32", "f16", "bf16"] {
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
        .stderr(contains("portable, avx2, avx512 or amx"));
    if cfg!(target_os = "linux") {
        // nobody can write there
        doctor(&[]).current_dir("/proc").env("HF_HOME", "/proc/hf").assert().code(1).stderr("").stdout(
            contains("problem: nothing can be written in /proc")
                .and(contains("warning: nothing can be written in the Hub's cache /proc/hf/hub"))
                .and(contains("Everything needed works").not()),
        );
    }
}

#[test]
fn the_gpu_test_holds_ops_against_the_cpu() {
    let text = contains("linear of views, f16").and(contains("All 6 checks passed").and(contains("conv2d").not()));
    doctor(&["--gpu-test", "--device", "cpu", "--only", "linear of views"]).assert().code(0).stderr("").stdout(text);
    let words = ["--gpu-test", "--device", "cpu", "--json", "--only", "silu", "--only", "demo: text"];
    let found = json(&mut doctor(&words));
    assert_eq!((&found["schema"], &found["failed"]), (&"erase-concept.gpu-test/1".into(), &0.into()));
    let checks = found["checks"].as_array().unwrap();
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"group_norm, silu") && names.contains(&"silu of views"), "{names:?}");
    assert_eq!(names.last(), Some(&"demo: text encoder"));
    for check in checks {
        assert_eq!((&check["ok"], &check["forward"]), (&true.into(), &0.0.into()), "the same device: {check}");
        assert!(check["forward_ms"].as_f64().unwrap() > 0.0 && check["problem"].is_null(), "{check}");
    }
    // the rest, where a process could not go on
    let rest = json(doctor(&words).args(["--from", &(checks.len() - 1).to_string()]));
    assert_eq!(rest["checks"].as_array().unwrap().len(), 1);
}

#[test]
fn gpu_flags_that_make_no_sense_are_refused() {
    if !cfg!(feature = "cuda") {
        for flag in ["--gpu-test", "--gpu-bench"] {
            doctor(&[flag]).assert().code(2).stdout("").stderr(contains("scripts/build-cuda.sh"));
        }
    }
    for (words, says) in [
        (vec!["--gpu-test", "--device", "tpu"], "tpu is not a device"),
        (vec!["--gpu-test", "--device", "cuda:x"], "cuda:x is not a device"),
        (vec!["--gpu-test", "--device", "cpu", "--only", "lienar"], "no check is named so"),
        (vec!["--gpu-bench", "--device", "cpu", "--only", "lienar"], "there are text, vae-decode"),
        (vec!["--gpu-bench", "--device", "cpu", "--python", "/no/such/python"], "cannot be started"),
        (vec!["--gpu-bench", "--gpu-test"], "cannot be used with"),
        (vec!["--python", "python3"], "--gpu-bench"),
        (vec!["--only", "linear"], "--gpu-test"),
    ] {
        doctor(&words).assert().code(2).stdout("").stderr(contains(says));
    }
}

#[test]
#[cfg(unix)]
fn the_gpu_bench_stands_beside_pythons() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let python = folder.path().join("python");
    // what comes in is the script; what it is told to time, a folder with the demo
    let stub = r#"#!/bin/sh
[ "$1" = --version ] && exit 0
grep -q unet_xattn || exit 3
[ "$1 $2 $3 $4" = "- --device cpu --demo" ] && [ -s "$5/unet/config.json" ] && [ "$6" = text ] || exit 4
echo '{"versions": "torch 9.9"}'; echo 'a warning of some library'
echo '{"piece": "text", "mode": "f32", "seconds": 1000.0, "peak_bytes": 5}'
echo '{"piece": "text", "mode": "tf32", "error": "out of memory"}'
"#;
    std::fs::write(&python, stub).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = ["--gpu-bench", "--device", "cpu", "--only", "text", "--json", "--python", python.to_str().unwrap()];
    let output = doctor(&words).assert().code(1).stderr("").get_output().stdout.clone();
    let found: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!((&found["versions"], &found["problem"]), (&"torch 9.9".into(), &Value::Null));
    let [f32, tf32, bf16] = &found["rows"].as_array().unwrap()[..] else { panic!("{found}") };
    for (row, mode) in [(f32, "f32"), (tf32, "tf32"), (bf16, "bf16")] {
        assert_eq!((&row["piece"], &row["mode"]), (&"text".into(), &mode.into()));
        assert!(row["ours"]["seconds"].as_f64().unwrap() > 0.0, "{row}");
    }
    let ratio = f32["ours"]["seconds"].as_f64().unwrap() / 1000.0;
    assert!((f32["time_ratio"].as_f64().unwrap() - ratio).abs() < 1e-9, "{f32}");
    assert_eq!((&tf32["time_ratio"], &tf32["pytorch"]["error"]), (&Value::Null, &"out of memory".into()));
    assert_eq!(bf16["pytorch"], Value::Null);

    std::fs::write(&python, "#!/bin/sh\n[ \"$1\" = --version ] || exit 7\n").unwrap();
    let broken = doctor(&words[..5]).args(&words[6..]).assert().code(1);
    broken.stdout(contains("problem: --python").and(contains("CLIP text encoder, 2 prompts | bf16")));
}
