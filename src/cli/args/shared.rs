//! Flags that several jobs have.

use clap::Args;

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

/// How to run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// What computes: auto, cpu, cuda, cuda:1 (and so on) or metal. auto takes an NVIDIA GPU, else Apple's, else the CPU, as far as
    /// this build has them. NVIDIA GPUs of one kind share the work: cuda:0,cuda:1, or cuda:all; the result is the same as with one
    #[arg(long, default_value = "auto", value_name = "DEVICE[,DEVICE]", hide_short_help = true)]
    pub device: String,
    /// On an NVIDIA GPU, multiply f32 matrices with 10 bits of mantissa instead of 23: much faster
    #[arg(long, hide_short_help = true)]
    pub tf32: bool,
    /// How weights are kept in memory: f32, or frozen matrices in half the memory: f16 (exactly those of a model published in f16;
    /// everything else stays f32) or bf16 (rounded more; the fastest on a GPU, and on a CPU with AMX)
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
