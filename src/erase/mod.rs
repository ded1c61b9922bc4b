//! Scissorhands (Wu & Harandi, ECCV 2024): score, trim, repair with projected gradients.
//!
//! Knows nothing of files or of the terminal: a model, a concept and settings go in, changed tensors come out.

pub mod adam;
pub mod batch;
pub mod context;
pub mod data;
pub mod edit;
pub mod gradient;
pub mod loss;
pub mod memory;
pub mod other_words;
pub mod places;
pub mod project;
pub mod repair;
pub mod scope;
pub mod score;
pub mod select;
pub mod settings;
pub mod student;
pub mod trim;

pub use data::{Data, Latents};
pub use other_words::OtherWord;
pub use repair::StepRecord;
pub use scope::Scope;
pub use settings::Settings;
pub use trim::TrimSummary;

use crate::Result;
use crate::concept::Concept;
use crate::diffusion::{self, Generator, Schedule};
use crate::nn::ParamStore;
use crate::progress::{Event, Progress, check_interrupted};
use crate::sd::{Conditions, StableDiffusion};
use batch::Loader;
use candle_core::{Device, Tensor};
use memory::{Budget, Need, Thrift};
use places::Places;
use repair::{Embeddings, Repair};
use settings::ScoreLoss;
use std::collections::BTreeMap;

/// What an erasure changed and how it went.
pub struct Outcome {
    /// New values of every UNet tensor that was trained or trimmed, in f32, by name, on the CPU.
    pub changed: BTreeMap<String, Tensor>,
    /// Words that were tried for meaning the concept too, nearest first.
    pub other_words: Vec<OtherWord>,
    /// What was trimmed.
    pub trim: TrimSummary,
    /// Each repair step.
    pub losses: Vec<StepRecord>,
}

/// Names of each scope; checked before any work is done.
struct Scopes {
    score: Vec<String>,
    trim: Vec<String>,
    train: Vec<String>,
    project: Vec<String>,
}

impl Scopes {
    fn new(settings: &Settings, params: &ParamStore) -> Result<Self> {
        let names: Vec<&String> = params.tensors().keys().collect();
        let select = |scope: &Scope| scope.select(names.iter().copied());
        let (score, train) = (select(&settings.score_scope)?, select(&settings.train_scope)?);
        let trim = select(&settings.trim_scope)?.into_iter().filter(|n| score.contains(n)).collect::<Vec<_>>();
        let project = select(&settings.project_scope)?.into_iter().filter(|n| train.contains(n)).collect::<Vec<_>>();
        for (what, of, names) in [("trim", "score", &trim), ("project", "train", &project)] {
            if names.is_empty() {
                return Err(crate::Error::usage(format!(
                    "--{what}-scope and --{of}-scope have no parameter in common; what is {what}med must be {of}d"
                )));
            }
        }
        Ok(Self { score, trim, train, project })
    }
}

/// How a job is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What is done to save memory; the result is the same but for rounding.
    pub thrift: Thrift,
    /// The memory that it takes, about, all in.
    pub memory: u64,
}

/// Checks settings against the model without doing any work: what `--dry-run` does.
///
/// # Errors
/// If a setting makes no sense, a scope matches nothing, or the memory is too little.
pub fn plan(model: &StableDiffusion, settings: &Settings, budget: Budget) -> Result<Plan> {
    settings.check()?;
    diffusion::timesteps(settings.data.sampler, &Schedule::new(&model.scheduler)?, settings.data.steps)?;
    let scopes = Scopes::new(settings, &model.unet_params)?;
    let count = |names: &[String]| memory::count(&model.unet_params, names);
    let side = model.latent_size();
    let need = Need::new(model, settings, (count(&scopes.score), count(&scopes.train)), (side, side));
    let (thrift, memory) = need.within(budget)?;
    Ok(Plan { thrift, memory })
}

/// How many devices have work at a time: no more than a batch has shares.
fn with_work(model: &StableDiffusion, data: &Data, settings: &Settings, thrift: Thrift) -> Result<usize> {
    let (_, _, height, width) = data.forget.latents.dims4()?;
    let count = |sizes: &[usize]| gradient::shares(sizes, height * width, thrift, !model.device().is_cpu()).count;
    let (forget, retain) = (settings.forget_batch, settings.retain_batch);
    Ok(count(&[forget]).max(count(&[forget, retain])))
}

/// Scores, trims and repairs `model`'s UNet, which itself is left as it is.
///
/// # Errors
/// If a setting makes no sense, a gradient is missing or not finite, or the user interrupts.
pub fn scissorhands(
    model: &StableDiffusion,
    concept: &Concept,
    data: &Data,
    settings: &Settings,
    seed: u64,
    plan: Plan,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    settings.check()?;
    let base = &model.unet_params;
    let scopes = Scopes::new(settings, base)?;
    let schedule = Schedule::new(&model.scheduler)?;
    // One stream a stage, so that changing one stage's settings does not change what another draws.
    let stream = |stage: u64| Generator::new(seed.wrapping_add(stage << 24));
    let other_words = match settings.other_words {
        0 => Vec::new(),
        _ => other_words::search(model, concept, &data.forget, settings, &mut stream(4), progress)?,
    };
    let (forget, anchors) = other_words::widen(concept, &data.forget, &other_words)?;
    let data = &Data { forget, retain: data.retain.clone() };
    let embeddings = Embeddings {
        forget: model.embed(&data.forget.prompts)?,
        anchors: model.embed(&anchors)?,
        retain: model.embed(&data.retain.prompts)?,
        empty: model.embed_negative(&[""])?,
    };
    let bases: Vec<&ParamStore> =
        model.everywhere().map(|copy| &copy.unet_params).take(with_work(model, data, settings, plan.thrift)?).collect();
    let embeddings = bases.iter().map(|base| embeddings.on(base.device())).collect::<Result<Vec<_>>>()?;
    model.make_room()?;

    let scores = {
        let mut params = base.clone();
        params.make_trainable(&scopes.score)?;
        let places = Places::new(&model.unet_config, &params, &bases, std::iter::empty(), plan.thrift)?;
        let trained = places.trained();
        let passes = if settings.contrast { 2 } else { 1 };
        progress.event(Event::Stage { name: "scoring", steps: passes * settings.score_batches });
        let mut noise = stream(1);
        let mut sensitivity =
            |latents: &Latents, prompts: fn(&Embeddings) -> &Conditions| -> Result<score::Sensitivity> {
                let mut batches =
                    Loader::new(latents, &schedule, settings.forget_batch, settings.batches, settings.timesteps);
                let mut sensitivity = score::Sensitivity::default();
                for _ in 0..settings.score_batches {
                    check_interrupted()?;
                    let batch = batches.next(&mut noise)?;
                    let (gradients, value) = gradient::of_batch(&batch, &trained, |place, part, unet| {
                        let embeddings = &embeddings[place];
                        let conditions = part.conditions(prompts(embeddings))?;
                        match settings.score_loss {
                            ScoreLoss::Plain => loss::denoising(unet, part, &conditions),
                            ScoreLoss::Guided => {
                                let uncond = embeddings.empty.select(&vec![0; conditions.rows()])?;
                                loss::guided_denoising(unet, part, &conditions, &uncond)
                            }
                        }
                    })?;
                    sensitivity.add(&gradients)?;
                    progress.event(Event::Step { loss: Some(value) });
                }
                Ok(sensitivity)
            };
        let mut forget = sensitivity(&data.forget, |all| &all.forget)?;
        if settings.contrast {
            forget.contrast(&sensitivity(&data.retain, |all| &all.retain)?)?;
        }
        forget.scores(&params)?
    };

    progress.event(Event::Stage { name: "trimming", steps: 1 });
    let mut trimmed = base.clone();
    trimmed.make_trainable(&scopes.trim)?;
    let trim = trim::trim(&trimmed, &scores, settings.kept, &scopes.trim, settings.init, &mut stream(2))?;
    drop(scores);
    progress.event(Event::Step { loss: None });

    let mut params = trimmed.frozen_copy()?;
    params.make_trainable(&scopes.train)?;
    // of every retain prompt; text encoders come back for it
    let kept = match settings.edit > 0.0 || settings.context != 0.0 {
        true => Some(model.embed(&concept.retain)?.context),
        false => None,
    };
    model.make_room()?;
    if let Some(kept) = kept.as_ref().filter(|_| settings.edit > 0.0) {
        let first = &embeddings[0];
        let texts = edit::Texts {
            forget: &first.forget.context,
            anchors: &first.anchors.context,
            retain: kept,
            empty: &first.empty.context,
            unconditional: settings.unconditional,
            push: settings.push,
        };
        edit::Edit::new(&texts, settings.edit)?.apply(&params, base)?;
    }
    let context = match &kept {
        Some(kept) if settings.context != 0.0 => Some(context::KeptContext::new(base, &scopes.train, kept)?),
        _ => None,
    };
    drop(kept);
    let places =
        Places::new(&model.unet_config, &params, &bases, scopes.trim.iter().chain(&scopes.train), plan.thrift)?;
    let repair = Repair {
        config: &model.unet_config,
        params: &params,
        places: &places,
        bases: &bases,
        schedule: &schedule,
        data,
        embeddings: &embeddings,
        settings,
        context: context.as_ref(),
        project: &scopes.project,
        thrift: plan.thrift,
    };
    let losses = repair.run(&mut stream(3), progress)?;

    let names = scopes.train.iter().chain(trim.trimmed.keys());
    // what is written, and kept in a cache, is in the machine's own memory
    let host = |tensor: Tensor| if tensor.device().is_cpu() { tensor.copy() } else { tensor.to_device(&Device::Cpu) };
    let changed = names.map(|name| Ok((name.clone(), host(params.get(name)?.detach())?))).collect::<Result<_>>()?;
    Ok(Outcome { changed, other_words, trim, losses })
}
