//! The pieces that the program spends its time in, at Stable Diffusion 1.x's size with made-up weights, beside PyTorch's on the
//! same machine in the same run.
//!
//! ```text
//! cargo bench --bench beside_torch                                      # ours alone
//! cargo bench --bench beside_torch -- --torch venv/bin/python           # beside PyTorch (torch, diffusers, transformers)
//! cargo bench --bench beside_torch -- --torch venv/bin/python --runs 5 unet-forward text
//! ```
//!
//! Each piece runs in a process of its own, once to warm up and then `--runs` times: medians, and the largest resident
//! memory, weights included. Prints a Markdown table. Full size takes up to 9 GB.

mod pieces;

use std::process::{Command, ExitCode};

/// As the program itself has it.
#[global_allocator]
static ALLOCATOR: erase_concept::process::Allocator = erase_concept::process::Allocator;

/// Every piece with what it is, and PyTorch's piece that it stands beside.
const PIECES: [(&str, &str, Option<&str>); 10] = [
    ("unet-forward", "UNet forward, 64x64, batch 1", Some("unet-forward")),
    ("unet-xattn", "UNet forward + backward, attn2 only, 64x64, batch 1", Some("unet-xattn")),
    ("unet-xattn-lean", "the same with `--dtype bf16` and checkpoints", Some("unet-xattn")),
    (
        "unet-forward-bf16",
        "UNet forward, 64x64, batch 1: `--dtype bf16` beside PyTorch in bf16",
        Some("unet-forward-bf16"),
    ),
    ("unet-full", "UNet forward + backward, all parameters, 32x32", Some("unet-full")),
    ("vae-decode", "VAE decode to 512x512", Some("vae-decode")),
    ("text", "text encoder, batch 8", Some("text")),
    ("demo-sample", "demo model: 32 images, 20 steps, guidance 7.5", Some("demo-sample")),
    ("erase", "demo model: «star» erased (data, scores, trim, 100 steps of 4 + 12)", Some("erase")),
    ("trim", "threshold and trim of all 860 M parameters", None),
];

/// Median seconds and peak memory in bytes.
type Measured = (f64, f64);

struct Options {
    torch: Option<String>,
    runs: usize,
    names: Vec<String>,
    one: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { torch: None, runs: 3, names: Vec::new(), one: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--bench" => {} // cargo's own
            "--torch" => options.torch = Some(value()?),
            "--runs" => options.runs = value()?.parse().map_err(|e| format!("--runs: {e}"))?,
            "--one" => options.one = Some(value()?),
            name if PIECES.iter().any(|(known, ..)| *known == name) => options.names.push(name.into()),
            other => return Err(format!("{other:?} is neither a flag nor a piece")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    // SAFETY: no other thread has been started yet.
    unsafe { erase_concept::process::set_up(None) };
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    if let Some(name) = &options.one {
        let seconds = pieces::time(name, options.runs).map_err(|e| e.to_string())?;
        let peak = erase_concept::audit::peak_memory().unwrap_or(0);
        println!("{name} {seconds} {peak}");
        return Ok(());
    }
    println!("| what | PyTorch | ours | ratio | PyTorch, memory | ours | ratio |\n|---|---|---|---|---|---|---|");
    for (name, what, beside) in PIECES {
        if !options.names.is_empty() && !options.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let runs = options.runs.to_string();
        let (ours, our_peak) = measure(Command::new(own).args(["--one", name, "--runs", &runs]))?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/beside_torch/pieces.py");
        let torch = |(python, name): (&String, &str)| measure(Command::new(python).args([script, name, &runs]));
        let gigabytes = |bytes: f64| format!("{:.2} GB", bytes / 1e9);
        match options.torch.as_ref().zip(beside).map(torch).transpose()? {
            Some((theirs, peak)) => println!(
                "| {what} | {theirs:.2} s | {ours:.2} s | {:.2} | {} | {} | {:.2} |",
                ours / theirs,
                gigabytes(peak),
                gigabytes(our_peak),
                our_peak / peak
            ),
            None => println!("| {what} | | {ours:.2} s | | | {} | |", gigabytes(our_peak)),
        }
    }
    Ok(())
}

/// What a piece's own process prints: its name, seconds, bytes.
fn measure(command: &mut Command) -> Result<Measured, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = || {
        let mut words = text.lines().last()?.split_whitespace().skip(1).map(|word| word.parse::<f64>().ok());
        Some((words.next()??, words.next()??))
    };
    let found = if output.status.success() { numbers() } else { None };
    found.ok_or_else(|| format!("{command:?} failed:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
}
