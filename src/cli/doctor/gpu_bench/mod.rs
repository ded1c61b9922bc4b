//! `doctor --gpu-bench`: times and memory of what an erasure spends its time in, beside PyTorch's on the same GPU.

mod pieces;
mod python;

use super::device;
use crate::cli::ExitCode;
use crate::cli::document::{print, print_json};
use crate::{Error, Result};
use pieces::{Mode, PIECES, Piece};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Version of the layout of `--json`; rises when a field changes its meaning or goes away.
const SCHEMA: &str = "erase-concept.gpu-bench/1";

/// What is to be timed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: Option<String>,
    /// Parts of the names of pieces; all if empty.
    pub only: Vec<String>,
    /// A Python with torch, diffusers and transformers.
    pub python: Option<String>,
}

/// A piece in one mode, measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    piece: String,
    mode: String,
    /// The median time.
    seconds: Option<f64>,
    /// The most that tensors took on the device, weights and all.
    peak_bytes: Option<u64>,
    /// Why it could not be measured.
    error: Option<String>,
}

/// Both side by side.
#[derive(Debug, Serialize)]
struct Row {
    piece: &'static str,
    what: &'static str,
    mode: &'static str,
    ours: Option<Measured>,
    pytorch: Option<Measured>,
    /// Ours by PyTorch's.
    time_ratio: Option<f64>,
    memory_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    device: String,
    versions: Option<String>,
    rows: Vec<Row>,
    /// What went wrong with PyTorch.
    problem: Option<String>,
    seconds: f64,
}

/// Measures; [`ExitCode::LimitMissed`] if something could not be.
pub fn run(options: &Options, json: bool) -> Result<ExitCode> {
    let began = Instant::now();
    let opened = device::open(options.device.as_deref())?;
    let wanted = |piece: &&Piece| options.only.is_empty() || options.only.iter().any(|part| piece.name.contains(part));
    let pieces: Vec<Piece> = PIECES.iter().filter(wanted).copied().collect();
    if pieces.is_empty() {
        let known = PIECES.map(|piece| piece.name).join(", ");
        return Err(Error::usage(format!(
            "--only {}: no piece is named so; there are {known}",
            options.only.join(", ")
        )));
    }
    options.python.as_deref().map_or(Ok(()), python::check)?;

    let name = device::name(&opened);
    let tell = |whose: &str, measured: &Measured| {
        if !json {
            print(&said(whose, measured));
        }
    };
    if !json {
        print(&format!("On {name}; medians of several runs after two that do not count.\n"));
    }
    let mut ours = Vec::new();
    pieces::measure(&opened, &pieces, &mut |measured| {
        tell("ours", measured);
        ours.push(measured.clone());
    })?;
    let (mut theirs, mut versions, mut problem) = (Vec::new(), None, None);
    if let Some(python) = &options.python {
        device::release(&opened);
        let torch_device = if opened.is_cpu() { "cpu".into() } else { options.device.clone().unwrap_or("cuda".into()) };
        let mut beside: Vec<&str> = pieces.iter().map(|piece| piece.beside).collect();
        beside.dedup();
        let found = python::measure(python, &torch_device, &beside, &mut |measured| {
            tell("PyTorch", measured);
            theirs.push(measured.clone());
        });
        match found {
            Ok(found) => versions = found,
            Err(error) => problem = Some(error.to_string()),
        }
    }
    let rows = side_by_side(&pieces, &ours, &theirs);
    let failed = problem.is_some() || ours.iter().chain(&theirs).any(|measured| measured.error.is_some());
    let report =
        Report { schema: SCHEMA, device: name, versions, rows, problem, seconds: began.elapsed().as_secs_f64() };
    match json {
        true => print_json(&report)?,
        false => print(&text(&report)),
    }
    Ok(if failed { ExitCode::LimitMissed } else { ExitCode::Done })
}

fn side_by_side(pieces: &[Piece], ours: &[Measured], theirs: &[Measured]) -> Vec<Row> {
    let all = pieces.iter().flat_map(|piece| Mode::ALL.map(|mode| (piece, mode)));
    let row = |(piece, mode): (&Piece, Mode)| {
        let of = |all: &[Measured], name: &str| {
            all.iter().find(|measured| measured.piece == name && measured.mode == mode.name()).cloned()
        };
        let (ours, pytorch) = (of(ours, piece.name), of(theirs, piece.beside));
        let ratio = |value: fn(&Measured) -> Option<f64>| {
            Some(ours.as_ref().and_then(value)? / pytorch.as_ref().and_then(value)?)
        };
        let time_ratio = ratio(|measured| measured.seconds);
        let memory_ratio = ratio(|measured| measured.peak_bytes.map(|bytes| bytes as f64));
        Row { piece: piece.name, what: piece.what, mode: mode.name(), ours, pytorch, time_ratio, memory_ratio }
    };
    all.map(row).collect()
}

fn milliseconds(measured: &Measured) -> String {
    measured.seconds.map_or_else(String::new, |seconds| format!("{:.1}", seconds * 1e3))
}

fn gigabytes(measured: &Measured) -> String {
    measured.peak_bytes.map_or_else(String::new, |bytes| format!("{:.2}", bytes as f64 / 1e9))
}

/// One measurement as it is done.
fn said(whose: &str, measured: &Measured) -> String {
    let Measured { piece, mode, error, .. } = measured;
    match error {
        Some(error) => format!("{whose:<8} {piece:<15} {mode:<5} FAILED: {error}"),
        None => {
            format!("{whose:<8} {piece:<15} {mode:<5} {:>10} ms {:>8} GB", milliseconds(measured), gigabytes(measured))
        }
    }
}

fn text(report: &Report) -> String {
    let mut out = String::from(
        "\n| what | numbers | ours, ms | PyTorch, ms | ratio | ours, GB | PyTorch, GB | ratio |\n|---|---|---|---|---|---|---|---|\n",
    );
    let cell = |measured: &Option<Measured>, f: fn(&Measured) -> String| measured.as_ref().map_or_else(String::new, f);
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    for Row { what, mode, ours, pytorch, time_ratio, memory_ratio, .. } in &report.rows {
        let cells = [
            what.to_string(),
            mode.to_string(),
            cell(ours, milliseconds),
            cell(pytorch, milliseconds),
            ratio(*time_ratio),
            cell(ours, gigabytes),
            cell(pytorch, gigabytes),
            ratio(*memory_ratio),
        ];
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out.push_str(&format!("\n{}", report.device));
    if let Some(versions) = &report.versions {
        out.push_str(&format!("; {versions}"));
    }
    out.push_str(&format!("; {:.0} s in all\n", report.seconds));
    if let Some(problem) = &report.problem {
        out.push_str(&format!("problem: {problem}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_beside_pytorchs_of_the_same_mode() {
        let measured = |piece: &str, mode: &str, seconds, peak_bytes| Measured {
            piece: piece.into(),
            mode: mode.into(),
            seconds: Some(seconds),
            peak_bytes,
            error: None,
        };
        let lean = PIECES.iter().find(|piece| piece.name == "unet-lean-4").copied().unwrap();
        let ours = [measured("unet-lean-4", "f32", 1.0, Some(3)), measured("unet-lean-4", "bf16", 0.5, None)];
        let theirs = [measured("unet-xattn-4", "bf16", 2.0, Some(1)), measured("unet-xattn-4", "f32", 4.0, Some(4))];
        let rows = side_by_side(&[lean], &ours, &theirs);
        let found: Vec<_> = rows.iter().map(|row| (row.mode, row.time_ratio, row.memory_ratio)).collect();
        assert_eq!(found, [("f32", Some(0.25), Some(0.75)), ("tf32", None, None), ("bf16", Some(0.25), None)]);
    }
}
