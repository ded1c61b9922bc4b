//! The command line: flags in, validated options out, a job run, an exit code.

mod apply;
pub mod args;
mod audit;
mod bench;
mod cache;
mod checks;
mod command;
mod compare;
mod concepts;
mod doctor;
mod document;
mod erase;
mod evidence;
pub mod exit_code;
mod export;
mod inspect;
pub mod options;
pub mod output;
mod outputs;
mod sample;
mod settings;
mod stopwatch;
mod training_pictures;

pub use exit_code::ExitCode;

use crate::Result;
use crate::nn::Instructions;
use apply::ApplyOptions;
use args::{Cli, Command};
use clap::Parser;
use export::ExportOptions;
use inspect::InspectOptions;
use options::{BenchOptions, EraseOptions, RunOptions, SampleOptions};
use output::{Display, Style};
use std::ffi::OsString;

/// A job with everything that it needs.
#[derive(Debug)]
enum Job {
    Erase(Box<EraseOptions>),
    Sample(Box<SampleOptions>),
    Audit(audit::Options),
    Compare(Box<compare::Options>),
    Bench(Box<BenchOptions>),
    Export(ExportOptions),
    Inspect(InspectOptions),
    Apply(ApplyOptions),
    Doctor(doctor::Options),
}

/// What was asked for, checked.
#[derive(Debug)]
pub struct Request {
    /// How to run.
    pub run: RunOptions,
    job: Job,
}

impl Request {
    /// Reads and checks the command line; what is wrong with it (or the help that it asked for) is printed.
    ///
    /// # Errors
    /// The exit code, if there is nothing to run.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> std::result::Result<Self, ExitCode> {
        let cli = Cli::try_parse_from(args).map_err(|error| {
            let _ = error.print();
            if error.use_stderr() { ExitCode::CouldNotRun } else { ExitCode::Done }
        })?;
        let run = match &cli.command {
            Some(Command::Sample(args)) => Some(&args.run),
            Some(Command::Audit(args)) => Some(args.run()),
            Some(Command::Compare(args)) => Some(&args.run),
            Some(Command::Bench(args)) => Some(&args.run),
            Some(Command::Inspect(_) | Command::Export(_) | Command::Apply(_) | Command::Doctor(_)) => None,
            None => Some(&cli.erase.run),
        };
        let style = run.map(|run| Style::decide(run.json, run.quiet, run.verbose));
        let style = style.unwrap_or_else(|| RunOptions::of_document(cli.document()).style);
        Self::new(&cli).map_err(|error| {
            Display::new(style).error(&error);
            ExitCode::from(&error)
        })
    }

    fn new(cli: &Cli) -> Result<Self> {
        Instructions::limit()?;
        Ok(match &cli.command {
            Some(Command::Sample(args)) => {
                Self { run: RunOptions::try_from(&args.run)?, job: Job::Sample(Box::new((&**args).try_into()?)) }
            }
            Some(Command::Audit(args)) => {
                Self { run: RunOptions::try_from(args.run())?, job: Job::Audit((&**args).try_into()?) }
            }
            Some(Command::Compare(args)) => {
                Self { run: RunOptions::try_from(&args.run)?, job: Job::Compare(Box::new((&**args).try_into()?)) }
            }
            Some(Command::Bench(args)) => {
                Self { run: RunOptions::try_from(&args.run)?, job: Job::Bench(Box::new((&**args).try_into()?)) }
            }
            Some(Command::Export(args)) => {
                Self { run: RunOptions::of_document(args.json), job: Job::Export(args.try_into()?) }
            }
            Some(Command::Inspect(args)) => {
                let (what, base, json) = (args.what.clone(), args.base.clone(), args.json);
                let options = InspectOptions { what, base, picture: args.picture.clone(), json };
                Self { run: RunOptions::of_document(json), job: Job::Inspect(options) }
            }
            Some(Command::Apply(args)) => {
                Self { run: RunOptions::of_document(args.json), job: Job::Apply((&**args).into()) }
            }
            Some(Command::Doctor(args)) => {
                Self { run: RunOptions::of_document(args.json), job: Job::Doctor(args.into()) }
            }
            None => {
                Self { run: RunOptions::try_from(&cli.erase.run)?, job: Job::Erase(Box::new((&cli.erase).try_into()?)) }
            }
        })
    }

    /// Runs the job; errors are printed.
    pub fn run(self) -> ExitCode {
        let mut display = Display::new(self.run.style);
        let outcome = match &self.job {
            Job::Erase(options) => erase::run(options, &mut display),
            Job::Sample(options) => sample::run(options, &mut display),
            Job::Audit(options) => audit::run(options, &mut display),
            Job::Compare(options) => compare::run(options, &mut display),
            Job::Bench(options) => bench::run(options, &mut display),
            Job::Export(options) => export::run(options, &mut display),
            Job::Inspect(options) => inspect::run(options, &mut display),
            Job::Apply(options) => apply::run(options, &mut display),
            Job::Doctor(options) => doctor::run(options, &mut display),
        };
        display.finish();
        outcome.unwrap_or_else(|error| {
            display.error(&error);
            ExitCode::from(&error)
        })
    }
}
