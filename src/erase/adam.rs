//! Adam (Kingma & Ba 2015) as PyTorch's `torch.optim.Adam` computes it, with its state in f32.

use crate::nn::{Gradients, ParamStore};
use crate::{Error, Result};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f32 = 1e-8;
const CHUNK: usize = 1 << 14;

/// First and second moments of each trainable parameter.
#[derive(Default)]
pub struct Adam {
    step: i32,
    moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl Adam {
    /// One update of every trainable parameter.
    ///
    /// # Errors
    /// If a trainable parameter has no gradient, or would become NaN or infinite.
    pub fn step(&mut self, params: &ParamStore, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let correction = (1.0 - BETAS.0.powi(self.step), 1.0 - BETAS.1.powi(self.step));
        let step_size = (learning_rate / correction.0) as f32;
        let root = correction.1.sqrt() as f32;
        let (b1, b2) = (BETAS.0 as f32, BETAS.1 as f32);
        let (rest1, rest2) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
        for (name, var) in params.vars() {
            let gradient = gradients.get(name);
            let gradient =
                gradient.ok_or_else(|| Error::Numeric(format!("{name} is trainable but got no gradient")))?;
            let g: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let mut p: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let (m, v) = self.moments.entry(name.clone()).or_insert_with(|| (vec![0.0; g.len()], vec![0.0; g.len()]));
            let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
            chunks.zip(g.par_chunks(CHUNK)).for_each(|(((p, m), v), g)| {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    *m = b1 * *m + rest1 * g;
                    *v = b2 * *v + rest2 * g * g;
                    *p -= step_size * *m / (v.sqrt() / root + EPS);
                }
            });
            if !p.par_iter().all(|p| p.is_finite()) {
                return Err(Error::Numeric(format!("{name} is not finite after a step; lower the learning rate")));
            }
            var.set(&Tensor::from_vec(p, var.dims(), var.device())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn descends_a_parabola_and_needs_every_gradient() {
        let start = Tensor::new(&[3.0f32, -2.0], &Device::Cpu).unwrap();
        let mut params = ParamStore::new([("x".to_string(), start)].into());
        params.make_trainable(["x"]).unwrap();
        let mut adam = Adam::default();
        for _ in 0..500 {
            let gradient = params.get("x").unwrap().detach();
            adam.step(&params, &[("x".to_string(), gradient)].into(), 0.05).unwrap();
        }
        let x: Vec<f32> = params.get("x").unwrap().to_vec1().unwrap();
        assert!(x.iter().all(|x| x.abs() < 0.05), "{x:?}");
        assert!(adam.step(&params, &Gradients::new(), 0.05).unwrap_err().to_string().contains('x'));
    }
}
