//! What `doctor` says about how the program was built: compiler, candle, features. And with the feature `cuda`: compiles the
//! kernels of `src/nn/cuda/kernels` to PTX, which the driver compiles for the GPU at hand.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/nn/cuda/kernels";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok().and_then(|out| String::from_utf8(out.stdout).ok());
    let version = version.and_then(|text| text.split_whitespace().nth(1).map(String::from));
    println!("cargo:rustc-env=ERASE_CONCEPT_RUSTC={}", version.unwrap_or_else(|| "unknown".into()));
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let candle = lock.split("name = \"candle-core\"").nth(1).and_then(|rest| rest.split('"').nth(1));
    println!("cargo:rustc-env=ERASE_CONCEPT_CANDLE={}", candle.unwrap_or("unknown"));
    println!("cargo:rustc-env=ERASE_CONCEPT_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    let features = std::env::vars().filter_map(|(name, _)| name.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase));
    let mut features: Vec<String> =
        features.filter(|name| name != "default").map(|name| name.replace('_', "-")).collect();
    features.sort();
    println!("cargo:rustc-env=ERASE_CONCEPT_FEATURES={}", features.join(","));
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(error) = compile_kernels()
    {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn compile_kernels() -> Result<(), String> {
    println!("cargo:rerun-if-changed={KERNELS}");
    // CUDA's libraries beside the program, or where it was built
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/lib");
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{}", Path::new(&home).join("lib").display());
    }
    for variable in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "NVCC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = std::env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?;
    // the kernels ask for nothing newer; a GPU of a later generation runs them too
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    for (source, name, defined) in [
        ("all.cu", "kernels.ptx", None),
        ("flash_bf16.cu", "flash_bf16.ptx", None),
        ("flash_f32.cu", "flash_f32.ptx", None),
        ("flash_f32.cu", "flash_tf32.ptx", Some("-DTF32")),
    ] {
        compile(&Path::new(KERNELS).join(source), &Path::new(&out).join(name), &capability, defined)?;
    }
    Ok(())
}

fn compile(source: &Path, out: &Path, capability: &str, defined: Option<&str>) -> Result<(), String> {
    let nvcc = nvcc();
    let status = Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17", &format!("-arch=compute_{capability}")])
        .args(defined)
        .arg(source)
        .arg("-o")
        .arg(out)
        .status()
        .map_err(|e| {
            format!(
                "the feature `cuda` needs CUDA's compiler, {}: {e}; scripts/build-cuda.sh brings it",
                nvcc.display()
            )
        })?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", nvcc.display())) }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    match std::env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => "nvcc".into(),
    }
}
