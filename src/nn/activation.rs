//! Pointwise activations and GEGLU.

#[cfg(feature = "cuda")]
use super::cuda::activation as on_gpu;
use super::kernels::activation as kernel;
use super::kernels::parallel::{chunks, unwritten};
use super::kernels::storage::{cpu, cpu_mut, fused, slice};
use super::record::apply1;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, D, InplaceOp2, Layout, Shape, Tensor};

/// Elements of a parallel block.
const CHUNK: usize = 1 << 14;

/// `x sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Silu, x)
}

/// The exact GELU, `x Phi(x)` by erf (not the tanh approximation).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Gelu, x)
}

/// CLIP's `x sigmoid(1.702 x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::QuickGelu, x)
}

/// `a gelu(g)` with `[a | g]` the halves of the last dimension (diffusers' `GEGLU`, exact GELU).
///
/// # Shape
/// `(.., 2 d)` -> `(.., d)`.
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    apply_geglu(x, false)
}

/// As [`geglu`], of an `x` that nothing else reads, nor the op that made it: in the backward pass the gradient takes its place.
///
/// # Errors
/// As [`geglu`].
pub fn geglu_over(x: Tensor) -> Result<Tensor> {
    let whole = x.is_contiguous();
    apply_geglu(&x, whole)
}

fn apply_geglu(x: &Tensor, over: bool) -> Result<Tensor> {
    let last = x.dim(D::Minus1)?;
    if last % 2 == 1 {
        return Err(candle_core::Error::msg(format!("geglu needs an even number of features, not {last}")).into());
    }
    if fused(&[x]) && last > 0 {
        return Ok(apply1(&x.contiguous()?, Geglu { over })?);
    }
    let half = last / 2;
    Ok((x.narrow(D::Minus1, 0, half)? * reference(Pointwise::Gelu, &x.narrow(D::Minus1, half, half)?)?)?)
}

fn pointwise(op: Pointwise, x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) { Ok(apply1(&x.contiguous()?, op)?) } else { reference(op, x) }
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(op: Pointwise, x: &Tensor) -> Result<Tensor> {
    Ok(match op {
        Pointwise::Silu => x.silu()?,
        Pointwise::Gelu => x.gelu_erf()?,
        Pointwise::QuickGelu => (x / (((x * -1.702)?.exp()? + 1.0)?))?,
    })
}

/// A function of each element; the backward pass recomputes it from `x`.
#[derive(Clone, Copy, Debug)]
enum Pointwise {
    Silu,
    Gelu,
    QuickGelu,
}

#[cfg(feature = "cuda")]
impl Pointwise {
    fn on_gpu(self) -> on_gpu::Kind {
        match self {
            Self::Silu => on_gpu::Kind::Silu,
            Self::Gelu => on_gpu::Kind::Gelu,
            Self::QuickGelu => on_gpu::Kind::QuickGelu,
        }
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = cpu(x, lx)?;
        let f = match self {
            Self::Silu => kernel::silu,
            Self::Gelu => kernel::gelu,
            Self::QuickGelu => kernel::quick_gelu,
        };
        let mut y = unwritten(x.len());
        chunks(&mut y, CHUNK, |i, y| f(&x[i * CHUNK..][..y.len()], y));
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        on_gpu::forward(self.on_gpu(), x, lx)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return Ok(Some(on_gpu::backward(self.on_gpu(), x, &dy.contiguous()?)?));
        }
        let f = match self {
            Self::Silu => kernel::silu_grad,
            Self::Gelu => kernel::gelu_grad,
            Self::QuickGelu => kernel::quick_gelu_grad,
        };
        let dy = dy.contiguous()?;
        let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
        let (values, dy) = (slice(&sx, lx)?, slice(&sd, ld)?);
        let mut dx = unwritten(values.len());
        chunks(&mut dx, CHUNK, |i, dx| f(&values[i * CHUNK..][..dx.len()], &dy[i * CHUNK..][..dx.len()], dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// `y = a gelu(g)`: `da = dy gelu(g)`, `dg = dy a gelu'(g)`.
pub(super) struct Geglu {
    /// Whether the gradient is written over `x`.
    pub over: bool,
}

impl Geglu {
    pub(super) fn forward(x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = cpu(x, lx)?;
        let mut shape = lx.dims().to_vec();
        let half = shape.last().map_or(0, |last| last / 2).max(1);
        if let Some(last) = shape.last_mut() {
            *last = half;
        }
        let rows = CHUNK.div_ceil(2 * half);
        let mut y = unwritten(x.len() / 2);
        chunks(&mut y, rows * half, |i, y| kernel::geglu(&x[2 * i * rows * half..][..2 * y.len()], half, y));
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Self::forward(x, lx)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        on_gpu::geglu(x, lx)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        if self.over {
            x.inplace_op2(&dy, &GegluGradOver)?;
            return Ok(Some(x.detach()));
        }
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return Ok(Some(on_gpu::geglu_backward(x, &dy)?));
        }
        let half = (x.dim(D::Minus1)? / 2).max(1);
        let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
        let (values, dy) = (slice(&sx, lx)?, slice(&sd, ld)?);
        let size = CHUNK.div_ceil(2 * half) * 2 * half;
        let mut dx = unwritten(values.len());
        chunks(&mut dx, size, |i, dx| {
            kernel::geglu_grad(&values[i * size..][..dx.len()], &dy[i * size / 2..][..dx.len() / 2], half, dx);
        });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// The gradient of [`Geglu`], written over what it read.
pub(super) struct GegluGradOver;

impl InplaceOp2 for GegluGradOver {
    fn name(&self) -> &'static str {
        "the gradient of geglu over its input"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, lx: &Layout, dy: &CpuStorage, ld: &Layout) -> candle_core::Result<()> {
        let half = lx.dims().last().map_or(0, |last| last / 2).max(1);
        let (x, dy) = (cpu_mut(x, lx)?, cpu(dy, ld)?);
        let size = CHUNK.div_ceil(2 * half) * 2 * half;
        chunks(x, size, |i, x| kernel::geglu_grad_over(x, &dy[i * size / 2..][..x.len() / 2], half));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut CudaStorage, lx: &Layout, dy: &CudaStorage, ld: &Layout) -> candle_core::Result<()> {
        on_gpu::geglu_backward_over((x, lx), (dy, ld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;
    use candle_core::Device;

    #[test]
    fn functions_and_slopes_match_the_composites() {
        for shape in [&[1usize, 1] as &[usize], &[2, 3, 7], &[5, 31], &[3, 20_001]] {
            for op in [Pointwise::Silu, Pointwise::Gelu, Pointwise::QuickGelu] {
                let name = CustomOp1::name(&op);
                compare(name, &[shape], 1e-6, &|x| pointwise(op, &(&x[0] * 3.0)?));
            }
        }
        compare("silu of a view", &[&[3, 5, 4]], 1e-6, &|x| silu(&x[0].transpose(0, 2)?));
    }

    #[test]
    fn geglu_matches_the_composite() {
        for shape in [&[1usize, 2] as &[usize], &[2, 3, 14], &[5, 62], &[40, 2000]] {
            compare("geglu", &[shape], 1e-6, &|x| geglu(&x[0]));
            compare("geglu, its gradient in place", &[shape], 1e-6, &|x| geglu_over((&x[0] * 2.0)?));
        }
        compare("geglu of a view", &[&[3, 8, 5]], 1e-6, &|x| geglu(&x[0].transpose(1, 2)?));
        let odd = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(geglu(&odd).is_err());
    }

    #[test]
    fn extremes_stay_finite_and_nan_stays_nan() {
        let x = Tensor::new(&[-1e30f32, -200.0, -90.0, 0.0, 90.0, 1e30], &Device::Cpu).unwrap();
        for op in [Pointwise::Silu, Pointwise::Gelu, Pointwise::QuickGelu] {
            let y: Vec<f32> = pointwise(op, &x).unwrap().to_vec1().unwrap();
            assert!(y[..3].iter().all(|y| y.abs() < 1e-6), "{op:?}: {y:?}");
            assert_eq!(y[3..], [0.0, 90.0, 1e30], "{op:?}");
            let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
            assert!(pointwise(op, &nan).unwrap().to_vec1::<f32>().unwrap()[0].is_nan(), "{op:?}");
        }
    }
}
