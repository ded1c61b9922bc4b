//! Raw flags to validated options: what a job is given. Nothing below knows clap.

use super::apply::ApplyOptions;
use super::args::{
    ApplyArgs, BenchArgs, EraseArgs, ExportArgs, HubArgs, MethodArgs, RunArgs, SampleArgs, SamplingArgs, VerifyArgs,
};
use super::checks::{at_least_one, check_output, device, format, fraction, lora, model_name, precision};
use super::concepts::{concept, default_model, preserve};
use super::export::ExportOptions;
use super::output::Style;
use crate::bench::Grid;
use crate::checkpoint::{Copying, Format, Precision, lora};
use crate::concept::{Concept, Kind, nearest};
use crate::diffusion::Sampler;
use crate::erase::memory::Budget;
use crate::hub::{DEFAULT_MODEL, Lookup};
use crate::nn::Devices;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Denoising steps of a verification picture where the user says nothing.
const VERIFY_STEPS: usize = 8;

/// More threads than this are a slip of the keyboard, and would take the machine down.
const MAX_THREADS: usize = 1024;

/// How to run any job.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// How progress is shown.
    pub style: Style,
    /// Threads to compute with; one a core if `None`.
    pub threads: Option<usize>,
}

/// How pictures are sampled; `None` is the job's or the model's default.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
    /// Sampler.
    pub sampler: Option<Sampler>,
}

/// Changes to a preset; `None` leaves a setting as the preset has it.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields are the settings of the same names")]
pub struct Overrides {
    pub kept: Option<f64>,
    pub other_words: Option<usize>,
    pub edit: Option<f64>,
    pub repair_steps: Option<usize>,
    pub learning_rate: Option<f64>,
    pub lambda: Option<f64>,
    pub batch_size: Option<usize>,
    pub score_batches: Option<usize>,
    pub memories: Option<usize>,
    pub memory_every: Option<usize>,
    pub margin: Option<f64>,
    pub score_scope: Option<String>,
    pub trim_scope: Option<String>,
    pub train_scope: Option<String>,
    pub project_scope: Option<String>,
    pub forget_latents: Option<usize>,
    pub retain_latents: Option<usize>,
    pub data_steps: Option<usize>,
}

/// How the result is verified.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The rate above which the job ends with exit code 1.
    pub max_rate: Option<f64>,
    /// The same for synonyms.
    pub max_synonym_rate: Option<f64>,
    /// Pictures of the concept.
    pub images: usize,
    /// Pictures of its synonyms.
    pub synonym_images: usize,
    /// Pictures of everything else.
    pub retain_images: usize,
    /// Denoising steps of each.
    pub steps: usize,
    /// Seed of the first picture.
    pub seed: u64,
    /// Whether every picture is written.
    pub keep_images: bool,
    /// Whether pictures of kind content are shown as they are.
    pub show: bool,
}

/// The erase job.
#[derive(Debug, Clone)]
pub struct EraseOptions {
    /// What to erase, and what to preserve.
    pub concept: Concept,
    /// The names, files or texts that it was made from.
    pub concept_arguments: Vec<String>,
    /// Its kind, where that had to be said.
    pub kind: Option<Kind>,
    /// What `--preserve` says, as it was given.
    pub preserve_arguments: Vec<String>,
    /// The model's name, folder or file.
    pub model: String,
    /// How it is looked for.
    pub lookup: Lookup,
    /// Seed of all randomness.
    pub seed: u64,
    /// The preset's name.
    pub preset: String,
    /// Changes to it.
    pub overrides: Overrides,
    /// How pictures are sampled.
    pub sampling: Sampling,
    /// How the result is verified.
    pub verify: VerifyOptions,
    /// Where the result goes.
    pub output: PathBuf,
    /// What the model is written as; as the base is if empty.
    pub formats: Vec<Format>,
    /// How files that are not edited get there.
    pub copying: Copying,
    /// How a LoRA is made.
    pub lora: lora::Options,
    /// Whether a folder there is replaced.
    pub overwrite: bool,
    /// Whether to stop before the work.
    pub dry_run: bool,
    /// Where latents are kept between runs.
    pub cache: Option<PathBuf>,
    /// Memory that may be used.
    pub budget: Budget,
    /// How weights are kept in memory.
    pub precision: Precision,
    /// What computes.
    pub device: Devices,
    /// Whether `f32` matrices are multiplied in TF32 there.
    pub tf32: bool,
}

/// The bench job.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// What is compared.
    pub grid: Grid,
    /// The model's name or folder.
    pub model: String,
    /// How it is looked for on the Hub.
    pub lookup: Lookup,
    /// Each concept with each seed; what they say of the method is not used.
    pub jobs: Vec<EraseOptions>,
    /// Where the results are kept.
    pub output: PathBuf,
    /// Memory that may be used.
    pub budget: Budget,
    /// How weights are kept in memory.
    pub precision: Precision,
    /// What computes.
    pub device: Devices,
    /// Whether `f32` matrices are multiplied in TF32 there.
    pub tf32: bool,
}

/// The sample job.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// The prompts.
    pub prompts: Vec<String>,
    /// The negative prompt of all of them.
    pub negative_prompt: String,
    /// Pictures of each prompt.
    pub num_images: usize,
    /// The model's name, folder or file.
    pub model: String,
    /// How it is looked for.
    pub lookup: Lookup,
    /// Seed of the first picture.
    pub seed: u64,
    /// How pictures are sampled.
    pub sampling: Sampling,
    /// Noise added in each DDIM step.
    pub eta: f64,
    /// Pictures rendered at a time.
    pub batch_size: usize,
    /// Where the pictures go.
    pub output: PathBuf,
    /// Whether a folder there is replaced.
    pub overwrite: bool,
    /// How weights are kept in memory.
    pub precision: Precision,
    /// What computes.
    pub device: Devices,
    /// Whether `f32` matrices are multiplied in TF32 there.
    pub tf32: bool,
}

impl TryFrom<&RunArgs> for RunOptions {
    type Error = Error;

    fn try_from(args: &RunArgs) -> Result<Self> {
        device(args)?;
        if let Some(threads) = args.threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
            return Err(Error::usage(format!("--threads {threads} must lie between 1 and {MAX_THREADS}")));
        }
        let style = Style::decide(args.json, args.quiet, args.verbose);
        Ok(Self { style, threads: args.threads })
    }
}

impl RunOptions {
    /// Of a job that only looks and prints one document.
    pub(super) fn of_document(json: bool) -> Self {
        Self { style: Style::decide(json, false, false), threads: None }
    }
}

impl From<&ApplyArgs> for ApplyOptions {
    fn from(args: &ApplyArgs) -> Self {
        Self {
            model: args.model.clone(),
            lookup: Lookup::from(&args.hub),
            change: args.change.clone(),
            output: args.output.clone(),
            overwrite: args.overwrite,
            reverse: args.reverse,
            strength: args.strength,
        }
    }
}

impl TryFrom<&SamplingArgs> for Sampling {
    type Error = Error;

    fn try_from(args: &SamplingArgs) -> Result<Self> {
        let steps = args.steps.map(|steps| at_least_one("--steps", steps)).transpose()?;
        if let Some(scale) = args.guidance_scale.filter(|scale| !(scale.is_finite() && *scale >= 0.0)) {
            return Err(Error::usage(format!(
                "--guidance-scale {scale} must be a number from 0 up; 1 means no guidance"
            )));
        }
        let sampler = args.scheduler.as_deref().map(Sampler::from_str).transpose();
        let sampler = sampler.map_err(|error| Error::usage(format!("--scheduler: {error}")))?;
        Ok(Self { steps, guidance_scale: args.guidance_scale, sampler })
    }
}

impl VerifyOptions {
    fn new(args: &VerifyArgs, sampling: &Sampling) -> Result<Self> {
        let steps = args.verify_steps.or(sampling.steps).unwrap_or(VERIFY_STEPS);
        Ok(Self {
            max_rate: fraction("--max-rate", args.max_rate)?,
            max_synonym_rate: fraction("--max-synonym-rate", args.max_synonym_rate)?,
            images: at_least_one("--verify-images", args.verify_images)?,
            synonym_images: at_least_one("--synonym-images", args.synonym_images)?,
            retain_images: at_least_one("--retain-images", args.retain_images)?,
            steps: at_least_one("--verify-steps", steps)?,
            seed: args.verify_seed,
            keep_images: args.keep_images,
            show: args.show,
        })
    }
}

impl From<&HubArgs> for Lookup {
    fn from(args: &HubArgs) -> Self {
        Self { revision: args.revision.clone(), offline: args.offline, allow_pickle: args.allow_pickle }
    }
}

impl From<&MethodArgs> for Overrides {
    fn from(args: &MethodArgs) -> Self {
        let args = args.clone();
        Self {
            kept: args.kept,
            other_words: args.other_words,
            edit: args.edit,
            repair_steps: args.repair_steps,
            learning_rate: args.learning_rate,
            lambda: args.lambda,
            batch_size: args.batch_size,
            score_batches: args.score_batches,
            memories: args.memories,
            memory_every: args.memory_every,
            margin: args.margin,
            score_scope: args.score_scope,
            trim_scope: args.trim_scope,
            train_scope: args.train_scope,
            project_scope: args.project_scope,
            forget_latents: args.forget_latents,
            retain_latents: args.retain_latents,
            data_steps: args.data_steps,
        }
    }
}

impl TryFrom<&EraseArgs> for EraseOptions {
    type Error = Error;

    fn try_from(args: &EraseArgs) -> Result<Self> {
        let kind = args.kind.as_deref().map(Kind::from_str).transpose();
        let kind = kind.map_err(|error| Error::usage(format!("--kind: {error}")))?;
        let concept = concept(&args.concept, kind, &preserve(&args.preserve)?)?;
        let sampling = Sampling::try_from(&args.sampling)?;
        let mut overrides = Overrides::from(&args.method);
        overrides.data_steps = overrides.data_steps.or(sampling.steps);
        let verify = VerifyOptions::new(&args.verify, &sampling)?;
        let limits = [("--max-rate", verify.max_rate), ("--max-synonym-rate", verify.max_synonym_rate)];
        let unseen = concept.each().iter().find(|part| part.detect.labels.is_empty());
        if let (Some((flag, _)), Some(unseen)) = (limits.iter().find(|(_, limit)| limit.is_some()), unseen) {
            return Err(Error::usage(format!(
                "{flag} needs something that recognises '{}' in a picture, but the concept has no detect.labels; leave \
                 {flag} out, or write a concept file with labels",
                unseen.name
            )));
        }
        if verify.max_synonym_rate.is_some() && concept.verify.synonyms.is_empty() {
            return Err(Error::usage(format!(
                "--max-synonym-rate: the concept '{}' has no synonyms to verify",
                concept.name
            )));
        }
        let known = ["balanced", "paper", "official"];
        if !known.contains(&args.preset.as_str()) {
            let hint = nearest(&args.preset, &known).map_or_else(String::new, |name| format!("; did you mean {name}?"));
            return Err(Error::usage(format!(
                "--preset {} is not known; choose balanced, paper or official{hint}",
                args.preset
            )));
        }
        let (model, seed) = (args.model.model.clone().map_or_else(|| default_model(&concept), Ok)?, args.model.seed);
        let output = args.output.clone().unwrap_or_else(|| {
            PathBuf::from("erased").join(format!("{}-{}-s{seed}", concept.slug(), model_name(&model)))
        });
        check_output(
            &output,
            args.overwrite,
            [("--model", Some(Path::new(&model))), ("--cache", args.cache.as_deref())],
        )?;
        Ok(Self {
            concept,
            concept_arguments: args.concept.clone(),
            kind,
            preserve_arguments: args.preserve.clone(),
            model,
            lookup: Lookup::from(&args.model.hub),
            seed,
            preset: args.preset.clone(),
            overrides,
            sampling,
            verify,
            output,
            formats: args.format.iter().map(|name| format(name)).collect::<Result<_>>()?,
            copying: if args.link { Copying::Link } else { Copying::Copy },
            lora: lora(&args.lora)?,
            overwrite: args.overwrite,
            dry_run: args.dry_run,
            cache: args.cache.clone(),
            budget: Budget { limit: args.run.memory_limit, gpu: None },
            precision: precision(&args.run)?,
            device: device(&args.run)?,
            tf32: args.run.tf32,
        })
    }
}

impl TryFrom<&BenchArgs> for BenchOptions {
    type Error = Error;

    fn try_from(args: &BenchArgs) -> Result<Self> {
        let grid = Grid::resolve(&args.grid)?;
        let sampling = Sampling::try_from(&args.sampling)?;
        let verify = VerifyOptions::new(&args.verify, &sampling)?;
        let output = args.output.clone().unwrap_or_else(|| PathBuf::from("bench").join(&grid.name));
        let budget = Budget { limit: args.run.memory_limit, gpu: None };
        let (precision, device, tf32) = (precision(&args.run)?, device(&args.run)?, args.run.tf32);
        let mut jobs = Vec::new();
        for name in &args.concepts {
            let concept = Concept::resolve(name, None)?;
            for seed in &args.seeds {
                jobs.push(EraseOptions {
                    concept: concept.clone(),
                    concept_arguments: vec![name.clone()],
                    kind: None,
                    preserve_arguments: Vec::new(),
                    model: args.model.clone(),
                    lookup: Lookup::from(&args.hub),
                    seed: *seed,
                    preset: grid.name.clone(),
                    overrides: Overrides::default(),
                    sampling: sampling.clone(),
                    verify: verify.clone(),
                    output: output.clone(),
                    formats: Vec::new(),
                    copying: Copying::Copy,
                    lora: lora::Options::default(),
                    overwrite: false,
                    dry_run: false,
                    cache: None,
                    budget,
                    precision,
                    device: device.clone(),
                    tf32,
                });
            }
        }
        let (model, lookup) = (args.model.clone(), Lookup::from(&args.hub));
        Ok(Self { grid, model, lookup, jobs, output, budget, precision, device, tf32 })
    }
}

impl TryFrom<&ExportArgs> for ExportOptions {
    type Error = Error;

    fn try_from(args: &ExportArgs) -> Result<Self> {
        let others = [("MODEL", Some(Path::new(&args.model))), ("--cache", None)];
        check_output(&args.output, args.overwrite, others)?;
        Ok(Self {
            model: args.model.clone(),
            lookup: Lookup::from(&args.hub),
            format: format(&args.format)?,
            output: args.output.clone(),
            overwrite: args.overwrite,
            copying: if args.link { Copying::Link } else { Copying::Copy },
            base: args.base.clone(),
            lora: lora(&args.lora)?,
        })
    }
}

impl TryFrom<&SampleArgs> for SampleOptions {
    type Error = Error;

    fn try_from(args: &SampleArgs) -> Result<Self> {
        if !(0.0..=1.0).contains(&args.eta) {
            return Err(Error::usage(format!("--eta {} must lie between 0 and 1", args.eta)));
        }
        let sampling = Sampling::try_from(&args.sampling)?;
        if args.eta > 0.0 && sampling.sampler != Some(Sampler::Ddim) {
            return Err(Error::usage("--eta is a setting of DDIM; add --scheduler ddim"));
        }
        let (model, seed) = (args.model.model.clone().unwrap_or_else(|| DEFAULT_MODEL.into()), args.model.seed);
        let output = args.output.clone();
        if let Some(output) = &output {
            check_output(output, args.overwrite, [("--model", Some(Path::new(&model))), ("--cache", None)])?;
        }
        Ok(Self {
            prompts: args.prompt.clone(),
            negative_prompt: args.negative_prompt.clone(),
            num_images: at_least_one("--num-images", args.num_images)?,
            sampling,
            eta: args.eta,
            batch_size: at_least_one("--batch-size", args.batch_size)?,
            output: output.unwrap_or_else(|| PathBuf::from("samples").join(format!("{}-s{seed}", model_name(&model)))),
            overwrite: args.overwrite,
            precision: precision(&args.run)?,
            device: device(&args.run)?,
            tf32: args.run.tf32,
            model,
            lookup: Lookup::from(&args.model.hub),
            seed,
        })
    }
}
