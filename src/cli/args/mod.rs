//! Raw flags, as clap reads them. Nothing but [`super::options`] looks at them.

mod erase;
mod jobs;
mod shared;

use super::audit::args::AuditArgs;
use super::compare::args::CompareArgs;
use clap::{Parser, Subcommand};
pub use erase::{EraseArgs, MethodArgs, VerifyArgs};
pub use jobs::{ApplyArgs, BenchArgs, DoctorArgs, ExportArgs, InspectArgs, SampleArgs};
pub use shared::{HubArgs, LoraArgs, ModelArgs, RunArgs, SamplingArgs};

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
