//! Adam (Kingma & Ba 2015) as PyTorch's `torch.optim.Adam` computes it, with its state in f32.

use crate::nn::{Gradients, ParamStore, read, total};
use crate::{Error, Result};
use candle_core::{Tensor, Var};
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
    /// The same of parameters on a GPU, which stay there.
    on_gpu: BTreeMap<String, (Tensor, Tensor)>,
}

/// What a step multiplies with.
struct Factors {
    step_size: f32,
    root: f32,
    betas: (f32, f32),
    rests: (f32, f32),
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
        let betas @ (b1, b2) = (BETAS.0 as f32, BETAS.1 as f32);
        let rests @ (rest1, rest2) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
        let factors = Factors { step_size, root, betas, rests };
        let (mut names, mut squares) = (Vec::new(), Vec::new());
        let not_finite =
            |name: &str| Err(Error::Numeric(format!("{name} is not finite after a step; lower the learning rate")));
        for (name, var) in params.vars() {
            let gradient = gradients.get(name);
            let gradient =
                gradient.ok_or_else(|| Error::Numeric(format!("{name} is trainable but got no gradient")))?;
            if !var.device().is_cpu() {
                squares.push(self.step_on_gpu(name, var, gradient, &factors)?);
                names.push(name);
                continue;
            }
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
                return not_finite(name);
            }
            var.set(&Tensor::from_vec(p, var.dims(), var.device())?)?;
        }
        // a GPU is waited for once
        match names.iter().zip(read(&squares)?).find(|(_, square)| !square.is_finite()) {
            Some((name, _)) => not_finite(name),
            None => Ok(()),
        }
    }

    /// The same arithmetic where the parameter is; returns the sum of its squares.
    fn step_on_gpu(&mut self, name: &str, var: &Var, gradient: &Tensor, factors: &Factors) -> Result<Tensor> {
        let Factors { step_size, root, betas, rests } = *factors;
        let scaled = |x: &Tensor, by: f32| x.affine(f64::from(by), 0.0);
        let (g, p) = (gradient.detach(), var.as_detached_tensor());
        let (m, v) = match self.on_gpu.remove(name) {
            Some(moments) => moments,
            None => (g.zeros_like()?, g.zeros_like()?),
        };
        let m = (scaled(&m, betas.0)? + scaled(&g, rests.0)?)?;
        let v = (scaled(&v, betas.1)? + scaled(&g.sqr()?, rests.1)?)?;
        let size = v.sqrt()?.affine(1.0 / f64::from(root), f64::from(EPS))?;
        let p = (p - scaled(&(&m / size)?, step_size)?)?;
        var.set(&p)?;
        self.on_gpu.insert(name.to_string(), (m, v));
        total(&p.sqr()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn on_a_gpu_a_step_is_the_same_but_for_rounding() {
        let start = Tensor::randn(0f32, 1.0, (7, 5), &Device::Cpu).unwrap();
        let mut params = ParamStore::new([("x".to_string(), start.clone())].into());
        params.make_trainable(["x"]).unwrap();
        let var = Var::from_tensor(&start).unwrap();
        let (mut host, mut gpu) = (Adam::default(), Adam::default());
        for step in 1..=5 {
            let gradient = Tensor::randn(0f32, 2.0, (7, 5), &Device::Cpu).unwrap();
            host.step(&params, &[("x".to_string(), gradient.clone())].into(), 0.01).unwrap();
            // what is computed there needs no GPU
            let (betas, rests) = ((0.9, 0.999), (0.1, 0.001));
            let (c1, c2) = (1.0 - BETAS.0.powi(step), 1.0 - BETAS.1.powi(step));
            let factors = Factors { step_size: (0.01 / c1) as f32, root: c2.sqrt() as f32, betas, rests };
            gpu.step_on_gpu("x", &var, &gradient, &factors).unwrap();
        }
        let difference = (params.get("x").unwrap() - var.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
        let moved = (start - var.as_tensor()).unwrap().abs().unwrap().mean_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 1e-3);
    }

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
