//! `y = geglu(x) W^T + b` with a `W` that is trained: on the CPU, what lies between is computed again in the backward pass, which costs
//! next to nothing, instead of kept. Elsewhere the two ops after each other.

use super::activation::{Geglu, GegluGradOver, geglu_over};
use super::kernels::storage::fused;
use super::linear::{Linear, Product};
use super::record::apply3;
use crate::Result;
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

/// Of an `x` that nothing else reads, nor the op that made it: in the backward pass the gradient takes its place.
///
/// # Shape
/// `x` `(.., 2 in)`, `linear` from `in` to `out` -> `(.., out)`.
///
/// # Errors
/// If the sizes do not fit.
pub fn geglu_linear_over(x: Tensor, linear: &Linear) -> Result<Tensor> {
    let (weight, bias) = linear.parts();
    let fits = x.dims().last().is_some_and(|last| *last > 0 && *last == 2 * weight.dims()[1]);
    match bias {
        Some(bias)
            if x.device().is_cpu() && weight.track_op() && fits && x.is_contiguous() && fused(&[&x, weight, bias]) =>
        {
            Ok(apply3(&x, &weight.contiguous()?, &bias.contiguous()?, GegluProduct)?)
        }
        _ => linear.forward_releasing(geglu_over(x)?),
    }
}

/// With `h = geglu(x)`: `dW = dy^T h`, `db = sum of the rows of dy`, and `dx` as of [`Geglu`] for `dh = dy W`.
struct GegluProduct;

impl CustomOp3 for GegluProduct {
    fn name(&self) -> &'static str {
        "geglu-linear"
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
        let (h, shape) = Geglu::forward(x, lx)?;
        CustomOp3::cpu_fwd(&Product::default(), &h, &Layout::contiguous(shape), w, lw, b, lb)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let h = x.detach().apply_op1(Geglu { over: false })?;
        let (dh, dw) = Product::backward(&h, x.track_op(), w, &dy)?;
        let db = Product::bias_gradient(b, &dy)?;
        drop(h);
        let Some(dh) = dh else { return Ok((None, dw, db)) };
        x.inplace_op2(&dh, &GegluGradOver)?;
        Ok((Some(x.detach()), dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;

    #[test]
    fn matches_the_composite() {
        for (rows, half, outputs) in [(1, 1, 1), (7, 5, 3), (40, 64, 33), (300, 130, 64)] {
            let shapes: &[&[usize]] = &[&[2, rows, 2 * half], &[outputs, half], &[outputs]];
            compare("geglu and linear", shapes, 3e-6, &|x| {
                let linear = Linear::from_parts(x[1].clone(), Some(x[2].clone()));
                geglu_linear_over((&x[0] * 2.0)?, &linear)
            });
        }
    }
}
