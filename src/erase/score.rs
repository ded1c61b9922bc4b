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
                self.add_on_gpu(name, gradient)?;
                continue;
            }
            let g: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let sums = self.sums.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            sums.par_iter_mut().with_min_len(1 << 14).zip(g).for_each(|(sum, g)| *sum += g.abs());
        }
        Ok(())
    }

    fn add_on_gpu(&mut self, name: &str, gradient: &Tensor) -> Result<()> {
        let size = gradient.detach().abs()?;
        let sum = match self.on_gpu.remove(name) {
            Some(sum) => (sum + size)?,
            None => size,
        };
        self.on_gpu.insert(name.to_string(), sum);
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn on_a_gpu_the_scores_are_the_same() {
        let random = || Tensor::randn(0f32, 1., (5, 3), &Device::Cpu).unwrap();
        let params = ParamStore::new([("w".to_string(), random())].into());
        let [mut host, mut other, mut gpu, mut other_gpu] = [(); 4].map(|()| Sensitivity::default());
        for (host, gpu) in [(&mut host, &mut gpu), (&mut other, &mut other_gpu)] {
            for _ in 0..3 {
                let gradient = random();
                host.add(&[("w".to_string(), gradient.clone())].into()).unwrap();
                gpu.add_on_gpu("w", &gradient).unwrap(); // what is computed there needs no GPU
            }
        }
        host.contrast(&other).unwrap();
        gpu.contrast(&other_gpu).unwrap();
        let [host, gpu] = [host, gpu].map(|sensitivity| sensitivity.scores(&params).unwrap());
        assert_eq!(host, gpu);
        assert!(host["w"].iter().any(|score| *score > 0.0) && host["w"].contains(&0.0), "{host:?}");
    }
}
