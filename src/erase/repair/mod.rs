//! Repair: the trimmed model is trained on the retain data, and away from the concept, with projected gradients.

mod objective;

use super::adam::Adam;
use super::batch::{Batch, Loader};
use super::context::KeptContext;
use super::data::Data;
use super::gradient::{self, Trained};
use super::loss::denoising;
use super::memory::Thrift;
use super::places::Places;
use super::project::project;
use super::settings::Settings;
use crate::Result;
use crate::diffusion::{Generator, Schedule};
use crate::nn::{Gradients, ParamStore, read};
use crate::progress::{Event, Progress, check_interrupted};
use crate::sd::{Conditions, Unet, UnetConfig};
use candle_core::{Device, Tensor};
use objective::{Part, Term};
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

/// The conditions of every prompt that training uses, computed once: a row for each prompt.
pub struct Embeddings {
    /// Of the forget prompts.
    pub forget: Conditions,
    /// Of each forget prompt's anchor.
    pub anchors: Conditions,
    /// Of the retain prompts.
    pub retain: Conditions,
    /// Of the empty prompt, one row.
    pub empty: Conditions,
}

impl Embeddings {
    /// The same embeddings there.
    ///
    /// # Errors
    /// Those of candle.
    pub fn on(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            forget: self.forget.on(device)?,
            anchors: self.anchors.on(device)?,
            retain: self.retain.on(device)?,
            empty: self.empty.on(device)?,
        })
    }
}

/// Everything that a repair works with.
pub struct Repair<'a> {
    /// Architecture.
    pub config: &'a UnetConfig,
    /// The trimmed model on the first device; its trainable parameters change.
    pub params: &'a ParamStore,
    /// The same on each device.
    pub places: &'a Places,
    /// The model as it was, on each.
    pub bases: &'a [&'a ParamStore],
    /// Noise schedule and parametrisation.
    pub schedule: &'a Schedule,
    /// Latents.
    pub data: &'a Data,
    /// Text embeddings, on each device.
    pub embeddings: &'a [Embeddings],
    /// Settings.
    pub settings: &'a Settings,
    /// Keys and values that are to stay, if the settings weigh them.
    pub context: Option<&'a KeptContext>,
    /// Names over which the gradients are projected.
    pub project: &'a [String],
    /// What is done to save memory.
    pub thrift: Thrift,
}

impl Repair<'_> {
    /// Runs all steps. Draws from `noise` alone, so the outcome depends on its seed.
    pub fn run(&self, noise: &mut Generator, progress: &mut dyn Progress) -> Result<Vec<StepRecord>> {
        let s = self.settings;
        progress.event(Event::Stage { name: "repairing", steps: s.repair_steps });
        let trained = self.places.trained();
        let bases =
            self.bases.iter().map(|base| Unet::new(self.config, &base.detached())).collect::<Result<Vec<_>>>()?;
        let teachers = Teachers { bases, currents: self.places.detached(self.config)? };
        let mut forget = Loader::new(&self.data.forget, self.schedule, s.forget_batch, s.batches, s.timesteps);
        let mut retain = Loader::new(&self.data.retain, self.schedule, s.retain_batch, s.batches, s.timesteps);
        let mut adam = Adam::default();
        let mut memories: Vec<Gradients> = Vec::new();
        let mut records = Vec::with_capacity(s.repair_steps);
        for step in 0..s.repair_steps {
            check_interrupted()?;
            if self.memory_is_due(step) {
                memories = self.memories(&trained, &mut forget, noise)?;
            }
            let f = forget.next_mixed(noise, Some(&self.data.retain), s.mixed)?;
            let r = retain.next(noise)?;
            let (mut gradients, mut record) = self.gradients(&trained, &teachers, &f, &r)?;
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
            self.places.follow()?;
            progress.event(Event::Step { loss: Some(f64::from(record.retain)) });
            records.push(record);
        }
        Ok(records)
    }

    fn memory_is_due(&self, step: usize) -> bool {
        let p = &self.settings.projection;
        p.memories > 0 && (step == 0 || (p.every > 0 && step.is_multiple_of(p.every)))
    }

    /// `m = -grad l(D_f)` of the model as it is, each over `projection.batches` batches.
    fn memories(
        &self,
        trained: &[Trained<'_>],
        forget: &mut Loader<'_>,
        noise: &mut Generator,
    ) -> Result<Vec<Gradients>> {
        let p = &self.settings.projection;
        let mut memories = Vec::with_capacity(p.memories);
        for _ in 0..p.memories {
            let mut sum = Gradients::new();
            let scale = -1.0 / p.batches.max(1) as f64;
            for _ in 0..p.batches.max(1) {
                check_interrupted()?;
                let batch = forget.next(noise)?;
                let (gradients, _) = gradient::of_batch(&batch, trained, |place, part, student| {
                    let conditions = part.conditions(&self.embeddings[place].forget)?;
                    Ok((denoising(student, part, &conditions)? * scale)?)
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
        trained: &[Trained<'_>],
        teachers: &Teachers,
        f: &Batch,
        r: &Batch,
    ) -> Result<(Gradients, StepRecord)> {
        let sizes = [f.t.len(), r.t.len()];
        let (_, _, height, width) = f.noisy.dims4()?;
        let shares = gradient::shares(&sizes, height * width, self.thrift, !f.noisy.device().is_cpu());
        let (f, r) = (gradient::at_each(f, trained)?, gradient::at_each(r, trained)?);
        let retain = r.iter().zip(self.embeddings).map(|(r, embeddings)| self.retain_conditions(r, embeddings));
        let retain = retain.collect::<Result<Vec<_>>>()?;
        let (gradients, parts) = gradient::gradients(shares, trained, |place, i, student| {
            let (f, r, embeddings) = (&f[place], &r[place], &self.embeddings[place]);
            let [rows_f, rows_r] = shares.rows(sizes, i);
            let mut parts = Vec::with_capacity(2);
            if !rows_f.is_empty() {
                let batch = f.rows(&rows_f)?;
                let [conditions, anchors] =
                    [&embeddings.forget, &embeddings.anchors].map(|prompts| batch.conditions(prompts));
                let term = Term::Forget { anchors: anchors? };
                parts.push(Part { term, batch, conditions: conditions?, of: sizes[0] });
            }
            if !rows_r.is_empty() {
                let (batch, conditions) = (r.rows(&rows_r)?, retain[place].narrow(&rows_r)?);
                parts.push(Part { term: Term::Retain, batch, conditions, of: sizes[1] });
            }
            let targets = self.targets(&teachers.bases[place], &teachers.currents[place], &parts)?;
            self.loss(student, &parts, &targets)
        })?;
        let mut record = StepRecord::default();
        let (terms, values): (Vec<bool>, Vec<Tensor>) = parts.into_iter().flatten().unzip();
        for (forget, value) in terms.into_iter().zip(read(&values)?) {
            *(if forget { &mut record.forget } else { &mut record.retain }) += value;
        }
        Ok((gradients, record))
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

/// What predicts the targets, on each device.
struct Teachers {
    bases: Vec<Unet>,
    /// The trained network without a graph.
    currents: Vec<Unet>,
}

/// Mean of the Gram matrix's diagonal.
fn mean_square(memories: &[Gradients], names: &[String]) -> Result<f64> {
    let squares = memories.iter().map(|m| super::project::dot(m, m, names)).collect::<Result<Vec<_>>>()?;
    Ok(squares.iter().sum::<f64>() / squares.len().max(1) as f64)
}
