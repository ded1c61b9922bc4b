//! What `doctor` says about how the program was built: compiler, candle, features.

use std::process::Command;

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
}
