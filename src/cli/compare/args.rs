//! Raw flags of `compare`.

use crate::cli::args::{HubArgs, RunArgs, SamplingArgs};
use clap::Args;
use std::path::PathBuf;

const AFTER: &str = "\
Examples:
  erase-concept compare demo erased/star-demo-s0 --prompt \"a red star\" --prompt \"a blue ring\" --num-images 4
  erase-concept compare runwayml/stable-diffusion-v1-5 out --prompts i2p.csv --limit 8";

/// Flags of `compare`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct CompareArgs {
    /// The first model, such as the base: as for --model elsewhere
    #[arg(value_name = "A")]
    pub a: String,
    /// The second, such as what was made of it
    #[arg(value_name = "B")]
    pub b: String,
    /// What to render; may be given several times
    #[arg(long, required_unless_present = "prompts", conflicts_with = "prompts", help_heading = "Pictures")]
    pub prompt: Vec<String>,
    /// A prompt set instead: a CSV file, as `audit` reads it, with each row's seed, guidance and size
    #[arg(long, value_name = "FILE.csv", help_heading = "Pictures")]
    pub prompts: Option<PathBuf>,
    /// How many rows of the prompt set are rendered at most
    #[arg(long, value_name = "N", default_value_t = 24, help_heading = "Pictures")]
    pub limit: usize,
    /// Pictures of each prompt
    ///
    /// Of prompts given by --prompt, picture i of all has the seed SEED + i, as with `sample`.
    #[arg(short, long, default_value_t = 1, value_name = "N", help_heading = "Pictures")]
    pub num_images: usize,
    /// How models on the Hub are looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// What looks at the pictures, as for `audit`; may be given several times
    #[arg(long, value_name = "NAME|DIR|FILE.onnx", help_heading = "What is counted")]
    pub detector: Vec<String>,
    /// A label for each CLIP among the detectors, at least two
    #[arg(long, value_name = "LABEL", help_heading = "What is counted")]
    pub label: Vec<String>,
    /// The text that CLIP compares pictures with, {} in the label's place [default: a photo of a {}]
    #[arg(long, value_name = "TEXT", requires = "label", help_heading = "What is counted", hide_short_help = true)]
    pub label_template: Option<String>,
    /// Seed of the first picture
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Pictures")]
    pub seed: u64,
    /// Where everything goes [default: ./compared/<A>-<B>-s<seed>]
    #[arg(short, long, value_name = "DIR", help_heading = "Result")]
    pub output: Option<PathBuf>,
    /// Replace what is in the output folder
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// How pictures are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How to run, shared by all jobs.
    #[command(flatten)]
    pub run: RunArgs,
}
