//! Flags of the smaller jobs.

use super::erase::VerifyArgs;
use super::shared::{HubArgs, LoraArgs, ModelArgs, RunArgs, SamplingArgs};
use clap::Args;
use std::path::PathBuf;

/// Flags of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// What to render; may be given several times
    #[arg(long, required = true, help_heading = "Pictures")]
    pub prompt: Vec<String>,
    /// What to steer away from
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Pictures")]
    pub negative_prompt: String,
    /// Pictures of each prompt
    ///
    /// Picture i of all has the seed SEED + i and can be made again alone.
    #[arg(short, long, default_value_t = 1, value_name = "N", help_heading = "Pictures")]
    pub num_images: usize,
    /// Model, shared with the erase job.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the pictures go [default: ./samples/<model>-s<seed>]
    #[arg(short, long, value_name = "DIR", help_heading = "Model and result")]
    pub output: Option<PathBuf>,
    /// Replace what is in the output folder
    #[arg(long, help_heading = "Model and result")]
    pub overwrite: bool,
    /// How pictures are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Noise added in each DDIM step, 0 (none) to 1
    #[arg(long, default_value_t = 0.0, help_heading = "Sampling")]
    pub eta: f64,
    /// Pictures rendered at a time; more are faster and take more memory
    #[arg(long, default_value_t = 8, value_name = "N", help_heading = "Running")]
    pub batch_size: usize,
    /// How to run, shared by all jobs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model's folder (diffusers' layout), a .safetensors file, or «demo»
    #[arg(value_name = "FILE|FOLDER")]
    pub what: PathBuf,
    /// What it was made from: say which tensors differ, and by how much
    #[arg(long, value_name = "FILE|FOLDER")]
    pub base: Option<PathBuf>,
    /// Draw how much of each of the UNet's blocks differs, into FILE.svg
    #[arg(long, value_name = "FILE", requires = "base")]
    pub picture: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// OWNER/NAME on the Hugging Face Hub, a folder (diffusers' layout, such as a result), a single file, or «demo»
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// What it becomes: diffusers (a folder), single-file (A1111, ComfyUI), patch or lora (with --base)
    #[arg(long, value_name = "FORMAT")]
    pub format: String,
    /// Where it goes: a folder for diffusers, else a file
    #[arg(short, long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Let files that stay as they are be hard links to the model's own, where that is possible
    #[arg(long, hide_short_help = true)]
    pub link: bool,
    /// What MODEL was made from: for a patch or a LoRA
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// How a LoRA is made.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// How the model is looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Print events and the result as JSON lines on stdout
    #[arg(long)]
    pub json: bool,
}

/// Flags of `apply`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model and result")]
pub struct ApplyArgs {
    /// OWNER/NAME on the Hugging Face Hub, a folder (diffusers' layout), a single file, or «demo»
    #[arg(value_name = "MODEL", help_heading = None)]
    pub model: String,
    /// The patch or the LoRA, a .safetensors file; `inspect` says what is in it
    #[arg(value_name = "PATCH|LORA", help_heading = None)]
    pub change: PathBuf,
    /// Where the result goes: a new folder if MODEL is a folder (or on the Hub), a new file if it is a single file
    #[arg(short, long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Take the patch back: MODEL is the erased model, the result its base
    #[arg(long)]
    pub reverse: bool,
    /// Of a LoRA: what its change is multiplied by
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    pub strength: f64,
    /// How a model of the Hub is looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Print events and the result as JSON lines on stdout
    #[arg(long, help_heading = "Running")]
    pub json: bool,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to compare: ablation (one setting of the default at a time), presets, or a FILE.toml
    ///
    /// A file has entries like: [[variant]] name = "less forgetting", preset = "balanced", set = { lambda = 0.5 }. The
    /// settings are named as in report.json. What was done already is not done again.
    #[arg(long, default_value = "ablation", value_name = "NAME|FILE", help_heading = "What to compare")]
    pub grid: String,
    /// Concepts, comma-separated
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_value = "star,circle,ring,striped,dotted,red",
        help_heading = "What to compare"
    )]
    pub concepts: Vec<String>,
    /// Seeds, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_value = "0", help_heading = "What to compare")]
    pub seeds: Vec<u64>,
    /// As for erasing
    #[arg(short, long, default_value = "demo", value_name = "NAME|DIR|FILE", help_heading = "Model and result")]
    pub model: String,
    /// How a model of the Hub is looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Where results, table and plot go [default: ./bench/<grid>]
    #[arg(short, long, value_name = "DIR", help_heading = "Model and result")]
    pub output: Option<PathBuf>,
    /// How pictures are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How results are verified.
    #[command(flatten)]
    pub verify: VerifyArgs,
    /// How to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Compare every layer, the built-in model and a small erasure on the GPU with the CPU (exit code 1 if anything differs)
    #[arg(long, group = "gpu")]
    pub gpu_test: bool,
    /// Time the networks at full size on the GPU, with the memory that they take
    #[arg(long, group = "gpu")]
    pub gpu_bench: bool,
    /// With --gpu-bench: a Python with torch, diffusers and transformers, which is timed too
    #[arg(long, value_name = "PYTHON", requires = "gpu_bench")]
    pub python: Option<String>,
    /// The GPU that is tested or timed: cuda (the first), cuda:N; or cpu, to see what is done
    #[arg(long, value_name = "DEVICE", requires = "gpu")]
    pub device: Option<String>,
    /// Only what has this in its name; may be given several times
    #[arg(long, value_name = "PART", requires = "gpu")]
    pub only: Vec<String>,
    /// Leave out so many checks
    #[arg(long, hide = true, default_value_t = 0, requires = "gpu")]
    pub from: usize,
}
