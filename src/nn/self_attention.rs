//! Attention of pixels to pixels, whose queries, keys and values one product made: they lie side by side, and so do their gradients.

use super::attention::attention_beside;
use super::kernels::attention as kernel;
use super::kernels::parallel::unwritten;
use super::kernels::storage::{cpu, fused, slice};
use super::record::apply1;
use crate::Result;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// As [`super::attention`], between projections that are kept in `kept` (see [`attention_beside`]).
///
/// # Shape
/// `qkv` `(B, S, 3 heads d)`: of each row the query, the key and the value of all heads -> `(B, S, heads d)`.
///
/// # Errors
/// If it has no such rows.
pub fn self_attention(qkv: &Tensor, heads: usize, kept: DType) -> Result<Tensor> {
    let (batch, s, apart) = qkv.dims3()?;
    let width = apart / 3;
    let fits = heads > 0 && apart == 3 * width && width.is_multiple_of(heads);
    if !fits || !qkv.device().is_cpu() || !fused(&[qkv]) || qkv.elem_count() == 0 || s > kernel::FEW_KEYS {
        let part = |i: usize| qkv.narrow(2, i * width, width);
        return attention_beside(&part(0)?, &part(1)?, &part(2)?, heads, false, kept);
    }
    let (d, brief) = (width / heads, kept == DType::BF16);
    let shape = kernel::Shape { batch, heads, s, t: s, d, apart, causal: false, brief };
    Ok(apply1(&qkv.contiguous()?, SelfAttention { shape, tracked: qkv.track_op(), lse: OnceLock::new() })?)
}

/// As the op of [`attention_beside`] (the formulas are at [`kernel::backward`]).
struct SelfAttention {
    shape: kernel::Shape,
    /// Whether there will be a backward pass.
    tracked: bool,
    lse: OnceLock<Vec<f32>>,
}

impl SelfAttention {
    /// What begins with the queries, the keys and the values.
    fn parts<'a>(&self, qkv: &'a [f32]) -> [&'a [f32]; 3] {
        let width = self.shape.apart / 3;
        [qkv, &qkv[width..], &qkv[2 * width..]]
    }
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let kernel::Shape { batch, heads, s, d, .. } = self.shape;
        let [q, k, v] = self.parts(cpu(qkv, layout)?);
        let mut lse = self.tracked.then(|| unwritten(batch * s * heads));
        let mut out = unwritten(batch * s * heads * d);
        kernel::forward(&self.shape, q, k, v, &mut out, lse.as_deref_mut());
        if let Some(lse) = lse {
            let _ = self.lse.set(lse); // an op is applied once
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, s, heads * d))))
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, dout: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(lse) = self.lse.get() else { candle_core::bail!("self-attention: backward before forward") };
        let dout = dout.contiguous()?;
        let ((sx, lx), (so, lo), (sd, ld)) =
            (qkv.storage_and_layout(), out.storage_and_layout(), dout.storage_and_layout());
        let [q, k, v] = self.parts(slice(&sx, lx)?);
        let saved = kernel::Saved { q, k, v, out: slice(&so, lo)?, lse };
        let gradients = kernel::backward_beside(&self.shape, &saved, slice(&sd, ld)?);
        Ok(Some(Tensor::from_vec(gradients, qkv.shape(), qkv.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::{compare, tensor};
    use crate::nn::{Linear, attention};
    use candle_core::Device;

    #[test]
    fn matches_the_composite_on_small_and_odd_sizes() {
        for (batch, s, heads, d) in [(1, 1, 1, 1), (2, 5, 2, 4), (5, 33, 3, 7), (2, 130, 4, 24), (1, 700, 1, 8)] {
            compare("self-attention", &[&[batch, s, 3 * heads * d]], 5e-6, &|x| {
                self_attention(&x[0], heads, DType::F32)
            });
        }
    }

    /// The same kernel on other strides: not a bit differs.
    #[test]
    fn gives_the_bits_of_separate_operands() {
        let qkv = tensor(&[2, 90, 3 * 64], 1, DType::F32);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.narrow(2, 64 * i, 64).unwrap().contiguous().unwrap());
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for kept in [DType::F32, DType::BF16] {
            let separate = attention_beside(&q, &k, &v, 4, false, kept).unwrap();
            assert!(values(self_attention(&qkv, 4, kept).unwrap()) == values(separate), "{kept:?}");
        }
    }

    #[test]
    fn more_keys_than_a_task_takes_go_the_other_way() {
        let s = kernel::FEW_KEYS + 3;
        let qkv = tensor(&[1, s, 3 * 8], 2, DType::F32);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.narrow(2, 8 * i, 8).unwrap());
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = values(self_attention(&qkv, 2, DType::F32).unwrap());
        assert!(found == values(attention(&q, &k, &v, 2, false).unwrap()));
    }

    #[test]
    fn rows_that_are_no_three_are_refused() {
        let x = Tensor::zeros((1, 4, 10), DType::F32, &Device::Cpu).unwrap();
        assert!(self_attention(&x, 2, DType::F32).is_err());
        assert!(self_attention(&x, 0, DType::F32).is_err());
    }

    #[test]
    fn layers_of_trained_weights_are_not_joined() {
        let layer = Linear::from_parts(tensor(&[8, 8], 1, DType::F32), None);
        assert!(Linear::joined(&[&layer, &layer, &layer]).unwrap().is_none());
    }
}
