//! Connection sensitivity (SNIP, Lee et al. 2019), accumulated over batches as Scissorhands does.

use super::trim::Scores;
use crate::Result;
use crate::nn::{Gradients, ParamStore};
use rayon::prelude::*;

/// The running sum of `|dL_b / dtheta|` over batches b. The absolute value is taken of each batch's mean gradient.
#[derive(Default)]
pub struct Sensitivity {
    sums: Scores,
}

impl Sensitivity {
    /// Adds one batch's gradients.
    pub fn add(&mut self, gradients: &Gradients) -> Result<()> {
        for (name, gradient) in gradients {
            let g: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let sums = self.sums.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            sums.par_iter_mut().with_min_len(1 << 14).zip(g).for_each(|(sum, g)| *sum += g.abs());
        }
        Ok(())
    }

    /// Takes away what another sum has, down to zero: what is left is what matters more here than there.
    pub fn contrast(&mut self, other: &Self) {
        for (name, sums) in &mut self.sums {
            if let Some(other) = other.sums.get(name) {
                sums.par_iter_mut()
                    .with_min_len(1 << 14)
                    .zip(other)
                    .for_each(|(sum, other)| *sum = (*sum - other).max(0.0));
            }
        }
    }

    /// The scores `|a * theta|`, in the sums' own memory.
    pub fn scores(mut self, params: &ParamStore) -> Result<Scores> {
        for (name, sums) in &mut self.sums {
            let theta: Vec<f32> = params.get(name)?.flatten_all()?.to_vec1()?;
            sums.par_iter_mut().with_min_len(1 << 14).zip(theta).for_each(|(sum, theta)| *sum = (*sum * theta).abs());
        }
        Ok(self.sums)
    }
}
