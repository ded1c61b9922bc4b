//! `doctor --gpu-test`: every layer, the demo's networks and a small erasure, on the device and on the CPU.

mod check;
mod demo;
mod halves;
mod ops;
mod recorded;
mod several;

use super::device;
use crate::cli::ExitCode;
use crate::cli::document::{print, print_json};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use check::{Check, Row};
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Version of the layout of `--json`; rises when a field changes its meaning or goes away.
const SCHEMA: &str = "erase-concept.gpu-test/1";

/// What is to be tested.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: Option<String>,
    /// Parts of the names of checks; all if empty.
    pub only: Vec<String>,
    /// How many checks were done by another process.
    pub from: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    schema: String,
    device: String,
    checks: Vec<Row>,
    failed: usize,
    seconds: f64,
}

/// Runs the checks; [`ExitCode::LimitMissed`] if one fails.
pub fn run(options: &Options, json: bool) -> Result<ExitCode> {
    let began = Instant::now();
    let device = device::open(options.device.as_deref())?;
    let mut checks = ops::checks();
    checks.extend(halves::checks());
    checks.extend(recorded::checks());
    checks.extend(demo::checks());
    checks.extend(several::checks());
    let wanted = |check: &Check| options.only.iter().any(|part| check.name.contains(part.as_str()));
    checks.retain(|check| options.only.is_empty() || wanted(check));
    if checks.is_empty() {
        return Err(Error::usage(format!("--only {}: no check is named so", options.only.join(" --only "))));
    }
    device::allow_tf32(false);
    let name = device::name(&device);
    if !json && options.from == 0 {
        print(&format!("Against the CPU on {name}; errors are relative to the largest element.\n\n{}", head()));
    }
    let mut rows = Vec::new();
    let mut elsewhere = ExitCode::Done;
    for (i, check) in checks.iter().enumerate().skip(options.from) {
        check_interrupted()?;
        let row = check.row(&device);
        if !json {
            print(&line(&row));
        }
        let broken = !row.ok && !works(&device);
        rows.push(row);
        if broken && i + 1 < checks.len() {
            // after some errors a process can no longer use the GPU at all
            elsewhere = go_on(options, i + 1, json, &mut rows)?;
            break;
        }
    }
    let failed = rows.iter().filter(|row| !row.ok).count();
    let seconds = began.elapsed().as_secs_f64();
    if json {
        print_json(&Report { schema: SCHEMA.into(), device: name, checks: rows, failed, seconds })?;
    } else if options.from == 0 {
        let rest =
            if elsewhere == ExitCode::Done { "" } else { " before the GPU had to be opened again, and some after" };
        print(&match failed {
            0 => format!("\nAll {} checks passed in {seconds:.0} s.", checks.len()),
            _ => format!("\n{failed} checks failed{rest}; {} in all, in {seconds:.0} s.", checks.len()),
        });
    }
    Ok(if failed == 0 && elsewhere == ExitCode::Done { ExitCode::Done } else { ExitCode::LimitMissed })
}

/// Whether anything can still be computed.
fn works(device: &Device) -> bool {
    let one = Tensor::new(&[1f32], device).and_then(|x| (x + 1.0)?.to_vec1::<f32>());
    one.is_ok_and(|one| one == [2.0])
}

/// The checks from `from` on in a process of their own.
fn go_on(options: &Options, from: usize, json: bool, rows: &mut Vec<Row>) -> Result<ExitCode> {
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    let mut command = Command::new(&program);
    command.args(["doctor", "--gpu-test", "--from", &from.to_string()]);
    let device = options.device.iter().map(|value| ("--device", value));
    for (flag, value) in device.chain(options.only.iter().map(|value| ("--only", value))) {
        command.args([flag, value]);
    }
    if !json {
        let status = command.status().map_err(Error::io(&program))?;
        return Ok(if status.success() { ExitCode::Done } else { ExitCode::LimitMissed });
    }
    let output = command.arg("--json").stderr(Stdio::inherit()).output().map_err(Error::io(&program))?;
    let report: Report = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::Numeric(format!("the GPU cannot be used any more: {e}; run the test again")))?;
    rows.extend(report.checks);
    Ok(ExitCode::Done)
}

fn head() -> String {
    format!(
        "{:<36} {:<44} {:>8} {:>9} {:>9} {:>9} {:>9}\n",
        "check", "operands", "forward", "backward", "allowed", "ms", "both, ms"
    )
}

fn line(row: &Row) -> String {
    let error = |error: Option<f64>| error.map_or_else(|| "-".into(), |error| format!("{error:.1e}"));
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.3}"));
    let verdict = match &row.problem {
        None => "ok".to_string(),
        Some(problem) => format!("FAIL: {problem}"),
    };
    format!(
        "{:<36} {:<44} {:>8} {:>9} {:>9} {:>9} {:>9}  {verdict}",
        row.name,
        row.shape,
        error(row.forward),
        error(row.backward),
        format!("{:.0e}", row.tolerance),
        time(row.forward_ms),
        time(row.both_ms),
    )
}
