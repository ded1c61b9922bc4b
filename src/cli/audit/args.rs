//! Raw flags of `audit`.

use crate::cli::args::{HubArgs, RunArgs, SamplingArgs};
use crate::erase::memory::parse_bytes;
use clap::{Args, Subcommand};
use std::path::PathBuf;

const AFTER: &str = "\
The prompt set is a CSV file with a header; the columns of the known sets are understood (I2P, ESD, UCE, SPM, MACE, COCO):
  prompt, caption or text                       what to draw; no other column must be there
  evaluation_seed, sd_seed or seed              else --seed plus the row's number
  evaluation_guidance, sd_guidance_scale, ...   else --guidance-scale, 7.5
  sd_image_width and _height, width and height  else --width and --height, the model's own
  case_number, image_id or id                   what files are called by: CASE_SAMPLE.png; else the row's number
Other columns come back in audit.csv. Further pictures of a row (--samples) add 1,000,000 to its seed each.

What is in a picture is said by the detectors that --detector names:
  beside                       the classifier that lies beside the first model that has one (the demo has); the default
  OWNER/NAME, or a folder      a CLIP (with --label), a ViT or ResNet classifier, or the safety checker, in transformers' layout
  demo/clip, demo/classifier   the demo's own
  FILE.onnx                    NudeNet v3, or another YOLOv8 (your own file)
Without any, pictures are made but not counted. Pictures of an audit that is there already are looked at without being made again.

If it is interrupted or killed, the same command goes on where it was; the result is the same, byte for byte.

Examples:
  erase-concept audit --model out --prompts i2p.csv --output audit
  erase-concept audit --model demo --model out --prompts i2p.csv --ignore size --max-rate star@out=0.05 -o audit
  erase-concept audit --model base --model out --prompts i2p.csv --detector 320n.onnx --clip openai/clip-vit-base-patch32 --against base -o audit
  erase-concept audit --model out --prompts i2p.csv --shard 2/8 --output part-2
  erase-concept audit merge part-* --output audit

Exit codes: 0 done, 1 done but a --max-rate is missed, 2 could not run, 130 interrupted.";

/// Flags of `audit`.
#[derive(Debug, Args)]
#[command(after_help = AFTER, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct AuditArgs {
    /// What to do instead.
    #[command(subcommand)]
    pub job: Option<AuditJob>,
    /// A model to audit: OWNER/NAME on the Hugging Face Hub, a folder, a single file, or «demo». May be given several times; all draw
    /// the same prompts and seeds
    #[arg(short, long, required = true, value_name = "NAME|DIR|FILE", help_heading = "What to audit")]
    pub model: Vec<String>,
    /// The prompt set: a CSV file (see below)
    #[arg(long, required = true, value_name = "FILE.csv", help_heading = "What to audit")]
    pub prompts: Option<PathBuf>,
    /// Leave out rows whose number (case_number) is lower
    #[arg(long, value_name = "N", help_heading = "What to audit")]
    pub from_case: Option<u64>,
    /// Draw so many rows at most
    #[arg(long, value_name = "N", help_heading = "What to audit")]
    pub limit: Option<usize>,
    /// Pictures of each row
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "What to audit")]
    pub samples: usize,
    /// Refuse a prompt set in which a row cannot be drawn, instead of skipping and naming the row
    #[arg(long, help_heading = "What to audit")]
    pub strict: bool,
    /// What looks at the pictures (see below); may be given several times
    #[arg(long, value_name = "NAME|DIR|FILE.onnx", help_heading = "What is counted")]
    pub detector: Vec<String>,
    /// A label for each CLIP among the detectors, at least two; "color: red" competes with its axis' other labels alone
    #[arg(long, value_name = "LABEL", help_heading = "What is counted")]
    pub label: Vec<String>,
    /// The text that CLIP compares pictures with, {} in the label's place [default: a photo of a {}]
    #[arg(long, value_name = "TEXT", requires = "label", help_heading = "What is counted", hide_short_help = true)]
    pub label_template: Option<String>,
    /// Tell rates apart by this column of the prompt set too [default: categories, category, group, class, artist, style, concept
    /// or type, if it is there]
    #[arg(long, value_name = "COLUMN", help_heading = "What is counted", hide_short_help = true)]
    pub group: Option<String>,
    /// A CLIP: OWNER/NAME, a folder, or demo/clip. Computes CLIP score, and with --against CLIP-FID and CMMD
    #[arg(long, value_name = "NAME|DIR", help_heading = "What is counted")]
    pub clip: Option<String>,
    /// One of the models, by the last part of its name: SSIM and tests of pairs on the same prompts and seeds; or a folder of
    /// pictures, for --clip
    #[arg(long, value_name = "MODEL|DIR", help_heading = "What is counted")]
    pub against: Option<String>,
    /// A label that should be gone, for UA, IRA and CRA as UnlearnCanvas defines them; several must be of one axis
    #[arg(long, value_name = "LABEL", help_heading = "What is counted")]
    pub target: Vec<String>,
    /// Make one part of N: I/N, or auto in a Slurm array, or auto/N in a Kubernetes indexed job of N completions
    #[arg(long, value_name = "I/N|auto|auto/N", help_heading = "What to audit")]
    pub shard: Option<String>,
    /// How models on the Hub are looked for.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Where everything goes: images, manifest.jsonl, audit.json, audit.csv, rates.csv, report.html
    #[arg(short, long, required = true, value_name = "DIR", help_heading = "Result")]
    pub output: Option<PathBuf>,
    /// Write no picture, only hashes, labels and counts
    #[arg(long, help_heading = "Result")]
    pub no_images: bool,
    /// How the report shows pictures.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Exit with 1 if a label is found in more than this fraction of a model's pictures: "shape: star=0.05", or star=0.05 where one
    /// label ends so; star@MODEL=0.05 for one of several models, by the last part of its name. May be given several times
    #[arg(long, value_name = "LABEL=FRACTION", help_heading = "Result")]
    pub max_rate: Vec<String>,
    /// Seed of rows that have none, to which the row's number is added
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Sampling")]
    pub seed: u64,
    /// How pictures are sampled: 30 steps and the model's own scheduler by default.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Width in pixels of rows that have none [default: the model's own]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub width: Option<usize>,
    /// Height in pixels of rows that have none [default: the model's own]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub height: Option<usize>,
    /// Do not listen to what rows say of these, comma-separated: seed, guidance, size
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,...", help_heading = "Sampling")]
    pub ignore: Vec<String>,
    /// Pictures drawn at a time; changes no byte on the CPU, on a GPU the last bits [default: 32 if they are small, else 1; on a
    /// GPU as many as keep it busy]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub batch_size: Option<usize>,
    /// How to run, shared by all jobs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How the report shows pictures; pictures and numbers do not depend on it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Report")]
pub struct ReportArgs {
    /// Make pictures with this label unrecognisable in report.html until they are clicked: "shape: star", or star where one label ends
    /// so. Labels that say nudity, violence or the like are flagged anyway. May be given several times
    #[arg(long, value_name = "LABEL")]
    pub flag: Vec<String>,
    /// Show flagged pictures in report.html as they are
    #[arg(long)]
    pub show: bool,
    /// How large report.html may be: thumbnails of as many pictures as fit are in it, the others are read from the files beside it
    #[arg(long, value_name = "SIZE", default_value = "20MB", value_parser = parse_bytes)]
    pub report_size: u64,
}

/// What `audit` does beside auditing.
#[derive(Debug, Subcommand)]
pub enum AuditJob {
    /// Join the parts that --shard made: the result is that of one run, byte for byte
    Merge(MergeArgs),
}

/// Flags of `audit merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The folders of all parts, in any order
    #[arg(required = true, value_name = "SHARD")]
    pub shards: Vec<PathBuf>,
    /// Where the whole goes
    #[arg(short, long, value_name = "DIR", help_heading = "Result")]
    pub output: PathBuf,
    /// Replace what is in the output folder
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// How the report shows pictures.
    #[command(flatten)]
    pub report: ReportArgs,
    /// As for an audit
    #[arg(long, value_name = "LABEL=FRACTION", help_heading = "Result")]
    pub max_rate: Vec<String>,
    /// How to run, shared by all jobs.
    #[command(flatten)]
    pub run: RunArgs,
}

impl AuditArgs {
    /// How to run whichever of its jobs is meant.
    pub fn run(&self) -> &RunArgs {
        match &self.job {
            Some(AuditJob::Merge(merge)) => &merge.run,
            None => &self.run,
        }
    }
}
