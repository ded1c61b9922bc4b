//! Memory does not grow with the number of pictures, but by what is written down of each.

#![cfg(target_os = "linux")]

use super::{audited, plain_set};
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// Rows; `AUDIT_ROWS=5000` draws more.
const ROWS: usize = 1_000;
/// Bytes by which a picture may make the process grow: its line of the manifest, its place, and no picture.
const A_PICTURE: f64 = 4_096.0;
/// Bytes by which an allocator's reserves may differ.
const RESERVE: f64 = 12.0 * 1024.0 * 1024.0;

/// What a process has in memory, in bytes.
fn resident(process: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? * 1024.0)
}

#[test]
fn a_thousand_pictures_take_no_more_memory_than_two_hundred() {
    let rows = std::env::var("AUDIT_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROWS);
    let tiny = audited();
    plain_set(&tiny, rows);
    let base =
        ["audit", "--model", "model", "--prompts", "set.csv", "--steps", "1", "--threads", "1", "--output", "out"];
    let mut child = tiny.spawn(&[&base[..], &["--batch-size", "8", "--json"]].concat());
    let mut seen: Vec<(usize, f64)> = Vec::new();
    let mut rendering = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        match event["event"].as_str() {
            Some("stage") => rendering = event["name"].as_str().is_some_and(|name| name.starts_with("rendering")),
            Some("step") if rendering => {
                seen.extend(resident(child.id()).map(|bytes| (event["step"].as_u64().unwrap() as usize, bytes)));
            }
            _ => {}
        }
    }
    assert!(child.wait().unwrap().success());
    // the mean of what was seen about a picture
    let at = |step: usize| {
        let near: Vec<f64> = seen.iter().filter(|(s, _)| s.abs_diff(step) <= 50).map(|(_, bytes)| *bytes).collect();
        assert!(near.len() > 20, "only {} measurements about picture {step}", near.len());
        near.iter().sum::<f64>() / near.len() as f64
    };
    let points: Vec<(usize, f64)> = [rows / 5, rows / 2, 9 * rows / 10].map(|step| (step, at(step))).into();
    println!(
        "pictures and MiB: {:?}",
        points.iter().map(|(step, bytes)| (*step, bytes / 1048576.0)).collect::<Vec<_>>()
    );
    let ((first, early), (last, late)) = (points[0], points[2]);
    let allowed = RESERVE + (last - first) as f64 * A_PICTURE;
    assert!(late - early < allowed, "{} bytes more after {} pictures", late - early, last - first);
}
