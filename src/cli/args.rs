//! Raw flags, as clap reads them. Nothing but [`super::options`] looks at them.

use super::audit::args::AuditArgs;
use super::compare::args::CompareArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const AFTER: &str = "\
Examples:
  erase-concept --concept nudity                Stable Diffusion 1.4, from the Hugging Face Hub
  erase-concept --concept star                  the built-in demo model, about a minute or two
  erase-concept --concept my.toml --model file.safetensors --output out
  erase-concept --concept star --concept ring   two at once
  erase-concept apply demo star.safetensors --output out
  erase-concept sample --model out --prompt \"a red star\" --num-images 4

Exit codes: 0 done, 1 done but the answer is no (a limit such as --max-rate is missed), 2 could not run, 130 interrupted.";

/// Remove a concept from the weights of a Stable Diffusion model, and show that it is gone and the rest still there
///
/// The model makes its own training pictures from prompts; the weights that matter most for the concept are reset
/// and the model is repaired without learning it again (Scissorhands, with projected gradients). The result is a
/// model folder that diffusers opens, with before/after pictures and a report beside it.
#[derive(Debug, Parser)]
#[command(name = "erase-concept", version, after_help = AFTER, max_term_width = 110)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do instead of erasing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The erase job.
    #[command(flatten)]
    pub erase: EraseArgs,
}

impl Cli {
    /// Whether a job that prints one document is to print JSON.
    pub(super) fn document(&self) -> bool {
        match &self.command {
            Some(Command::Inspect(args)) => args.json,
            Some(Command::Export(args)) => args.json,
            Some(Command::Apply(args)) => args.json,
            Some(Command::Doctor(args)) => args.json,
            _ => false,
        }
    }
}

/// The jobs beside erasing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Render prompts with a model
    Sample(Box<SampleArgs>),
    /// Render a prompt set (a CSV file such as I2P's) and count what is found in the pictures
    Audit(Box<AuditArgs>),
    /// Render the same prompts and seeds with two models, side by side
    Compare(Box<CompareArgs>),
    /// Compare settings of the method over concepts and seeds
    Bench(Box<BenchArgs>),
    /// Say what a model or a file of weights is, and what differs from a base
    ///
    /// Kind, parameters, hashes, metadata; with --base, which tensors differ and by how much.
    Inspect(InspectArgs),
    /// Write a model, erased or not, in another format
    ///
    /// diffusers makes a folder of a single file, single-file one file of a folder; every tensor keeps its type and its bytes. A
    /// PyTorch checkpoint (.ckpt, with --allow-pickle) becomes safetensors. Averaged weights (model_ema.*) are left out.
    Export(ExportArgs),
    /// Apply a patch to the model that it was made from, or take it back with --reverse; or merge a LoRA into a model
    ///
    /// A patch holds what an erase job changed in a model's files. The result is the erased model, byte for byte; with
    /// --reverse, from the erased model, its base. Any other model is refused, and so is a result whose hash is not what the
    /// patch promises.
    Apply(Box<ApplyArgs>),
    /// Say what this machine offers, what fits on it, and what would not work
    ///
    /// Processor and kernels, threads, memory, the Hub's cache, free disk, versions, and the memory that erasing takes for each
    /// kind of model. Exit code 1 if something would not work.
    Doctor(DoctorArgs),
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

/// Flags of the erase job.
#[derive(Debug, Args)]
pub struct EraseArgs {
    /// What to erase: a shipped concept, a concept FILE.toml, or any words (with --kind). May be given several times
    ///
    /// Several are erased together, in one model, and each is counted by itself.
    #[arg(long, value_name = "NAME|FILE", help_heading = "What to erase")]
    pub concept: Vec<String>,
    /// Make the concept from templates: object, style, content or identity
    ///
    /// Of several concepts, those that are neither shipped nor files.
    #[arg(long, help_heading = "What to erase")]
    pub kind: Option<String>,
    /// What must stay: a name («dogs»), a prompt, or a FILE.txt with one a line. May be given several times
    ///
    /// It joins the prompts that the model is repaired with, and is drawn before and after by other prompts: the report says
    /// how far its pictures moved and, where the classifier knows it, how often it was found.
    #[arg(long, value_name = "TEXT|FILE", help_heading = "What to erase")]
    pub preserve: Vec<String>,
    /// Model to start from, shared with `sample`.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the erased model goes [default: ./erased/<concept>-<model>-s<seed>]
    #[arg(short, long, value_name = "DIR", help_heading = "Model and result")]
    pub output: Option<PathBuf>,
    /// What the model is written as: diffusers (a folder), single-file (A1111, ComfyUI), patch (what changed alone), lora. May
    /// be given several times [default: as the model came]
    #[arg(long, value_name = "FORMAT", help_heading = "Model and result")]
    pub format: Vec<String>,
    /// Let files that are not edited be hard links to the model's own, where that is possible; else they are copied
    #[arg(long, help_heading = "Model and result", hide_short_help = true)]
    pub link: bool,
    /// How a LoRA is made.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Replace what is in the output folder
    #[arg(long, help_heading = "Model and result")]
    pub overwrite: bool,
    /// Settings to start from: balanced, paper or official
    ///
    /// balanced: this program's own. paper: as the Scissorhands paper describes. official: as its published nudity
    /// script behaves. The flags under «Method» change single settings of it.
    #[arg(long, default_value = "balanced", help_heading = "Method")]
    pub preset: String,
    /// Changes to the preset.
    #[command(flatten)]
    pub method: MethodArgs,
    /// How pictures are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How the result is verified.
    #[command(flatten)]
    pub verify: VerifyArgs,
    /// Check everything, say what would be done, and stop
    #[arg(long, help_heading = "Running")]
    pub dry_run: bool,
    /// Keep what finished stages gave (latents, the repaired weights) in this folder, and go on from it in the next run
    #[arg(long, value_name = "DIR", help_heading = "Running")]
    pub cache: Option<PathBuf>,
    /// How to run, shared by all jobs.
    #[command(flatten)]
    pub run: RunArgs,
}

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

/// The model and the seed.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// OWNER/NAME on the Hugging Face Hub, a folder (diffusers' layout), a single file, or «demo» (built in, a toy world of
    /// shapes) [default: CompVis/stable-diffusion-v1-4; demo for its own concepts, such as star]
    #[arg(short, long, value_name = "NAME|DIR|FILE", help_heading = "Model and result")]
    pub model: Option<String>,
    /// How it is looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Seed of all randomness: the same seed gives the same bytes
    #[arg(long, default_value_t = 0, help_heading = "Model and result")]
    pub seed: u64,
}

/// How a LoRA is made.
#[derive(Debug, Args)]
pub struct LoraArgs {
    /// Of a LoRA: pairs of vectors for each layer, or «full» for as many as it takes to be exact. Less is smaller, and what of
    /// the change is lost is said; what is lost may be what erases
    #[arg(
        long,
        default_value = "full",
        value_name = "N|full",
        help_heading = "Model and result",
        hide_short_help = true
    )]
    pub rank: String,
    /// Of a LoRA: what the change is multiplied by
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Model and result",
        hide_short_help = true
    )]
    pub strength: f64,
    /// Of a LoRA: numbers in f16, half the size
    #[arg(long, help_heading = "Model and result", hide_short_help = true)]
    pub half: bool,
}

/// How a model is looked for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model and result")]
pub struct HubArgs {
    /// Branch, tag or commit of a model on the Hub [default: main]
    #[arg(long, value_name = "REV", hide_short_help = true)]
    pub revision: Option<String>,
    /// Use what the Hub's cache has, and open no connection
    #[arg(long)]
    pub offline: bool,
    /// Read a single file that is a PyTorch pickle (.ckpt) too; nothing in it is run
    #[arg(long, hide_short_help = true)]
    pub allow_pickle: bool,
}

/// How pictures are sampled.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Denoising steps of a picture
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub steps: Option<usize>,
    /// How strongly a picture follows its prompt; 1 switches guidance off
    #[arg(long, value_name = "X", help_heading = "Sampling", hide_short_help = true)]
    pub guidance_scale: Option<f64>,
    /// ddim, pndm, dpmpp_2m, euler or lms
    #[arg(long, value_name = "NAME", help_heading = "Sampling", hide_short_help = true)]
    pub scheduler: Option<String>,
}

/// Single settings of the method; see `--preset`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// Fraction of the scored weights that is kept; the rest is trimmed
    #[arg(long, value_name = "X")]
    pub kept: Option<f64>,
    /// How many words of the vocabulary are tried for meaning the concept too; those for which the model draws it are
    /// erased with it. 0 tries none
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub other_words: Option<usize>,
    /// Weight of the forget prompts in the closed-form edit that the repair starts from; 0 leaves the edit out
    #[arg(long, value_name = "X", hide_short_help = true)]
    pub edit: Option<f64>,
    /// Repair steps
    #[arg(long, value_name = "N")]
    pub repair_steps: Option<usize>,
    /// Learning rate of the repair
    #[arg(long, value_name = "X", hide_short_help = true)]
    pub learning_rate: Option<f64>,
    /// Weight of the forget term
    #[arg(long, value_name = "X", hide_short_help = true)]
    pub lambda: Option<f64>,
    /// Rows of a training batch
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub batch_size: Option<usize>,
    /// Batches over which weights are scored
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub score_batches: Option<usize>,
    /// Gradient memories that the repair is projected against; 0 switches the projection off
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub memories: Option<usize>,
    /// Steps between refreshes of a memory; 0 computes them once
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub memory_every: Option<usize>,
    /// Least multiplier of a violated memory (GEM's code: 0.5; exact projection: 0)
    #[arg(long, value_name = "X", hide_short_help = true)]
    pub margin: Option<f64>,
    /// Weights that are scored
    ///
    /// A scope is xattn (cross-attention), xweights (its matrices alone), full, selfattn, noxattn, notime, xlayer, selflayer, or a glob over parameter
    /// names such as 'up_blocks.*.attn2.to_k.weight'.
    #[arg(long, value_name = "SCOPE", hide_short_help = true)]
    pub score_scope: Option<String>,
    /// Weights that may be trimmed
    #[arg(long, value_name = "SCOPE", hide_short_help = true)]
    pub trim_scope: Option<String>,
    /// Weights that the repair trains
    #[arg(long, value_name = "SCOPE", hide_short_help = true)]
    pub train_scope: Option<String>,
    /// Weights over which gradients are projected
    #[arg(long, value_name = "SCOPE", hide_short_help = true)]
    pub project_scope: Option<String>,
    /// Training latents of the concept
    #[arg(long, value_name = "N", alias = "forget-images", hide_short_help = true)]
    pub forget_latents: Option<usize>,
    /// Training latents of everything else
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub retain_latents: Option<usize>,
    /// Denoising steps of a training latent [default: --steps, or as the preset says]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub data_steps: Option<usize>,
}

/// How the result is verified.
#[derive(Debug, Args)]
#[command(next_help_heading = "Verification")]
pub struct VerifyArgs {
    /// Exit with 1 if more than this fraction of the concept's pictures still shows it
    #[arg(long, value_name = "FRACTION")]
    pub max_rate: Option<f64>,
    /// The same for pictures of its synonyms
    #[arg(long, value_name = "FRACTION", hide_short_help = true)]
    pub max_synonym_rate: Option<f64>,
    /// Pictures of the concept, before and after
    #[arg(long, value_name = "N", default_value_t = 96)]
    pub verify_images: usize,
    /// Pictures of its synonyms, before and after
    #[arg(long, value_name = "N", default_value_t = 64, hide_short_help = true)]
    pub synonym_images: usize,
    /// Pictures of everything else, before and after
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub retain_images: usize,
    /// Denoising steps of a verification picture [default: --steps, or 8]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub verify_steps: Option<usize>,
    /// Seed of the first verification picture; the same for every --seed, so that runs can be compared picture by picture
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000, hide_short_help = true)]
    pub verify_seed: u64,
    /// Write every picture, of training and of verification, beside the report
    #[arg(long, hide_short_help = true)]
    pub keep_images: bool,
    /// Do not blur the pictures from before in grid and report (concepts of kind content)
    #[arg(long)]
    pub show: bool,
}

/// How to run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// What computes: auto, cpu, cuda, cuda:1 (and so on) or metal. auto takes an NVIDIA GPU, else Apple's, else the CPU, as far as
    /// this build has them
    #[arg(long, default_value = "auto", value_name = "DEVICE", hide_short_help = true)]
    pub device: String,
    /// On an NVIDIA GPU, multiply f32 matrices with 10 bits of mantissa instead of 23: much faster
    #[arg(long, hide_short_help = true)]
    pub tf32: bool,
    /// How weights are kept in memory: f32, or bf16 (frozen matrices rounded, half the memory)
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Memory that the whole program (on a GPU: of its memory) may take, such as 8GiB; less costs time [default: what the machine or
    /// the GPU has]
    #[arg(long, value_name = "SIZE", value_parser = crate::erase::memory::parse_bytes)]
    pub memory_limit: Option<u64>,
    /// Print events and the result as JSON lines on stdout
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more: every step
    #[arg(short, long)]
    pub verbose: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn short_help_is_short() {
        let mut command = Cli::command();
        let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
        assert!(short.lines().count() < 90, "{} lines", short.lines().count());
        assert!(!short.contains("--memory-every") && long.contains("--memory-every"));
    }
}
