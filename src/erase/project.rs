//! Gradient memories and projection: the nearest step that does not re-learn the concept.
//!
//! A memory `m = -grad L_forget` points where the forget loss grows. A step along `-g` changes the forget loss by
//! `+eta <m, g>` to first order: where `<m, g> < 0` the step re-learns. GEM (Lopez-Paz & Ranzato 2017) takes the nearest
//! `z` to `g` with `<m_j, z> >= 0` for every memory; its dual is `min 1/2 v'(MM' + eps I)v + (Mg)'v` over `v >= margin`,
//! and `z = g + M'v`. The original code has margin 0.5 and eps 1e-3, which adds at least half a memory to every step
//! that is projected; margin 0 is the exact projection.

use crate::nn::{Gradients, row_sums};
use crate::{Error, Result};
use candle_core::Tensor;
use rayon::prelude::*;

/// The largest number of memories: the dual is solved exactly, by trying which of its bounds hold.
pub const MAX_MEMORIES: usize = 10;

/// Inner product over the tensors of `names`, accumulated in f64.
pub fn dot(a: &Gradients, b: &Gradients, names: &[String]) -> Result<f64> {
    let mut sum = 0.0;
    if on_gpu(a, names) {
        return dot_on_gpu(a, b, names);
    }
    for name in names {
        let (a, b) = (flat(a, name)?, flat(b, name)?);
        let parts: Vec<f64> = a.par_chunks(1 << 14).zip(b.par_chunks(1 << 14)).map(|(a, b)| dot_slices(a, b)).collect();
        sum += parts.iter().sum::<f64>(); // in order, so that any number of threads gives the same sum
    }
    Ok(sum)
}

/// Whether these gradients are not in the machine's own memory.
fn on_gpu(gradients: &Gradients, names: &[String]) -> bool {
    names.first().and_then(|name| gradients.get(name)).is_some_and(|tensor| !tensor.device().is_cpu())
}

/// The same where the tensors are: sums over each row in `f32`, over the rows in `f64`. The GPU is waited for once.
fn dot_on_gpu(a: &Gradients, b: &Gradients, names: &[String]) -> Result<f64> {
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        rows.push(row_sums(&(of(a, name)? * of(b, name)?)?)?);
    }
    if rows.is_empty() {
        return Ok(0.0);
    }
    Ok(Tensor::cat(&rows, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

fn dot_slices(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn of<'g>(gradients: &'g Gradients, name: &str) -> Result<&'g Tensor> {
    gradients.get(name).ok_or_else(|| Error::Numeric(format!("{name} is projected but has no gradient")))
}

fn flat(gradients: &Gradients, name: &str) -> Result<Vec<f32>> {
    Ok(of(gradients, name)?.flatten_all()?.to_vec1()?)
}

/// What a projection did to a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// `<m_j, g>` for each memory, before.
    pub m_dot_g: Vec<f64>,
    /// The multipliers; all zero if no memory was violated.
    pub v: Vec<f64>,
}

impl Projection {
    /// Whether a memory was violated, so that the step was changed.
    pub fn changed(&self) -> bool {
        self.m_dot_g.iter().any(|d| *d < 0.0)
    }
}

/// Projects `g` in place, over the tensors `names` only, if it violates any of `memories`.
///
/// # Errors
/// If a tensor lacks a gradient, or there are more than [`MAX_MEMORIES`] memories.
pub fn project(
    g: &mut Gradients,
    memories: &[Gradients],
    names: &[String],
    margin: f64,
    eps: f64,
) -> Result<Projection> {
    let m_dot_g = memories.iter().map(|m| dot(m, g, names)).collect::<Result<Vec<_>>>()?;
    let mut projection = Projection { v: vec![0.0; memories.len()], m_dot_g };
    if !projection.changed() {
        return Ok(projection);
    }
    let mut gram = vec![vec![0.0; memories.len()]; memories.len()];
    for i in 0..memories.len() {
        for j in 0..=i {
            gram[i][j] = dot(&memories[i], &memories[j], names)?;
            gram[j][i] = gram[i][j];
        }
    }
    projection.v = solve_dual(&gram, &projection.m_dot_g, margin, eps)?;
    if on_gpu(g, names) {
        add_on_gpu(g, memories, names, &projection.v)?;
        return Ok(projection);
    }
    for name in names {
        let mut z = flat(g, name)?;
        for (memory, v) in memories.iter().zip(&projection.v) {
            let (m, v) = (flat(memory, name)?, *v as f32);
            z.par_chunks_mut(1 << 14).zip(m.par_chunks(1 << 14)).for_each(|(z, m)| {
                z.iter_mut().zip(m).for_each(|(z, m)| *z += v * m);
            });
        }
        let shape = g[name].shape().clone();
        g.insert(name.clone(), Tensor::from_vec(z, shape, memories[0][name].device())?);
    }
    Ok(projection)
}

/// `z = g + M'v` where the tensors are.
fn add_on_gpu(g: &mut Gradients, memories: &[Gradients], names: &[String], v: &[f64]) -> Result<()> {
    for name in names {
        let mut z = of(g, name)?.clone();
        for (memory, v) in memories.iter().zip(v) {
            z = (z + (of(memory, name)? * *v)?)?;
        }
        g.insert(name.clone(), z);
    }
    Ok(())
}

/// `argmin 1/2 v'(P + eps I)v + q'v` over `v >= margin`; `P` is the memories' Gram matrix, `q = Mg`.
///
/// One memory has the closed form `v = max(margin, -q / (P + eps))`; several are solved exactly by their active set.
pub fn solve_dual(gram: &[Vec<f64>], q: &[f64], margin: f64, eps: f64) -> Result<Vec<f64>> {
    let n = q.len();
    if n > MAX_MEMORIES {
        return Err(Error::usage(format!("{n} memories are more than {MAX_MEMORIES}")));
    }
    let a = |i: usize, j: usize| gram[i][j] + if i == j { eps } else { 0.0 };
    if n == 1 {
        return Ok(vec![if a(0, 0) > 0.0 { (-q[0] / a(0, 0)).max(margin) } else { margin }]);
    }
    // Each set of free multipliers (the others at the bound) is one linear system; the one that keeps to the bound and
    // has the least objective is the minimum, as the problem is convex.
    let mut best: Option<(f64, Vec<f64>)> = None;
    for free in 0..1usize << n {
        let set: Vec<usize> = (0..n).filter(|i| free >> i & 1 == 1).collect();
        let bound: Vec<usize> = (0..n).filter(|i| free >> i & 1 == 0).collect();
        let matrix: Vec<Vec<f64>> = set.iter().map(|i| set.iter().map(|j| a(*i, *j)).collect()).collect();
        let right = set.iter().map(|i| -q[*i] - bound.iter().map(|j| a(*i, *j) * margin).sum::<f64>()).collect();
        let Some(solution) = solve_positive(matrix, right) else { continue };
        let mut v = vec![margin; n];
        set.iter().zip(&solution).for_each(|(i, value)| v[*i] = *value);
        if v.iter().any(|v| *v < margin || !v.is_finite()) {
            continue;
        }
        let quadratic: f64 = (0..n).map(|i| (0..n).map(|j| v[i] * a(i, j) * v[j]).sum::<f64>()).sum();
        let objective = 0.5 * quadratic + v.iter().zip(q).map(|(v, q)| v * q).sum::<f64>();
        if best.as_ref().is_none_or(|(least, _)| objective < *least) {
            best = Some((objective, v));
        }
    }
    best.map(|(_, v)| v)
        .ok_or_else(|| Error::Numeric("the projection has no finite solution; check the memories".into()))
}

/// Solves a symmetric positive definite system by Cholesky; `None` if it is not one.
fn solve_positive(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            if i == j {
                let pivot = a[i][i] - sum;
                if pivot <= 0.0 || !pivot.is_finite() {
                    return None;
                }
                a[i][i] = pivot.sqrt();
            } else {
                a[i][j] = (a[i][j] - sum) / a[j][j];
            }
        }
    }
    for i in 0..n {
        b[i] = (b[i] - (0..i).map(|k| a[i][k] * b[k]).sum::<f64>()) / a[i][i];
    }
    for i in (0..n).rev() {
        b[i] = (b[i] - (i + 1..n).map(|k| a[k][i] * b[k]).sum::<f64>()) / a[i][i];
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn gradients(values: &[f32]) -> Gradients {
        let (a, b) = values.split_at(1);
        let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
        [("a".to_string(), tensor(a)), ("b".to_string(), tensor(b))].into()
    }

    const NAMES: fn() -> Vec<String> = || vec!["a".to_string(), "b".to_string()];

    #[test]
    fn a_step_that_violates_nothing_is_left_alone() {
        let mut g = gradients(&[1., 2., 3.]);
        let m = gradients(&[1., 0., 0.]);
        let done = project(&mut g, &[m], &NAMES(), 0.5, 1e-3).unwrap();
        assert!(!done.changed() && done.v == [0.0]);
        assert_eq!(flat(&g, "b").unwrap(), [2., 3.]);
    }

    #[test]
    fn exact_projection_is_orthogonal_to_the_violated_memory_and_nearest() {
        let mut g = gradients(&[-2., 2., 3.]);
        let m = gradients(&[1., 0., -1.]);
        let done = project(&mut g, std::slice::from_ref(&m), &NAMES(), 0.0, 0.0).unwrap();
        assert!((done.v[0] - 2.5).abs() < 1e-12 && done.changed());
        assert!(dot(&m, &g, &NAMES()).unwrap().abs() < 1e-6);
        assert_eq!((flat(&g, "a").unwrap(), flat(&g, "b").unwrap()), (vec![0.5], vec![2., 0.5]));
    }

    #[test]
    fn on_a_gpu_sums_are_the_same_but_for_rounding() {
        let random = || -> Gradients {
            let tensor = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            [("a".to_string(), tensor(&[3001])), ("b".to_string(), tensor(&[40, 96]))].into()
        };
        // what is computed there needs no GPU
        let (a, b) = (random(), random());
        let (host, gpu) = (dot(&a, &b, &NAMES()).unwrap(), dot_on_gpu(&a, &b, &NAMES()).unwrap());
        assert!((host - gpu).abs() < 1e-3 * host.abs().max(1.0), "{host} {gpu}");
        let mut z = a.clone();
        add_on_gpu(&mut z, &[b.clone(), a.clone()], &NAMES(), &[0.5, 2.0]).unwrap();
        for name in NAMES() {
            let expected =
                flat(&a, &name).unwrap().into_iter().zip(flat(&b, &name).unwrap()).map(|(a, b)| 3.0 * a + 0.5 * b);
            let close = flat(&z, &name).unwrap().into_iter().zip(expected).all(|(z, e)| (z - e).abs() < 1e-5);
            assert!(close, "{name}");
        }
    }

    #[test]
    fn several_memories_satisfy_the_kkt_conditions() {
        let gram = vec![vec![2., 1.9, -0.3], vec![1.9, 2., 0.1], vec![-0.3, 0.1, 1.]];
        for (q, margin) in [([-1., -0.5, 0.2], 0.0), ([-1., 3., -2.], 0.5), ([0.1, -0.1, -0.1], 0.0)] {
            let v = solve_dual(&gram, &q, margin, 1e-9).unwrap();
            for i in 0..3 {
                let slope = q[i] + (0..3).map(|j| gram[i][j] * v[j]).sum::<f64>() + 1e-9 * v[i];
                let at_bound = v[i] == margin;
                assert!(v[i] >= margin && if at_bound { slope >= -1e-9 } else { slope.abs() < 1e-9 }, "{v:?} {slope}");
            }
        }
    }

    #[test]
    fn too_many_memories_are_refused() {
        assert!(solve_dual(&vec![vec![1.0; 11]; 11], &[1.0; 11], 0.0, 0.0).is_err());
    }
}
