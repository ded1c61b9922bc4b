//! Multi-head scaled dot-product attention.

use super::kernels::attention as kernel;
use super::kernels::parallel::unwritten;
use super::kernels::storage::{cpu, fused, slice};
use super::record::apply3;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// `softmax(q k^T / sqrt(d)) v` in each head.
///
/// # Shape
/// `q` `(B, S, heads * d)`, `k` and `v` `(B, T, heads * d)` -> `(B, S, heads * d)`. With `causal`, position `i` sees
/// `j <= i` only (and `S = T`).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    attention_beside(q, k, v, heads, causal, DType::F32)
}

/// As [`attention`], between projections that are kept in `kept`: of `bf16`, operands are rounded to it on a CPU whose tiles multiply
/// it (on a GPU see [`attention_in_bf16`]).
pub fn attention_beside(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool, kept: DType) -> Result<Tensor> {
    let (batch, s, width) = q.dims3()?;
    let t = k.dim(1)?;
    let fits = k.dims() == [batch, t, width] && v.dims() == k.dims() && heads > 0 && width % heads == 0;
    if !fits || !fused(&[q, k, v]) || q.elem_count() == 0 || t == 0 {
        return reference(q, k, v, heads, causal);
    }
    let brief = kept == DType::BF16;
    let shape = kernel::Shape { batch, heads, s, t, d: width / heads, apart: width, causal, brief };
    let op = Attention {
        shape,
        tracked: [q, k, v].into_iter().any(Tensor::track_op),
        lse: OnceLock::new(),
        #[cfg(feature = "cuda")]
        lse_there: OnceLock::new(),
        #[cfg(feature = "cuda")]
        half: super::cuda::half_attention(),
    };
    Ok(apply3(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, op)?)
}

/// Whether attention on a GPU multiplies in `bf16`, with sums and softmax in `f32`, as is right beside weights kept in `bf16`. Holds
/// for the process; on the CPU nothing changes.
pub fn attention_in_bf16(half: bool) {
    #[cfg(feature = "cuda")]
    super::cuda::set_half_attention(half);
    #[cfg(not(feature = "cuda"))]
    let _ = half;
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, s, width) = q.dims3()?;
    let t = k.dim(1)?;
    let d = width / heads.max(1);
    let split = |x: &Tensor, len: usize| x.reshape((batch, len, heads, d))?.transpose(1, 2)?.contiguous(); // (B, heads, len, d)
    let (q, k, v) = (split(q, s)?, split(k, t)?, split(v, t)?);
    let mut scores = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?; // (B, heads, S, T)
    if causal {
        let mask: Vec<f32> = (0..s * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (s, t), q.device())?.to_dtype(q.dtype())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    Ok(probs.matmul(&v)?.transpose(1, 2)?.reshape((batch, s, width))?)
}

/// Keeps the log-sum-exp of the scores; the backward pass computes the probabilities again, tile by tile (the formulas
/// are at [`kernel::backward`]).
struct Attention {
    shape: kernel::Shape,
    /// Whether there will be a backward pass.
    tracked: bool,
    lse: OnceLock<Vec<f32>>,
    /// The same, on a GPU.
    #[cfg(feature = "cuda")]
    lse_there: OnceLock<super::cuda::Floats>,
    /// See [`attention_in_bf16`].
    #[cfg(feature = "cuda")]
    half: bool,
}

#[cfg(feature = "cuda")]
impl Attention {
    fn way(&self) -> super::cuda::attention::Way {
        let kernel::Shape { batch, heads, s, t, d, causal, .. } = self.shape;
        super::cuda::attention::Way { batch, heads, s, t, d, causal, half: self.half }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (q, k, v) = (cpu(q, lq)?, cpu(k, lk)?, cpu(v, lv)?);
        let mut lse = self.tracked.then(|| unwritten(self.shape.batch * self.shape.s * self.shape.heads));
        let mut out = unwritten(q.len());
        kernel::forward(&self.shape, q, k, v, &mut out, lse.as_deref_mut());
        if let Some(lse) = lse {
            let _ = self.lse.set(lse); // an op is applied once
        }
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        lq: &Layout,
        k: &CudaStorage,
        lk: &Layout,
        v: &CudaStorage,
        lv: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (out, lse) = super::cuda::attention::forward(&self.way(), (q, lq), (k, lk), (v, lv))?;
        let _ = self.lse_there.set(lse); // an op is applied once
        Ok(out)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(lse) = self.lse_there.get() {
            return super::cuda::attention::backward(&self.way(), [q, k, v, out], lse, &dout.contiguous()?);
        }
        let Some(lse) = self.lse.get() else { candle_core::bail!("attention: backward before forward") };
        let dout = dout.contiguous()?;
        let ((sq, lq), (sk, lk), (sv, lv)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let ((so, lo), (sd, ld)) = (out.storage_and_layout(), dout.storage_and_layout());
        let (q_values, k_values, v_values) = (slice(&sq, lq)?, slice(&sk, lk)?, slice(&sv, lv)?);
        let saved = kernel::Saved { q: q_values, k: k_values, v: v_values, out: slice(&so, lo)?, lse };
        let wanted = [q.track_op(), k.track_op(), v.track_op()];
        let [dq, dk, dv] = kernel::backward(&self.shape, &saved, slice(&sd, ld)?, wanted);
        let tensor = |of: &Tensor, gradient: Vec<f32>| {
            of.track_op().then(|| Tensor::from_vec(gradient, of.shape(), of.device())).transpose()
        };
        Ok((tensor(q, dq)?, tensor(k, dk)?, tensor(v, dv)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::{compare, tensor};
    use candle_core::Var;

    fn check(batch: usize, s: usize, t: usize, heads: usize, d: usize, causal: bool) {
        let (q, k): (&[usize], &[usize]) = (&[batch, s, heads * d], &[batch, t, heads * d]);
        let name = if causal { "causal attention" } else { "attention" };
        compare(name, &[q, k, k], 5e-6, &|x| attention(&x[0], &x[1], &x[2], heads, causal));
    }

    #[test]
    fn matches_the_composite_on_small_and_odd_sizes() {
        for (batch, s, t, heads, d) in
            [(1, 1, 1, 1, 1), (2, 3, 5, 2, 4), (5, 17, 33, 3, 7), (1, 64, 77, 4, 16), (2, 130, 32, 4, 24)]
        {
            check(batch, s, t, heads, d, false);
        }
    }

    #[test]
    fn matches_the_composite_over_several_tiles_of_queries_and_keys() {
        check(1, 300, 1100, 1, 8, false);
        check(1, 140, 2100, 2, 5, false);
    }

    #[test]
    fn causal_sees_no_later_key() {
        check(2, 77, 77, 4, 16, true);
        check(1, 5, 5, 1, 3, true);
        check(1, 700, 700, 1, 8, true);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        compare("attention", &[&[1, 9, 8], &[1, 600, 8], &[1, 600, 8]], 1e-4, &|x| {
            attention(&(&x[0] * 40.0)?, &x[1], &x[2], 2, false)
        });
    }

    /// Rounded to `bf16`, operands have a 512th of error at most, and so have probabilities.
    #[test]
    fn beside_bf16_it_is_as_close_as_rounded_operands_are() {
        for (batch, s, t, heads, d, causal) in [
            (2, 64, 96, 2, 40, false),
            (1, 530, 400, 1, 8, false),
            (1, 50, 77, 3, 33, false),
            (1, 1, 1, 1, 1, false),
            (1, 70, 70, 2, 32, true),
        ] {
            let (q, k): (&[usize], &[usize]) = (&[batch, s, heads * d], &[batch, t, heads * d]);
            compare("attention beside bf16", &[q, k, k], 2e-2, &|x| {
                attention_beside(&x[0], &x[1], &x[2], heads, causal, DType::BF16)
            });
        }
    }

    /// The gradients of the values of all keys are what came in for all queries, as long as probabilities are those of the forward pass.
    #[test]
    fn probabilities_sum_to_one_in_the_backward_pass_too() {
        for kept in [DType::F32, DType::BF16] {
            let [q, k, v] = [1, 2, 3].map(|seed| Var::from_tensor(&tensor(&[1, 70, 80], seed, DType::F32)).unwrap());
            let weights = tensor(&[1, 70, 80], 4, DType::F32);
            let y = attention_beside(&q, &k, &v, 2, false, kept).unwrap();
            let loss = (y * &weights).unwrap().sum_all().unwrap();
            let dv = loss.backward().unwrap().get(&v).unwrap().sum(1).unwrap();
            let off = (dv - weights.sum(1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-4, "{kept:?}: {off}");
        }
    }

    #[test]
    fn reads_views_that_are_not_contiguous() {
        compare("attention", &[&[2, 8, 6], &[2, 5, 16], &[8, 2, 5]], 5e-6, &|x| {
            attention(&x[0].transpose(1, 2)?, &x[1].narrow(2, 4, 8)?, &x[2].permute((1, 2, 0))?, 2, false)
        });
    }
}
