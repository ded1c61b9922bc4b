//! The repair's loss on some rows: what they are compared with, and how the terms are weighed.

use super::{Embeddings, Repair};
use crate::Result;
use crate::erase::batch::Batch;
use crate::erase::loss::mse;
use crate::erase::settings::{ForgetTerm, RetainTarget, Teacher};
use crate::erase::student::{Predictor, Student};
use crate::sd::{Conditions, Unet};
use candle_core::Tensor;

/// A share's rows of a batch of `of` rows, with their texts.
pub(super) struct Part {
    pub term: Term,
    pub batch: Batch,
    /// What the student reads.
    pub conditions: Conditions,
    pub of: usize,
}

/// Which term of the loss the rows belong to.
pub(super) enum Term {
    /// With what a teacher reads instead.
    Forget {
        anchors: Conditions,
    },
    Retain,
}

impl Part {
    fn rows(&self) -> usize {
        self.batch.t.len()
    }
}

/// Latents and timesteps of all parts, in order.
fn joined(parts: &[&Part]) -> Result<(Tensor, Vec<f32>)> {
    let latents: Vec<&Tensor> = parts.iter().map(|part| &part.batch.noisy).collect();
    Ok((Tensor::cat(&latents, 0)?, parts.iter().flat_map(|part| part.batch.t.iter().copied()).collect()))
}

impl Repair<'_> {
    /// What each part's rows are compared with, without a graph.
    pub(super) fn targets(&self, base: &Unet, current: &Unet, parts: &[Part]) -> Result<Vec<Tensor>> {
        let s = self.settings;
        let mut targets: Vec<Tensor> = parts.iter().map(|part| part.batch.target.clone()).collect();
        for (unet, teacher) in [(base, Teacher::Base), (current, Teacher::Current)] {
            let asked = |part: &Part| match part.term {
                Term::Forget { .. } => s.forget_term == ForgetTerm::Anchor && s.teacher == teacher,
                Term::Retain => s.retain_target == RetainTarget::Base && teacher == Teacher::Base,
            };
            let (places, asked): (Vec<usize>, Vec<&Part>) =
                parts.iter().enumerate().filter(|(_, part)| asked(part)).unzip();
            if asked.is_empty() {
                continue;
            }
            let (x, t) = joined(&asked)?;
            let texts: Vec<&Conditions> = asked
                .iter()
                .map(|part| match &part.term {
                    Term::Forget { anchors } => anchors,
                    Term::Retain => &part.conditions,
                })
                .collect();
            let all = unet.forward(&x, &t, &Conditions::cat(&texts)?)?;
            let mut first = 0;
            for (place, part) in places.into_iter().zip(asked) {
                targets[place] = all.narrow(0, first, part.rows())?;
                first += part.rows();
                if s.push != 0.0 && matches!(part.term, Term::Forget { .. }) {
                    let from = unet.forward(&part.batch.noisy, &part.batch.t, &part.conditions)?;
                    targets[place] = ((&targets[place] * (1.0 + s.push))? - (from * s.push)?)?;
                }
            }
        }
        Ok(targets)
    }

    /// A share's part of the repair loss, in one pass, and its terms: whether each is the forget term, and its value.
    pub(super) fn loss(
        &self,
        student: &Student<'_>,
        parts: &[Part],
        targets: &[Tensor],
    ) -> Result<(Tensor, Vec<(bool, Tensor)>)> {
        let s = self.settings;
        let (x, t) = joined(&parts.iter().collect::<Vec<_>>())?;
        let texts: Vec<&Conditions> = parts.iter().map(|part| &part.conditions).collect();
        let prediction = student.predict(&x, &t, &Conditions::cat(&texts)?)?;
        let (mut loss, mut found, mut first) = (None, Vec::with_capacity(parts.len()), 0);
        for (part, target) in parts.iter().zip(targets) {
            let mse = self.weighted_mse(&prediction.narrow(0, first, part.rows())?, target, &part.batch.t)?;
            let term = (mse * (part.rows() as f64 / part.of as f64))?;
            first += part.rows();
            found.push((matches!(part.term, Term::Forget { .. }), term.detach()));
            let weighted = match part.term {
                Term::Retain => term,
                Term::Forget { .. } => (term * if s.forget_term == ForgetTerm::Anchor { s.lambda } else { -s.lambda })?,
            };
            loss = Some(match loss {
                Some(loss) => (weighted + loss)?,
                None => weighted,
            });
        }
        let loss = loss.ok_or_else(|| crate::Error::Numeric("a share of a batch has no rows".into()))?;
        Ok((loss, found))
    }

    /// The retain prompts' conditions, the first rows' replaced by the empty prompt's as the settings say.
    pub(super) fn retain_conditions(&self, r: &Batch, embeddings: &Embeddings) -> Result<Conditions> {
        let conditions = r.conditions(&embeddings.retain)?;
        let rows = conditions.rows();
        let empty = ((rows as f64 * self.settings.unconditional).round() as usize).min(rows);
        if empty == 0 {
            return Ok(conditions);
        }
        let unconditional = embeddings.empty.select(&vec![0; empty])?;
        if empty == rows {
            return Ok(unconditional);
        }
        Conditions::cat(&[&unconditional, &conditions.narrow(&(empty..rows))?])
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
}
