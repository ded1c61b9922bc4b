//! Connection sensitivity (SNIP, Lee et al. 2019), accumulated over batches as Scissorhands does.

use super::trim::Scores;
use crate::Result;
use crate::nn::{Gradients, ParamStore};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The running sum of `|dL_b / dtheta|` over batches b. The absolute value is taken of each batch's mean gradient.
#[derive(Default)]
pub struct Sensitivity {
    sums: Scores,
    /// The same of parameters on a GPU, which stay there until all is summed.
    on_gpu: BTreeMap<String, Tensor>,
}

impl Sensitivity {
    /// Adds one batch's gradients.
    pub fn add(&mut self, gradients: &Gradients) -> Result<()> {
        for (name, gradient) in gradients {
            if !gradient.device().is_cpu() {
                let (size, sum) = (gradient.detach().abs()?, self.on_gpu.remove(name));
                self.on_gpu.insert(name.clone(), sum.map_or(Ok(size.clone()), |sum| sum + &size)?);
                continue;
            }
            let g: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let sums = self.sums.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            sums.par_iter_mut().with_min_len(1 << 14).zip(g).for_each(|(sum, g)| *sum += g.abs());
        }
        Ok(())
    }

    /// Takes away what another sum has, down to zero: what is left is what matters more here than there.
    pub fn contrast(&mut self, other: &Self) -> Result<()> {
        for (name, sum) in &mut self.on_gpu {
            if let Some(other) = other.on_gpu.get(name) {
                *sum = (&*sum - other)?.relu()?;
            }
        }
        for (name, sums) in &mut self.sums {
            if let Some(other) = other.sums.get(name) {
                sums.par_iter_mut()
                    .with_min_len(1 << 14)
                    .zip(other)
                    .for_each(|(sum, other)| *sum = (*sum - other).max(0.0));
            }
        }
        Ok(())
    }

    /// The scores `|a * theta|`, in the sums' own memory.
    pub fn scores(mut self, params: &ParamStore) -> Result<Scores> {
        for (name, sums) in &mut self.sums {
            let theta: Vec<f32> = params.get(name)?.flatten_all()?.to_vec1()?;
            sums.par_iter_mut().with_min_len(1 << 14).zip(theta).for_each(|(sum, theta)| *sum = (*sum * theta).abs());
        }
        for (name, sum) in self.on_gpu {
            let scores = (sum * params.get(&name)?.detach())?.abs()?;
            self.sums.insert(name, scores.flatten_all()?.to_vec1()?);
        }
        Ok(self.sums)
    }
}
