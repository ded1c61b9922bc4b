//! Layer normalisation over the last dimension.

use super::kernels::norm;
use super::kernels::parallel::{add_parts, chunks, unwritten};
use super::kernels::storage::{cpu, fused, slice};
use super::params::ParamPath;
use super::record::apply3;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor};

/// A layer norm with the checkpoint's `weight` and `bias` `(features)`.
#[derive(Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(features: usize, eps: f64, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { weight: path.get(&[features], "weight")?, bias: path.get(&[features], "bias")?, eps })
    }

    /// Shape: `(.., features)` -> the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Normalisation over the last dimension, population variance.
///
/// # Shape
/// `x` `(.., features)`, `weight` and `bias` `(features)` -> as `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let features = x.dim(D::Minus1)?;
    let fits = features > 0 && weight.dims() == [features] && bias.dims() == [features];
    if !fits || !fused(&[x, weight, bias]) {
        return reference(x, weight, bias, eps);
    }
    Ok(apply3(&x.contiguous()?, &weight.contiguous()?, &bias.contiguous()?, Normalise::new(eps))?)
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    Ok(y.broadcast_mul(weight)?.broadcast_add(bias)?)
}

/// With `h = (x - mean) rstd` and `g = w dy`: `dx = rstd (g - mean(g) - h mean(g h))`, `dw = sum of dy h`, `db = sum of
/// dy` over the rows. The statistics of a row are computed again in the backward pass.
struct Normalise {
    eps: f64,
    /// On a GPU, where they are kept: `mean, rstd` of every row.
    #[cfg(feature = "cuda")]
    stats: std::sync::OnceLock<super::cuda::Floats>,
}

/// Rows of a parallel block of about 16 K elements.
fn block_rows(features: usize) -> usize {
    (1usize << 14).div_ceil(features)
}

impl Normalise {
    fn new(eps: f64) -> Self {
        Self {
            eps,
            #[cfg(feature = "cuda")]
            stats: Default::default(),
        }
    }

    fn weight_grads(&self, x: &[f32], dy: &[f32], n: usize) -> (Vec<f32>, Vec<f32>) {
        let block = 4 * block_rows(n) * n;
        let mut partial = vec![0.0; x.len().div_ceil(block) * 2 * n];
        chunks(&mut partial, 2 * n, |i, partial| {
            let (dw, db) = partial.split_at_mut(n);
            let end = x.len().min((i + 1) * block);
            norm::rows_weight_grad(&x[i * block..end], &dy[i * block..end], self.eps, dw, db);
        });
        let mut sums = vec![0.0; 2 * n];
        add_parts(&partial, &mut sums);
        let db = sums.split_off(n);
        (sums, db)
    }
}

impl CustomOp3 for Normalise {
    fn name(&self) -> &'static str {
        "layer_norm"
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
        let block = block_rows(w.len()) * w.len();
        let mut y = unwritten(x.len());
        chunks(&mut y, block, |i, y| norm::rows(&x[i * block..][..y.len()], w, b, self.eps, y));
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
        let (y, stats) = super::cuda::layer_norm::forward(self.eps, (x, lx), (w, lw), (b, lb))?;
        let _ = self.stats.set(stats); // an op is applied once
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
        let dy = dy.contiguous()?;
        #[cfg(feature = "cuda")]
        if let Some(stats) = self.stats.get() {
            return super::cuda::layer_norm::backward([x, weight, bias], stats, &dy);
        }
        let ((sx, lx), (sw, lw), (sd, ld)) =
            (x.storage_and_layout(), weight.storage_and_layout(), dy.storage_and_layout());
        let (values, w, dy) = (slice(&sx, lx)?, slice(&sw, lw)?, slice(&sd, ld)?);
        let dx = x.track_op().then(|| {
            let block = block_rows(w.len()) * w.len();
            let mut dx = unwritten(values.len());
            chunks(&mut dx, block, |i, dx| {
                norm::rows_grad(&values[i * block..][..dx.len()], &dy[i * block..][..dx.len()], w, self.eps, dx);
            });
            Tensor::from_vec(dx, x.shape(), x.device())
        });
        let (mut dw, mut db) = (None, None);
        if weight.track_op() || bias.track_op() {
            let (to_weight, to_bias) = self.weight_grads(values, dy, w.len());
            dw = weight.track_op().then(|| Tensor::from_vec(to_weight, w.len(), x.device())).transpose()?;
            db = bias.track_op().then(|| Tensor::from_vec(to_bias, w.len(), x.device())).transpose()?;
        }
        Ok((dx.transpose()?, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;

    #[test]
    fn matches_the_composite() {
        for (rows, features) in [(1, 3), (2, 16), (5, 33), (700, 129), (9, 1280)] {
            let shapes: [&[usize]; 3] = [&[1, rows, features], &[features], &[features]];
            compare("layer_norm", &shapes, 5e-6, &|x| layer_norm(&x[0], &x[1], &x[2], 1e-5));
        }
        compare("layer_norm of a view", &[&[2, 6, 5], &[6], &[6]], 5e-6, &|x| {
            layer_norm(&x[0].transpose(1, 2)?, &x[1], &x[2], 1e-5)
        });
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        compare("layer_norm", &[&[3, 64], &[64], &[64]], 2e-3, &|x| {
            layer_norm(&((&x[0] * 0.01)? + 10.0)?, &x[1], &x[2], 1e-5)
        });
    }
}
