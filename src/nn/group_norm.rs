//! Group normalisation, with the SiLU that follows it in resnets.

use super::kernels::norm;
use super::kernels::parallel::{SharedMut, add_parts, tasks, unwritten};
use super::kernels::storage::{cpu, cpu_mut, fused, slice};
use super::params::ParamPath;
use super::record::apply3;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, InplaceOp3, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// A group norm with the checkpoint's `weight` and `bias` `(channels)`.
#[derive(Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(groups: usize, channels: usize, eps: f64, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { weight: path.get(&[channels], "weight")?, bias: path.get(&[channels], "bias")?, groups, eps })
    }

    /// Shape: `(B, C, H, W)` -> the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.weight, &self.bias, self.groups, self.eps, false)
    }

    /// The norm, then SiLU, in one op. Shape: `(B, C, H, W)` -> the same.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, &self.weight, &self.bias, self.groups, self.eps, true)
    }

    /// As [`GroupNorm::forward_silu`], of an `x` that nothing else reads, nor anything that shares its elements: outside a graph the
    /// result takes their place.
    pub fn forward_silu_over(&self, x: Tensor) -> Result<Tensor> {
        let operands = [&x, &self.weight, &self.bias];
        let in_place = operands.iter().all(|x| !x.track_op() && x.is_contiguous()) && fused(&operands);
        if !(in_place && divides(&x, &self.weight, &self.bias, self.groups)) {
            return self.forward_silu(&x);
        }
        let op = NormaliseOver { groups: self.groups, eps: self.eps };
        x.inplace_op3(&self.weight, &self.bias, &op)?;
        Ok(x)
    }
}

/// Whether the kernels take these.
fn divides(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize) -> bool {
    let fits = |channels: &usize| {
        groups > 0 && channels.is_multiple_of(groups) && weight.dims() == [*channels] && bias.dims() == [*channels]
    };
    x.elem_count() > 0 && x.dims().get(1).is_some_and(fits)
}

/// Group normalisation over `(C/groups, H, W)`, population variance, then SiLU if `with_silu`.
///
/// # Shape
/// `x` `(B, C, ..)`, `weight` and `bias` `(C)` -> as `x`.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    with_silu: bool,
) -> Result<Tensor> {
    if !divides(x, weight, bias, groups) || !fused(&[x, weight, bias]) {
        return reference(x, weight, bias, groups, eps, with_silu);
    }
    let op = Normalise {
        groups,
        eps,
        silu: with_silu,
        stats: OnceLock::new(),
        #[cfg(feature = "cuda")]
        stats_there: OnceLock::new(),
    };
    Ok(apply3(&x.contiguous()?, &weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, with_silu: bool) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let grouped = x.reshape((batch, groups, x.elem_count() / (batch * groups).max(1)))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, channels, ()))?;
    let y = y.broadcast_mul(&weight.reshape((1, channels, 1))?)?.broadcast_add(&bias.reshape((1, channels, 1))?)?;
    let y = y.reshape(x.shape())?;
    if with_silu { Ok(y.silu()?) } else { Ok(y) }
}

/// With `h = (x - mean) rstd` and `y = w h + b` (then SiLU: `dy` below is `dz silu'(y)`), `g = w dy`:
/// `dx = rstd (g - mean(g) - h mean(g h))` with means over the group, `dw = sum of dy h`, `db = sum of dy`.
struct Normalise {
    groups: usize,
    eps: f64,
    silu: bool,
    /// `mean, rstd` of every sample and group, from the forward pass.
    stats: OnceLock<Vec<f32>>,
    /// The same, on a GPU.
    #[cfg(feature = "cuda")]
    stats_there: OnceLock<super::cuda::Floats>,
}

#[cfg(feature = "cuda")]
impl Normalise {
    fn way(&self) -> super::cuda::group_norm::Way {
        super::cuda::group_norm::Way { groups: self.groups, eps: self.eps, silu: self.silu }
    }
}

impl CustomOp3 for Normalise {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, w, b) = (cpu(x, lx)?, cpu(w, lw)?, cpu(b, lb)?);
        let tasks_count = lx.dims()[0] * self.groups;
        let (size, width) = (x.len() / tasks_count, w.len() / self.groups);
        let (mut y, mut stats) = (unwritten(x.len()), vec![0.0; 2 * tasks_count]);
        let (shared, shared_stats) = (SharedMut::new(&mut y), SharedMut::new(&mut stats));
        tasks(tasks_count, |task| {
            let c = task % self.groups * width;
            // SAFETY: each task has its own group of `y` and its own pair of `stats`; `at` checks the bounds.
            let y = unsafe { shared.slice(task * size, size) };
            // SAFETY: as above.
            let stats = unsafe { shared_stats.slice(2 * task, 2) };
            let (w, b) = (&w[c..c + width], &b[c..c + width]);
            let (mean, rstd) = norm::group(&x[task * size..][..size], w, b, self.eps, self.silu, y);
            stats.copy_from_slice(&[mean, rstd]);
        });
        let _ = self.stats.set(stats); // an op is applied once
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (y, stats) = super::cuda::group_norm::forward(self.way(), (x, lx), (w, lw), (b, lb))?;
        let _ = self.stats_there.set(stats);
        Ok(y)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(stats) = self.stats_there.get() {
            return super::cuda::group_norm::backward(self.way(), [x, weight, bias], stats, &dy.contiguous()?);
        }
        let Some(stats) = self.stats.get() else { candle_core::bail!("group_norm: backward before forward") };
        let dy = dy.contiguous()?;
        let ((sx, lx), (sw, lw)) = (x.storage_and_layout(), weight.storage_and_layout());
        let ((sb, lb), (sd, ld)) = (bias.storage_and_layout(), dy.storage_and_layout());
        let (values, w, b, dy) = (slice(&sx, lx)?, slice(&sw, lw)?, slice(&sb, lb)?, slice(&sd, ld)?);
        let (batch, channels) = (x.dim(0)?, w.len());
        let tasks_count = batch * self.groups;
        let (size, width) = (values.len() / tasks_count, channels / self.groups);
        let (mut dx, mut dw, mut db) =
            (unwritten(values.len()), vec![0.0; batch * channels], vec![0.0; batch * channels]);
        let (to_x, to_w, to_b) = (SharedMut::new(&mut dx), SharedMut::new(&mut dw), SharedMut::new(&mut db));
        tasks(tasks_count, |task| {
            let c = task % self.groups * width;
            // SAFETY: each task has its own group of `dx` and its own channels of `dw` and `db`; `at` checks the bounds.
            let dx = unsafe { to_x.slice(task * size, size) };
            // SAFETY: as above.
            let (dw, db) = unsafe { (to_w.slice(task * width, width), to_b.slice(task * width, width)) };
            let (x, dy) = (&values[task * size..][..size], &dy[task * size..][..size]);
            let stats = (stats[2 * task], stats[2 * task + 1]);
            norm::group_grad(x, dy, &w[c..c + width], &b[c..c + width], stats, self.silu, dw, db, dx);
        });
        let over_batch = |operand: &Tensor, parts: &[f32]| {
            operand
                .track_op()
                .then(|| {
                    let mut sum = vec![0.0; channels];
                    add_parts(parts, &mut sum);
                    Tensor::from_vec(sum, channels, x.device())
                })
                .transpose()
        };
        let (dw, db) = (over_batch(weight, &dw)?, over_batch(bias, &db)?);
        let dx = x.track_op().then(|| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, dw, db))
    }
}

/// The norm with SiLU, written over what it reads.
struct NormaliseOver {
    groups: usize,
    eps: f64,
}

impl InplaceOp3 for NormaliseOver {
    fn name(&self) -> &'static str {
        "group_norm over its input"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<()> {
        let (x, w, b) = (cpu_mut(x, lx)?, cpu(w, lw)?, cpu(b, lb)?);
        let tasks_count = lx.dims()[0] * self.groups;
        let (size, width) = (x.len() / tasks_count, w.len() / self.groups);
        let shared = SharedMut::new(x);
        tasks(tasks_count, |task| {
            let c = task % self.groups * width;
            // SAFETY: each task has its own group; `at` checks the bounds.
            let x = unsafe { shared.slice(task * size, size) };
            norm::group_over(x, &w[c..c + width], &b[c..c + width], self.eps);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> candle_core::Result<()> {
        let way = super::cuda::group_norm::Way { groups: self.groups, eps: self.eps, silu: true };
        super::cuda::group_norm::over(way, (x, lx), (w, lw), (b, lb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;

    #[test]
    fn written_over_its_input_it_has_the_same_bits() {
        let randn = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &candle_core::Device::Cpu).unwrap();
        for (shape, groups) in [([2, 6, 5, 7], 3), ([1, 4, 61, 67], 2)] {
            let (weight, bias) = (randn(&[shape[1]]), randn(&[shape[1]]));
            let norm = GroupNorm { weight, bias, groups, eps: 1e-6 };
            let x = ((randn(&shape) * 2.0).unwrap() + 3.0).unwrap();
            let expected = norm.forward_silu(&x).unwrap();
            let kept = candle_core::Var::from_tensor(&x).unwrap();
            let bits = |y: &Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let tracked = norm.forward_silu_over(kept.as_tensor().clone()).unwrap();
            assert_eq!((bits(&tracked), bits(&kept)), (bits(&expected), bits(&x)), "what a graph reads stays");
            let over = norm.forward_silu_over(x.clone()).unwrap();
            assert_eq!((bits(&over), bits(&x)), (bits(&expected), bits(&expected)), "no memory of its own");
        }
    }

    #[test]
    fn matches_the_composite() {
        for (batch, channels, groups, side) in [(1, 4, 2, 3), (2, 6, 3, 5), (5, 8, 8, 4), (1, 32, 1, 7), (2, 64, 32, 1)]
        {
            let shapes: [&[usize]; 3] = [&[batch, channels, side, side + 1], &[channels], &[channels]];
            for silu in [false, true] {
                compare("group_norm", &shapes, 5e-6, &|x| group_norm(&x[0], &x[1], &x[2], groups, 1e-5, silu));
            }
        }
    }

    #[test]
    fn long_groups_and_views() {
        compare("group_norm", &[&[1, 4, 61, 67], &[4], &[4]], 5e-6, &|x| {
            group_norm(&x[0], &x[1], &x[2], 2, 1e-5, true)
        });
        compare("group_norm of a view", &[&[2, 3, 4, 6], &[6], &[6]], 5e-6, &|x| {
            group_norm(&x[0].transpose(1, 3)?, &x[1], &x[2], 2, 1e-5, true)
        });
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        compare("group_norm", &[&[2, 4, 40, 40], &[4], &[4]], 1e-3, &|x| {
            group_norm(&((&x[0] * 0.01)? + 10.0)?, &x[1], &x[2], 2, 1e-5, false)
        });
    }
}
