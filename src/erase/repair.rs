//! Repair: the trimmed model is trained on the retain data, and away from the concept, with projected gradients.

use super::adam::Adam;
use super::batch::{Batch, Loader};
use super::context::KeptContext;
use super::data::Data;
use super::gradient::{self, Trained};
use super::loss::{denoising, mse};
use super::project::project;
use super::settings::{ForgetTerm, RetainTarget, Settings, Teacher};
use super::student::{Predictor, Student};
use crate::Result;
use crate::diffusion::{Generator, Schedule};
use crate::nn::{Gradients, ParamStore};
use crate::progress::{Event, Progress, check_interrupted};
use crate::sd::{Unet, UnetConfig};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// What one repair step saw; part of the report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// The retain term.
    pub retain: f32,
    /// The forget term, before its weight (and sign).
    pub forget: f32,
    /// The context term, before its weight.
    pub context: f32,
    /// Whether the step violated a memory and was projected.
    pub projected: bool,
    /// The largest multiplier of a memory.
    pub v: f64,
}

/// Text embeddings of every prompt that training uses, computed once, `(P, L, D)`.
pub struct Embeddings {
    /// Of the forget prompts.
    pub forget: Tensor,
    /// Of each forget prompt's anchor.
    pub anchors: Tensor,
    /// Of the retain prompts.
    pub retain: Tensor,
    /// Of the empty prompt, `(1, L, D)`.
    pub empty: Tensor,
}

/// Everything that a repair works with.
pub struct Repair<'a> {
    /// Architecture.
    pub config: &'a UnetConfig,
    /// The trimmed model; its trainable parameters change.
    pub params: &'a ParamStore,
    /// The model as it was.
    pub base: &'a ParamStore,
    /// Noise schedule and parametrisation.
    pub schedule: &'a Schedule,
    /// Latents.
    pub data: &'a Data,
    /// Text embeddings.
    pub embeddings: &'a Embeddings,
    /// Settings.
    pub settings: &'a Settings,
    /// Keys and values that are to stay, if the settings weigh them.
    pub context: Option<&'a KeptContext>,
    /// Names over which the gradients are projected.
    pub project: &'a [String],
    /// Whether blocks are computed again in the backward pass, to save memory.
    pub checkpointing: bool,
}

impl Repair<'_> {
    /// Runs all steps. Draws from `noise` alone, so the outcome depends on its seed.
    pub fn run(&self, noise: &mut Generator, progress: &mut dyn Progress) -> Result<Vec<StepRecord>> {
        let s = self.settings;
        progress.event(Event::Stage { name: "repairing", steps: s.repair_steps });
        let student = Unet::new(self.config, self.params)?;
        let base = Unet::new(self.config, &self.base.detached())?;
        let current = Unet::new(self.config, &self.params.detached())?;
        let mut forget = Loader::new(&self.data.forget, self.schedule, s.forget_batch, s.batches, s.timesteps);
        let mut retain = Loader::new(&self.data.retain, self.schedule, s.retain_batch, s.batches, s.timesteps);
        let mut adam = Adam::default();
        let mut memories: Vec<Gradients> = Vec::new();
        let mut records = Vec::with_capacity(s.repair_steps);
        for step in 0..s.repair_steps {
            check_interrupted()?;
            if self.memory_is_due(step) {
                memories = self.memories(&student, &mut forget, noise)?;
            }
            let f = forget.next_mixed(noise, Some(&self.data.retain), s.mixed)?;
            let r = retain.next(noise)?;
            let (mut gradients, mut record) = self.gradients(&student, &base, &current, &f, &r)?;
            if let Some(context) = self.context {
                record.context = context.add_gradient(self.params, s.context, &mut gradients)?;
            }
            if !memories.is_empty() {
                let p = &s.projection;
                let eps = if p.relative_eps { p.eps * mean_square(&memories, self.project)? } else { p.eps };
                let done = project(&mut gradients, &memories, self.project, p.margin, eps)?;
                record.projected = done.changed();
                record.v = done.v.iter().copied().fold(0.0, f64::max);
            }
            adam.step(self.params, &gradients, self.learning_rate(step))?;
            progress.event(Event::Step { loss: Some(f64::from(record.retain)) });
            records.push(record);
        }
        Ok(records)
    }

    fn trained<'u>(&'u self, unet: &'u Unet) -> Trained<'u> {
        Trained { unet, params: self.params, checkpointing: self.checkpointing }
    }

    fn memory_is_due(&self, step: usize) -> bool {
        let p = &self.settings.projection;
        p.memories > 0 && (step == 0 || (p.every > 0 && step.is_multiple_of(p.every)))
    }

    /// `m = -grad l(D_f)` of the model as it is, each over `projection.batches` batches.
    fn memories(&self, student: &Unet, forget: &mut Loader<'_>, noise: &mut Generator) -> Result<Vec<Gradients>> {
        let p = &self.settings.projection;
        let mut memories = Vec::with_capacity(p.memories);
        for _ in 0..p.memories {
            let mut sum = Gradients::new();
            let scale = -1.0 / p.batches.max(1) as f64;
            for _ in 0..p.batches.max(1) {
                check_interrupted()?;
                let batch = forget.next(noise)?;
                let (gradients, _) = gradient::of_batch(&batch, self.trained(student), |part, student| {
                    Ok((denoising(student, part, &part.context(&self.embeddings.forget)?)? * scale)?)
                })?;
                gradient::add(&mut sum, gradients)?;
            }
            memories.push(sum);
        }
        Ok(memories)
    }

    /// The gradients of the repair loss on one forget and one retain batch.
    fn gradients(
        &self,
        student: &Unet,
        base: &Unet,
        current: &Unet,
        f: &Batch,
        r: &Batch,
    ) -> Result<(Gradients, StepRecord)> {
        let (n_f, n_r) = (f.t.len(), r.t.len());
        let (_, _, height, width) = f.noisy.dims4()?;
        let shares = gradient::shares(&[n_f, n_r], height * width);
        let retain_context = self.retain_context(r)?;
        let (gradients, parts) = gradient::gradients(shares, self.trained(student), |i, student| {
            let count = shares.count;
            let (rows_f, rows_r) = (gradient::rows(n_f, i, count), gradient::rows(n_r, i, count));
            let retain =
                Part { batch: r.rows(&rows_r)?, context: gradient::narrow(&retain_context, &rows_r)?, of: n_r };
            let f = f.rows(&rows_f)?;
            let anchors = f.context(&self.embeddings.anchors)?;
            let forget = Part { context: f.context(&self.embeddings.forget)?, batch: f, of: n_f };
            let (forget_target, retain_target) = self.targets(base, current, &forget, &anchors, &retain)?;
            self.loss(student, (&forget, &forget_target), (&retain, &retain_target))
        })?;
        let mut record = StepRecord::default();
        for (retain, forget) in parts {
            record.retain += retain;
            record.forget += forget;
        }
        Ok((gradients, record))
    }

    /// What the forget and the retain rows are compared with, without a graph.
    fn targets(&self, base: &Unet, current: &Unet, f: &Part, anchors: &Tensor, r: &Part) -> Result<(Tensor, Tensor)> {
        let s = self.settings;
        let anchor = s.forget_term == ForgetTerm::Anchor;
        let teacher = if s.teacher == Teacher::Base { base } else { current };
        let pushed = |to: Tensor| -> Result<Tensor> {
            if s.push == 0.0 {
                return Ok(to);
            }
            let from = teacher.forward(&f.batch.noisy, &f.batch.t, &f.context)?;
            Ok(((&to * (1.0 + s.push))? - (from * s.push)?)?)
        };
        if (anchor, s.teacher, s.retain_target) == (true, Teacher::Base, RetainTarget::Base) {
            let (x, t) = f.and(r)?;
            let both = base.forward(&x, &t, &Tensor::cat(&[anchors, &r.context], 0)?)?;
            let retain = both.narrow(0, f.batch.t.len(), r.batch.t.len())?;
            return Ok((pushed(both.narrow(0, 0, f.batch.t.len())?)?, retain));
        }
        let forget = if anchor {
            pushed(teacher.forward(&f.batch.noisy, &f.batch.t, anchors)?)?
        } else {
            f.batch.target.clone()
        };
        let retain = match s.retain_target {
            RetainTarget::Base => base.forward(&r.batch.noisy, &r.batch.t, &r.context)?,
            RetainTarget::Noise => r.batch.target.clone(),
        };
        Ok((forget, retain))
    }

    /// A share's part of the repair loss, in one pass, and of its retain and forget terms.
    fn loss(
        &self,
        student: &Student<'_>,
        (f, forget_target): (&Part, &Tensor),
        (r, retain_target): (&Part, &Tensor),
    ) -> Result<(Tensor, (f32, f32))> {
        let (x, t) = f.and(r)?;
        let prediction = student.predict(&x, &t, &Tensor::cat(&[&f.context, &r.context], 0)?)?;
        let term = |first: usize, part: &Part, target: &Tensor| -> Result<Tensor> {
            let rows = part.batch.t.len();
            let mse = self.weighted_mse(&prediction.narrow(0, first, rows)?, target, &part.batch.t)?;
            Ok((mse * (rows as f64 / part.of as f64))?)
        };
        let forget = term(0, f, forget_target)?;
        let retain = term(f.batch.t.len(), r, retain_target)?;
        let found = (retain.to_scalar::<f32>()?, forget.to_scalar::<f32>()?);
        let s = self.settings;
        let weight = if s.forget_term == ForgetTerm::Anchor { s.lambda } else { -s.lambda };
        Ok(((retain + (forget * weight)?)?, found))
    }

    /// The retain prompts' embeddings, the first rows' replaced by the empty prompt's as the settings say.
    fn retain_context(&self, r: &Batch) -> Result<Tensor> {
        let context = r.context(&self.embeddings.retain)?;
        let rows = context.dim(0)?;
        let empty = ((rows as f64 * self.settings.unconditional).round() as usize).min(rows);
        if empty == 0 {
            return Ok(context);
        }
        let (_, length, features) = context.dims3()?;
        let unconditional = self.embeddings.empty.broadcast_as((empty, length, features))?;
        Ok(Tensor::cat(&[&unconditional, &context.narrow(0, empty, rows - empty)?], 0)?)
    }

    /// Mean squared error, each row weighted by `(min(sigma_t, 8) / 2)^p` with the settings' power p.
    fn weighted_mse(&self, prediction: &Tensor, target: &Tensor, t: &[f32]) -> Result<Tensor> {
        let power = self.settings.noise_weight;
        if power == 0.0 {
            return mse(prediction, target);
        }
        let root = |t: &f32| (self.schedule.sigma(f64::from(*t)).min(8.0) / 2.0).powf(power / 2.0) as f32;
        let roots = Tensor::from_vec(t.iter().map(root).collect(), (t.len(), 1, 1, 1), prediction.device())?;
        mse(&prediction.broadcast_mul(&roots)?, &target.broadcast_mul(&roots)?)
    }

    /// Constant, or a warm-up over the first twentieth and half a cosine to zero.
    fn learning_rate(&self, step: usize) -> f64 {
        let s = self.settings;
        if !s.cosine {
            return s.learning_rate;
        }
        let (step, steps) = (step as f64 + 0.5, s.repair_steps as f64);
        let warm = (step / (0.05 * steps).max(1.0)).min(1.0);
        s.learning_rate * warm * 0.5 * (1.0 + (std::f64::consts::PI * step / steps).cos())
    }
}

/// A share's rows of a batch of `of` rows, with their texts.
struct Part {
    batch: Batch,
    context: Tensor,
    of: usize,
}

impl Part {
    /// Latents and timesteps of both, these first.
    fn and(&self, other: &Self) -> Result<(Tensor, Vec<f32>)> {
        let t = self.batch.t.iter().chain(&other.batch.t).copied().collect();
        Ok((Tensor::cat(&[&self.batch.noisy, &other.batch.noisy], 0)?, t))
    }
}

/// Mean of the Gram matrix's diagonal.
fn mean_square(memories: &[Gradients], names: &[String]) -> Result<f64> {
    let squares = memories.iter().map(|m| super::project::dot(m, m, names)).collect::<Result<Vec<_>>>()?;
    Ok(squares.iter().sum::<f64>() / squares.len().max(1) as f64)
}
