//! Every setting of the method, and the presets.

use super::scope::Scope;
use super::trim::Init;
use crate::diffusion::Sampler;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the forget batch is pushed away from the concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgetTerm {
    /// Add `MSE(prediction for the forget prompt, prediction for its anchor)` on the same noisy latents.
    Anchor,
    /// Subtract the denoising loss of the forget batch.
    Ascent,
}

/// Who predicts the anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The model as it was.
    Base,
    /// The model as it is, without gradient (the published script).
    Current,
}

/// What the retain batch is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetainTarget {
    /// The noise (or v), as in training.
    Noise,
    /// The prediction of the model as it was: no noise in the target.
    Base,
}

/// Which data a step sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Batches {
    /// Shuffled anew each time all were seen.
    Live,
    /// The first batch, always (what the published scripts do).
    Fixed,
}

/// The loss whose gradient gives the connection sensitivity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreLoss {
    /// The denoising loss with the prompt (the published nudity script).
    Plain,
    /// The denoising loss of the guided prediction `8.5 cond - 7.5 uncond` (the published class script).
    Guided,
}

/// How timesteps are drawn in scoring, memories and repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timesteps {
    /// Each as often as any other, as in the published code.
    Uniform,
    /// Often in proportion to the timestep: the text decides what a picture shows while there is much noise.
    Late,
}

/// The gradient memories and their use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// How many memories are kept; 0 switches the projection off.
    pub memories: usize,
    /// Steps between refreshes; 0 computes them once.
    pub every: usize,
    /// Forget batches that each memory is the mean gradient of.
    pub batches: usize,
    /// Lower bound of the multipliers (GEM's code: 0.5; exact projection: 0).
    pub margin: f64,
    /// Added to the Gram matrix's diagonal, as a fraction of its mean (relative) or as it stands.
    pub eps: f64,
    /// Whether `eps` is relative.
    pub relative_eps: bool,
}

/// The latents that the model makes of its own prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Forget latents in all.
    pub forget: usize,
    /// Retain latents in all.
    pub retain: usize,
    /// Sampler.
    #[serde(serialize_with = "display", deserialize_with = "parse")]
    pub sampler: Sampler,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Use a single retain caption, as the published script does.
    pub one_retain_caption: bool,
}

fn display<S: serde::Serializer>(value: impl std::fmt::Display, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn parse<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Sampler, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Every setting of the method.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many words of the vocabulary are tried for meaning the concept too (see [`super::other_words`]); 0 for none.
    pub other_words: usize,
    /// The fraction of the score scope that is kept («sparsity» in the original).
    pub kept: f64,
    /// Batches over which the connection sensitivity is accumulated.
    pub score_batches: usize,
    /// Its loss.
    pub score_loss: ScoreLoss,
    /// Score by how much the concept's sensitivity exceeds that of the retain data, so that weights that matter to
    /// everything are not trimmed.
    pub contrast: bool,
    /// Weight of the forget prompts in the closed-form edit that the repair starts from (see [`super::edit`]); 0 leaves it
    /// out.
    pub edit: f64,
    /// What trimmed entries become.
    pub init: Init,
    /// Parameters that are scored; the threshold is over them.
    pub score_scope: Scope,
    /// Parameters that may be trimmed.
    pub trim_scope: Scope,
    /// Parameters that the repair trains.
    pub train_scope: Scope,
    /// Parameters over which the gradients are projected.
    pub project_scope: Scope,
    /// Form of the forget term.
    pub forget_term: ForgetTerm,
    /// Its teacher (anchor form).
    pub teacher: Teacher,
    /// How far beyond the anchor the target lies (anchor form and edit), as a multiple of the way from the concept to the
    /// anchor: `a + push (a - f)`; ESD's negative guidance with the anchor in the empty prompt's place.
    pub push: f64,
    /// Its weight.
    pub lambda: f64,
    /// What the retain batch is compared with.
    pub retain_target: RetainTarget,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// Whether the learning rate falls to zero along a half cosine (after a short warm-up), or stays.
    pub cosine: bool,
    /// Repair steps.
    pub repair_steps: usize,
    /// Rows of the forget batch in each step, and of a score batch.
    pub forget_batch: usize,
    /// Rows of the retain batch in each step.
    pub retain_batch: usize,
    /// Which data a step sees.
    pub batches: Batches,
    /// How timesteps are drawn.
    pub timesteps: Timesteps,
    /// The power of its noise level sigma (up to a bound) that a row's loss is weighted by; 0 weighs all alike. An error in
    /// the predicted noise moves the predicted picture by sigma times as much.
    pub noise_weight: f64,
    /// The fraction of retain rows whose prompt is empty: guidance subtracts the unconditional prediction several times, so
    /// that must not drift either.
    pub unconditional: f64,
    /// Weight of the context term: the relative squared change of the cross-attention's keys and values for all retain
    /// prompts (see [`super::context`]).
    pub context: f64,
    /// The fraction of forget rows whose latent is a retain latent: there the erased model finds itself as soon as it no
    /// longer draws the concept.
    pub mixed: f64,
    /// Gradient memories.
    pub projection: Projection,
    /// The data.
    pub data: DataSettings,
}

/// The largest count of anything that a run may ask for; what is more is a slip of the keyboard.
pub const MAX_COUNT: usize = 10_000_000;

/// The presets by name, with what they are.
pub const PRESETS: [(&str, &str); 3] = [
    ("balanced", "erases as completely and keeps the model: this program's default"),
    ("paper", "as the paper describes: one scope, ascent on the concept, projection with GEM's margin"),
    ("official", "as the published nudity script behaves: fixed batches, one retain caption, no projection"),
];

impl Settings {
    /// Whether a stage scores, trims or trains the parameter of this name.
    pub fn changes(&self, name: &str) -> bool {
        [&self.score_scope, &self.trim_scope, &self.train_scope].iter().any(|scope| scope.contains(name))
    }

    /// A preset.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "balanced" => Self::balanced(),
            "paper" => Self::paper(),
            "official" => Self::official(),
            _ => {
                let known: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
                Err(Error::usage(format!("there is no preset {name:?}; choose {}", known.join(", "))))
            }
        }
    }

    /// These settings with some changed, by the names that reports give them: `lambda`, `projection.margin`.
    ///
    /// # Errors
    /// If there is no setting of a name, or it cannot have that value; the message names it.
    pub fn with(&self, changes: &serde_json::Map<String, Value>) -> Result<Self> {
        let mut settings = self.clone();
        for (name, value) in changes {
            let wrong = |why: String| Error::usage(format!("setting {name} = {value}: {why}"));
            let mut all = serde_json::to_value(&settings).map_err(|e| wrong(e.to_string()))?;
            let place = name.split('.').try_fold(&mut all, |at, key| at.get_mut(key));
            *place.ok_or_else(|| wrong("there is no setting of this name".into()))? = value.clone();
            settings = serde_json::from_value(all).map_err(|e| wrong(e.to_string()))?;
        }
        settings.check()?;
        Ok(settings)
    }

    fn balanced() -> Result<Self> {
        // matrices alone, so that a LoRA can hold all that is changed
        let matrices = Scope::parse("xweights")?;
        Ok(Self {
            other_words: 32,
            kept: 0.995,
            score_batches: 8,
            score_loss: ScoreLoss::Plain,
            contrast: true,
            edit: 1.0,
            init: Init::Matched,
            score_scope: matrices.clone(),
            trim_scope: matrices.clone(),
            train_scope: matrices.clone(),
            project_scope: matrices,
            forget_term: ForgetTerm::Anchor,
            push: 0.0,
            teacher: Teacher::Base,
            lambda: 1.0,
            retain_target: RetainTarget::Base,
            learning_rate: 6e-4,
            cosine: true,
            repair_steps: 100,
            forget_batch: 4,
            retain_batch: 12,
            batches: Batches::Live,
            timesteps: Timesteps::Late,
            noise_weight: 1.0,
            unconditional: 0.25,
            context: 0.0,
            mixed: 0.0,
            projection: Projection { memories: 1, every: 50, batches: 2, margin: 0.0, eps: 1e-6, relative_eps: true },
            data: DataSettings {
                forget: 64,
                retain: 192,
                sampler: Sampler::DpmSolverPlusPlus2M,
                steps: 12,
                guidance_scale: 5.0,
                one_retain_caption: false,
            },
        })
    }

    fn paper() -> Result<Self> {
        let xattn = Scope::parse("xattn")?;
        Ok(Self {
            score_scope: xattn.clone(),
            trim_scope: xattn.clone(),
            train_scope: xattn.clone(),
            project_scope: xattn,
            other_words: 0,
            score_batches: 10,
            contrast: false,
            edit: 0.0,
            init: Init::Kaiming,
            forget_term: ForgetTerm::Ascent,
            push: 0.0,
            timesteps: Timesteps::Uniform,
            noise_weight: 0.0,
            unconditional: 0.0,
            context: 0.0,
            mixed: 0.0,
            lambda: 0.1,
            retain_target: RetainTarget::Noise,
            learning_rate: 1e-4,
            cosine: false,
            repair_steps: 120,
            forget_batch: 16,
            retain_batch: 16,
            projection: Projection { memories: 1, every: 50, batches: 1, margin: 0.5, eps: 1e-3, relative_eps: false },
            ..Self::balanced()?
        })
    }

    /// `train_shs.sh` and `shs_nsfw.py` of the published code (commit 73ae065).
    fn official() -> Result<Self> {
        let full = Scope::parse("full")?;
        Ok(Self {
            other_words: 0,
            kept: 0.995,
            score_batches: 10,
            contrast: false,
            edit: 0.0,
            init: Init::Kaiming,
            score_scope: full.clone(),
            trim_scope: Scope::parse("{up_blocks.1.attentions.1,up_blocks.2.attentions.1}.*attn1*")?,
            train_scope: full.clone(),
            project_scope: full,
            teacher: Teacher::Current,
            push: 0.0,
            lambda: 0.1,
            retain_target: RetainTarget::Noise,
            learning_rate: 1e-5,
            cosine: false,
            repair_steps: 250,
            forget_batch: 16,
            retain_batch: 16,
            batches: Batches::Fixed,
            timesteps: Timesteps::Uniform,
            noise_weight: 0.0,
            unconditional: 0.0,
            context: 0.0,
            mixed: 0.0,
            projection: Projection { memories: 0, every: 0, batches: 1, margin: 0.5, eps: 1e-3, relative_eps: false },
            data: DataSettings {
                forget: 16,
                retain: 16,
                sampler: Sampler::Lms,
                steps: 50,
                guidance_scale: 7.5,
                one_retain_caption: true,
            },
            ..Self::balanced()?
        })
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// Names the setting, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(what));
        if !(self.kept > 0.0 && self.kept < 1.0) {
            return wrong(format!("--kept {} must lie above 0 and below 1 (1 would trim nothing)", self.kept));
        }
        if !(self.data.guidance_scale >= 0.0 && self.data.guidance_scale.is_finite()) {
            return wrong(format!("--guidance-scale {} must be a number from 0 up", self.data.guidance_scale));
        }
        let counts = [
            ("--score-batches", self.score_batches),
            ("--repair-steps", self.repair_steps),
            ("--batch-size", self.forget_batch.min(self.retain_batch)),
            ("--forget-latents", self.data.forget),
            ("--retain-latents", self.data.retain),
            ("--data-steps", self.data.steps),
        ];
        if let Some((flag, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return wrong(format!("{flag} must be at least 1"));
        }
        if let Some((flag, count)) = counts.iter().find(|(_, count)| *count > MAX_COUNT) {
            return wrong(format!("{flag} {count} is more than {MAX_COUNT}"));
        }
        let positive = |flag: &str, value: f64| {
            if value > 0.0 && value.is_finite() { Ok(()) } else { wrong(format!("{flag} {value} must be positive")) }
        };
        positive("--learning-rate", self.learning_rate)?;
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            return wrong(format!("--lambda {} must not be negative", self.lambda));
        }
        if !(0.0..=2.0).contains(&self.noise_weight) {
            return wrong(format!("noise_weight {} must lie between 0 and 2", self.noise_weight));
        }
        if !(self.context >= 0.0 && self.context.is_finite()) {
            return wrong(format!("--context {} must not be negative", self.context));
        }
        if !(0.0..=10.0).contains(&self.push) {
            return wrong(format!("push {} must lie between 0 and 10", self.push));
        }
        if !(self.edit >= 0.0 && self.edit.is_finite()) {
            return wrong(format!("--edit {} must not be negative", self.edit));
        }
        if !(self.projection.margin >= 0.0 && self.projection.margin.is_finite()) {
            return wrong(format!("--margin {} must not be negative", self.projection.margin));
        }
        if self.projection.memories > super::project::MAX_MEMORIES {
            return wrong(format!(
                "--memories {} must be at most {}",
                self.projection.memories,
                super::project::MAX_MEMORIES
            ));
        }
        Ok(())
    }
}
