//! Flags of the erase job: what, how, and how the result is verified.

use super::shared::{LoraArgs, ModelArgs, RunArgs, SamplingArgs};
use clap::Args;
use std::path::PathBuf;

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
    /// A scope is xattn (cross-attention), xweights (its matrices alone), full, selfattn, noxattn, notime, xlayer, selflayer,
    /// or a glob over parameter names such as 'up_blocks.*.attn2.to_k.weight'.
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
