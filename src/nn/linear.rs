//! `y = x W^T + b`.

use super::kernels::gemm::{Onto, Packed};
use super::kernels::matmul::{View, column_sums, matmul, matmul_packed, matmul_tn};
use super::kernels::parallel::{on_this_thread, unwritten};
use super::kernels::storage::{cpu, cpu_weight, fused_with, slice, weight as weight_values};
use super::kernels::values::Values;
use super::params::ParamPath;
use super::record::{apply2, apply3};
use super::release::done_with;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor, TensorId};
use std::sync::{Arc, OnceLock};

/// A linear layer with the checkpoint's `weight` `(out, in)` and, where it has one, `bias` `(out)`.
#[derive(Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// A constant weight, packed when it is first used.
    packed: Option<Kept>,
}

type Kept = Arc<OnceLock<Packed>>;

/// A constant weight of up to so many elements is kept packed too.
const KEPT: usize = 3 << 15;

impl Linear {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { bias: Some(path.get(&[outputs], "bias")?), ..Self::no_bias(inputs, outputs, path)? })
    }

    /// Reads `weight` at `path`.
    pub fn no_bias(inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<Self> {
        let packed = (path.is_constant("weight") && inputs * outputs <= KEPT).then(Arc::default);
        Ok(Self { weight: path.get(&[outputs, inputs], "weight")?, bias: None, packed })
    }

    /// One layer whose results are those of all of these side by side, if they are small enough to be kept packed, have no bias, and read the
    /// same: what goes in is then read once. On a CPU.
    ///
    /// # Errors
    /// Those of candle.
    pub fn joined(layers: &[&Self]) -> Result<Option<Self>> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
        let alike = |x: &&Tensor| x.dims()[1] == weights[0].dims()[1] && x.dtype() == weights[0].dtype();
        let constant = layers.iter().all(|layer| layer.packed.is_some() && layer.bias.is_none());
        let small = weights.iter().map(|x| x.elem_count()).sum::<usize>() <= KEPT;
        if !(constant && small && weights.iter().all(alike) && weights.iter().all(|x| x.device().is_cpu())) {
            return Ok(None);
        }
        Ok(Some(Self { weight: Tensor::cat(&weights, 0)?, bias: None, packed: Some(Arc::default()) }))
    }

    /// What tells its weight from all others.
    pub fn id(&self) -> TensorId {
        self.weight.id()
    }

    /// Of a weight and a bias that are there already.
    #[cfg(test)]
    pub(super) fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, packed: None }
    }

    /// Weight and bias.
    pub(super) fn parts(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.weight, self.bias.as_ref())
    }

    /// What its weight is kept in.
    pub fn kept(&self) -> DType {
        self.weight.dtype()
    }

    /// Whether its weight is trained.
    pub fn is_trainable(&self) -> bool {
        self.weight.track_op()
    }

    /// The gradient of [`Linear::forward`] in its input, on a CPU. Shape: contiguous `(rows, out)` -> `(rows, in)`.
    pub(super) fn input_gradient(&self, dy: &Tensor) -> candle_core::Result<Tensor> {
        let shape = (dy.dim(0)?, self.weight.dim(1)?);
        let ((sw, lw), (sd, ld)) = (self.weight.storage_and_layout(), dy.storage_and_layout());
        let dx = input_gradient(weight_values(&sw, lw)?, lw.dims(), slice(&sd, ld)?);
        Tensor::from_vec(dx, shape, dy.device())
    }

    /// Shape: `(.., in)` -> `(.., out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        multiply(x, &self.weight, self.bias.as_ref(), self.packed.clone())
    }

    /// As [`Linear::forward`], of an `x` that nothing else reads: its memory is given back, but for a trained weight's (see [`done_with`]).
    pub fn forward_releasing(&self, x: Tensor) -> Result<Tensor> {
        let y = self.forward(&x)?;
        done_with(x, self.weight.track_op())?;
        Ok(y)
    }
}

/// `x W^T + b` over the last dimension.
///
/// # Shape
/// `x` `(.., in)`, `weight` `(out, in)`, `bias` `(out)` -> `(.., out)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    multiply(x, weight, bias, None)
}

fn multiply(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, packed: Option<Kept>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let others: Vec<&Tensor> = [x].into_iter().chain(bias).collect();
    let fits = x.dims().last() == Some(&inputs) && bias.is_none_or(|bias| bias.dims() == [outputs]);
    if !fits || !fused_with(weight, &others) {
        return reference(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => apply3(&x, &weight, &bias.contiguous()?, Product { packed })?,
        None => apply2(&x, &weight, Product { packed })?,
    })
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let inputs = weight.dim(1)?;
    let rows = x.elem_count() / inputs.max(1);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let y = x.reshape((rows, inputs))?.matmul(&weight.to_dtype(x.dtype())?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(y.reshape(shape)?)
}

/// `dy W`, with a contiguous `W` of `shape` `(out, in)`.
fn input_gradient(weight: Values<'_>, shape: &[usize], dy: &[f32]) -> Vec<f32> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let rows = dy.len() / outputs.max(1);
    let mut dx = unwritten(rows * inputs);
    matmul((rows, inputs, outputs), View::new(dy, outputs, 1), View::new(weight, inputs, 1), Onto::Nothing, &mut dx);
    dx
}

/// `y = x W^T + b` with `dx = dy W`, `dW = dy^T x`, `db = sum of the rows of dy`, each only for a tracked operand.
#[derive(Default)]
pub(super) struct Product {
    packed: Option<Kept>,
}

impl Product {
    fn forward(
        &self,
        x: &[f32],
        weight: Values<'_>,
        bias: Option<&[f32]>,
        lx: &Layout,
        lw: &Layout,
    ) -> (CpuStorage, Shape) {
        let (outputs, inputs) = (lw.dims()[0], lw.dims()[1]);
        let rows = lx.shape().elem_count() / inputs.max(1);
        let mut shape = lx.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        let mut y = unwritten(rows * outputs);
        let onto = bias.map_or(Onto::Nothing, Onto::Row);
        let (x, weight) = (View::new(x, inputs, 1), View::new(weight, 1, inputs));
        match &self.packed {
            Some(packed) => {
                let weight = packed.get_or_init(|| on_this_thread(|| Packed::new(inputs, outputs, weight)));
                matmul_packed((rows, outputs, inputs), x, weight, onto, &mut y);
            }
            None => matmul((rows, outputs, inputs), x, weight, onto, &mut y),
        }
        (CpuStorage::F32(y), Shape::from(shape))
    }

    /// `dx`, if it is wanted, and `dW`, if the weight is trained.
    pub(super) fn backward(
        x: &Tensor,
        wanted: bool,
        weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return super::cuda::linear::backward(x, wanted, weight, dy);
        }
        let (outputs, inputs) = weight.dims2()?;
        let rows = x.elem_count() / inputs.max(1);
        let ((sx, lx), (sw, lw), (sd, ld)) =
            (x.storage_and_layout(), weight.storage_and_layout(), dy.storage_and_layout());
        let (w, dy) = (weight_values(&sw, lw)?, slice(&sd, ld)?);
        let dx = wanted.then(|| Tensor::from_vec(input_gradient(w, lw.dims(), dy), x.shape(), x.device()));
        if !weight.track_op() {
            return Ok((dx.transpose()?, None)); // x may have been released
        }
        let values = slice(&sx, lx)?;
        let mut dw = vec![0.0; outputs * inputs];
        matmul_tn((outputs, inputs, rows), View::new(dy, outputs, 1), View::new(values, inputs, 1), &mut dw);
        Ok((dx.transpose()?, Some(Tensor::from_vec(dw, weight.shape(), weight.device())?)))
    }

    /// `db`, if the bias is trained.
    pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if !bias.track_op() {
            return Ok(None);
        }
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return super::cuda::linear::column_sums(dy, bias.elem_count()).map(Some);
        }
        let mut db = vec![0.0; bias.elem_count()];
        let (sd, ld) = dy.storage_and_layout();
        column_sums(slice(&sd, ld)?, &mut db);
        Ok(Some(Tensor::from_vec(db, bias.shape(), bias.device())?))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(cpu(x, lx)?, cpu_weight(w, lw)?, None, lx, lw))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::linear::forward((x, lx), (w, lw), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, x.track_op(), w, &dy.contiguous()?)
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "linear"
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
        Ok(self.forward(cpu(x, lx)?, cpu_weight(w, lw)?, Some(cpu(b, lb)?), lx, lw))
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
        super::cuda::linear::forward((x, lx), (w, lw), Some((b, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dw) = Self::backward(x, x.track_op(), w, &dy)?;
        Ok((dx, dw, Self::bias_gradient(bias, &dy)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::{compare, compare_halved};

    #[test]
    fn matches_the_composite_with_and_without_bias() {
        for (rows, inputs, outputs) in [(1, 1, 1), (2, 3, 5), (5, 17, 33), (77, 64, 48), (1030, 40, 129), (3, 300, 700)]
        {
            let x: &[usize] = &[1, rows, inputs];
            let (weight, bias): (&[usize], &[usize]) = (&[outputs, inputs], &[outputs]);
            compare("linear", &[x, weight, bias], 2e-6, &|x| linear(&x[0], &x[1], Some(&x[2])));
            compare("linear without bias", &[x, weight], 2e-6, &|x| linear(&x[0], &x[1], None));
            compare_halved("linear", &[x, weight, bias], &|x| linear(&x[0], &x[1], Some(&x[2])));
        }
    }

    #[test]
    fn reads_views_that_are_not_contiguous() {
        compare("linear", &[&[2, 7, 9], &[7, 4], &[8]], 2e-6, &|x| {
            linear(&x[0].transpose(1, 2)?, &x[1].t()?, Some(&x[2].narrow(0, 3, 4)?))
        });
    }

    #[test]
    fn long_weight_gradients_are_cut_and_summed() {
        compare("linear", &[&[4100, 24], &[20, 24], &[20]], 4e-6, &|x| linear(&x[0], &x[1], Some(&x[2])));
    }
}
