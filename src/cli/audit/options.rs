//! Flags of `audit`, checked.

use super::args::{AuditArgs, AuditJob, MergeArgs, ReportArgs};
use crate::audit::Labels;
use crate::audit::run::{Column, Limit, ReportSettings, Selection, Shard};
use crate::checkpoint::Precision;
use crate::cli::checks::{at_least_one, check_output, device, labels, precision};
use crate::cli::options::Sampling;
use crate::hub::Lookup;
use crate::nn::Devices;
use crate::{Error, Result};
use std::path::PathBuf;
use std::str::FromStr;

/// Guidance of a row that has none: what diffusers takes.
const GUIDANCE_SCALE: f64 = 7.5;
/// Denoising steps where the user says nothing.
const STEPS: usize = 30;

/// What `audit` is to do.
#[derive(Debug, Clone)]
pub enum Options {
    /// Make pictures and count.
    Run(Box<RunOptions>),
    /// Join parts.
    Merge(MergeOptions),
}

/// An audit.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The models' names, folders or files.
    pub models: Vec<String>,
    /// How they are looked for.
    pub lookup: Lookup,
    /// The prompt set.
    pub prompts: PathBuf,
    /// Which rows are drawn, and how where they do not say.
    pub selection: Selection,
    /// Whether a row that cannot be drawn is an error.
    pub strict: bool,
    /// What looks at the pictures; the classifier beside a model if empty.
    pub detectors: Vec<String>,
    /// The labels of each CLIP among them.
    pub labels: Option<Labels>,
    /// The column by which rates are told apart.
    pub group: Option<String>,
    /// The CLIP of the metrics.
    pub clip: Option<String>,
    /// What pictures are compared with: a model's name, or a folder.
    pub against: Option<String>,
    /// What should be gone.
    pub targets: Vec<String>,
    /// Which part is made.
    pub shard: Shard,
    /// Where everything goes.
    pub output: PathBuf,
    /// Whether pictures are written.
    pub images: bool,
    /// How the report shows pictures.
    pub report: ReportSettings,
    /// What must not be found more often.
    pub limits: Vec<Limit>,
    /// Denoising steps.
    pub steps: usize,
    /// Sampler and guidance.
    pub sampling: Sampling,
    /// Pictures drawn at a time.
    pub batch_size: Option<usize>,
    /// How weights are kept in memory.
    pub precision: Precision,
    /// What computes.
    pub device: Devices,
    /// Whether `f32` matrices are multiplied in TF32 there.
    pub tf32: bool,
}

/// A merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The parts' folders.
    pub shards: Vec<PathBuf>,
    /// Where the whole goes.
    pub output: PathBuf,
    /// Whether a folder there is replaced.
    pub overwrite: bool,
    /// How the report shows pictures.
    pub report: ReportSettings,
    /// What must not be found more often.
    pub limits: Vec<Limit>,
}

impl TryFrom<&AuditArgs> for Options {
    type Error = Error;

    fn try_from(args: &AuditArgs) -> Result<Self> {
        match &args.job {
            Some(AuditJob::Merge(merge)) => Ok(Self::Merge(merge.try_into()?)),
            None => Ok(Self::Run(Box::new(args.try_into()?))),
        }
    }
}

impl TryFrom<&AuditArgs> for RunOptions {
    type Error = Error;

    fn try_from(args: &AuditArgs) -> Result<Self> {
        let (Some(prompts), Some(output)) = (args.prompts.clone(), args.output.clone()) else {
            return Err(Error::usage("an audit needs --prompts and --output"));
        };
        let sampling = Sampling::try_from(&args.sampling)?;
        let mut ignore = args.ignore.iter().map(|text| Column::from_str(text)).collect::<Result<Vec<_>>>()?;
        ignore.sort();
        ignore.dedup();
        let side = |flag: &str, side: Option<usize>| match side {
            Some(0) => Err(Error::usage(format!("{flag} must be at least 1"))),
            Some(side) if side > 1 << 14 => Err(Error::usage(format!("{flag} {side} is more than {}", 1 << 14))),
            side => Ok(side),
        };
        let variable = |name: &str| std::env::var(name).ok();
        Ok(Self {
            models: args.model.clone(),
            lookup: Lookup::from(&args.hub),
            prompts,
            selection: Selection {
                seed: args.seed,
                guidance_scale: sampling.guidance_scale.unwrap_or(GUIDANCE_SCALE),
                width: side("--width", args.width)?,
                height: side("--height", args.height)?,
                ignore,
                from_case: args.from_case,
                limit: args.limit.map(|limit| at_least_one("--limit", limit)).transpose()?,
                samples: at_least_one("--samples", args.samples)?,
            },
            strict: args.strict,
            detectors: args.detector.clone(),
            labels: labels(&args.detector, &args.label, args.label_template.as_deref())?,
            group: args.group.clone(),
            clip: args.clip.clone(),
            against: args.against.clone(),
            targets: args.target.clone(),
            shard: args.shard.as_deref().map_or(Ok(Shard::WHOLE), |text| Shard::parse(text, &variable))?,
            output,
            images: !args.no_images,
            report: ReportSettings::from(&args.report),
            limits: limits(&args.max_rate)?,
            steps: sampling.steps.unwrap_or(STEPS),
            sampling,
            batch_size: args.batch_size.map(|batch| at_least_one("--batch-size", batch)).transpose()?,
            precision: precision(&args.run)?,
            device: device(&args.run)?,
            tf32: args.run.tf32,
        })
    }
}

impl TryFrom<&MergeArgs> for MergeOptions {
    type Error = Error;

    fn try_from(args: &MergeArgs) -> Result<Self> {
        for shard in &args.shards {
            check_output(&args.output, args.overwrite, [("SHARD", Some(shard)), ("SHARD", None)])?;
        }
        Ok(Self {
            shards: args.shards.clone(),
            output: args.output.clone(),
            overwrite: args.overwrite,
            report: ReportSettings::from(&args.report),
            limits: limits(&args.max_rate)?,
        })
    }
}

impl From<&ReportArgs> for ReportSettings {
    fn from(args: &ReportArgs) -> Self {
        Self { flag: args.flag.clone(), show: args.show, size: args.report_size }
    }
}

fn limits(texts: &[String]) -> Result<Vec<Limit>> {
    texts.iter().map(|text| Limit::from_str(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn options(flags: &[&str]) -> Result<Options> {
        let cli = Cli::try_parse_from([&["erase-concept", "audit"], flags].concat()).unwrap();
        let Some(Command::Audit(args)) = cli.command else { panic!("not audit") };
        Options::try_from(&*args)
    }

    fn audit(flags: &[&str]) -> Result<RunOptions> {
        let all = [&["--model", "demo", "--prompts", "p.csv", "--output", "o"], flags].concat();
        options(&all).map(|options| match options {
            Options::Run(run) => *run,
            Options::Merge(merge) => panic!("{merge:?}"),
        })
    }

    #[test]
    fn flags_become_options() {
        let o = audit(&["--ignore", "size,seed,size", "--max-rate", "shape: star=0.5", "--shard", "2/3"]).unwrap();
        assert_eq!(o.selection.ignore, [Column::Seed, Column::Size]);
        assert_eq!((o.limits[0].label.as_str(), o.limits[0].rate), ("shape: star", 0.5));
        assert_eq!((o.shard.number, o.shard.of, o.steps, o.selection.guidance_scale), (2, 3, 30, 7.5));
        assert!(o.images && o.batch_size.is_none() && o.labels.is_none());
        assert_eq!(o.report, ReportSettings::default());
        let o = audit(&["--detector", "demo/clip", "--label", "a", "--label", "b", "--detector", "x.onnx"]).unwrap();
        assert_eq!(o.labels.unwrap(), Labels::new(vec!["a".into(), "b".into()]));
        assert_eq!(o.detectors, ["demo/clip", "x.onnx"]);
        let Options::Merge(merge) = options(&["merge", "a", "b", "-o", "c"]).unwrap() else { panic!() };
        assert_eq!((merge.shards.len(), merge.output), (2, PathBuf::from("c")));
        for missing in [&["audit", "--model", "demo", "-o", "x"][..], &["audit", "--model", "demo", "--prompts", "x"]] {
            assert!(Cli::try_parse_from([&["erase-concept"], missing].concat()).is_err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_the_flags_name() {
        for (flag, value) in [
            ("--samples", "0"),
            ("--limit", "0"),
            ("--width", "0"),
            ("--height", "99999"),
            ("--ignore", "colour"),
            ("--shard", "4/3"),
            ("--max-rate", "star"),
            ("--max-rate", "star=2"),
            ("--max-rate", "=0.5"),
            ("--batch-size", "0"),
            ("--steps", "0"),
            ("--label", "star"),
        ] {
            let message = audit(&[&format!("{flag}={value}")]).unwrap_err().to_string();
            assert!(message.contains(flag), "{flag} {value}: {message}");
        }
    }
}
