//! 2-d convolution that computes gradients of tracked operands only.
//!
//! With `X` the columns of [`columns`] (`(in k k, H' W')` of one sample) and `W` as `(out, in k k)`:
//! `y = W X + b`, `dW = sum over samples of dy X^T`, `db = sum of dy`, and `dX = W^T dy`, folded back onto the input.
//! A 3x3 convolution of stride 1 and padding 1 goes through [`winograd`] (many tiles), [`taps`] (few outputs) or [`direct`] (many small
//! maps, or one large) instead where they win; its input gradient is, in any of the ways, the same convolution of `dy` with the kernel flipped and its
//! channels swapped.

mod columns;
mod direct;
mod kernel;
mod taps;
#[cfg(test)]
mod tests;
mod tiles;
mod upsampled;
mod winograd;

#[cfg(feature = "cuda")]
use super::cuda::conv2d as on_gpu;
use super::kernels::gemm::amx;
use super::kernels::parallel::{on_this_thread, unwritten};
use super::kernels::storage::{cpu, cpu_weight, fused_with, slice, weight as weight_values};
use super::kernels::values::Values;
use super::params::ParamPath;
use super::record::{apply2, apply3};
use super::release::done_with;
use super::rows::assumed_rows;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use kernel::Kernel;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use winograd::{Form, KernelPoints};

/// The columns of a map of more pixels than this are not worth their memory.
const LARGE_MAP: usize = 1 << 10;
/// A constant kernel of up to so many weights keeps its points (up to 16 times its nine weights' memory, in both directions).
const KEPT: usize = 1 << 16;

/// A convolution with the checkpoint's `weight` `(out, in, k, k)` and `bias` `(out)`.
#[derive(Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
    padding: usize,
    /// The points of a constant kernel.
    points: Option<Arc<Points>>,
}

/// What is made of a constant kernel when it is first asked for.
#[derive(Debug, Default)]
struct Points {
    /// A 3x3 kernel's points (see [`winograd`]) in either form.
    forward: [OnceLock<KernelPoints>; 2],
    backward: [OnceLock<KernelPoints>; 2],
    /// As the columns of many samples meet it.
    whole: OnceLock<Option<amx::Left>>,
}

impl Conv2d {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        path: ParamPath<'_>,
    ) -> Result<Self> {
        let bias = Some(path.get(&[outputs], "bias")?);
        Ok(Self { bias, ..Self::no_bias(inputs, outputs, kernel, stride, padding, path)? })
    }

    /// Reads `weight` at `path`.
    pub fn no_bias(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        path: ParamPath<'_>,
    ) -> Result<Self> {
        let points = (path.is_constant("weight") && inputs * outputs <= KEPT).then(Arc::default);
        let weight = path.get(&[outputs, inputs, kernel, kernel], "weight")?;
        Ok(Self { weight, bias: None, stride, padding, points })
    }

    /// As [`Conv2d::forward`], for the layer that a network begins with: on a GPU, where weights are kept in `bf16`, what follows is
    /// computed in `bf16`.
    pub fn forward_entering(&self, x: &Tensor) -> Result<Tensor> {
        let halved = self.weight.dtype() == DType::BF16 && self.weight.device().is_cuda();
        if halved { self.forward(&x.to_dtype(DType::BF16)?) } else { self.forward(x) }
    }

    /// As [`Conv2d::forward`], for the layer that a network ends with: what comes out is `f32`.
    pub fn forward_leaving(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward(x)?.to_dtype(DType::F32)?)
    }

    /// Shape: `(B, in, H, W)` -> `(B, out, H', W')`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        convolve(x, &self.weight, self.bias.as_ref(), self.stride, self.padding, self.points.clone())
    }

    /// As [`Conv2d::forward`], of an `x` that nothing else reads: its memory is given back, but for a trained weight's (see [`done_with`]).
    pub fn forward_releasing(&self, x: Tensor) -> Result<Tensor> {
        let y = self.forward(&x)?;
        done_with(x, self.weight.track_op())?;
        Ok(y)
    }
}

/// Cross-correlation with zero padding on all four sides.
///
/// # Shape
/// `x` `(B, in, H, W)`, `weight` `(out, in, k, k)`, `bias` `(out)` -> `(B, out, (H+2p-k)/s+1, (W+2p-k)/s+1)`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    convolve(x, weight, bias, stride, padding, None)
}

fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
    points: Option<Arc<Points>>,
) -> Result<Tensor> {
    let others: Vec<&Tensor> = [x].into_iter().chain(bias).collect();
    let Some(geometry) = Geometry::new(x, weight, bias, stride, padding).filter(|_| fused_with(weight, &others)) else {
        return reference(x, weight, bias, stride, padding);
    };
    let way = Way::of(&Geometry { batch: assumed_rows().unwrap_or(geometry.batch), ..geometry }, weight.dtype());
    let op = Convolution { geometry, way, points };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => apply3(&x, &weight, &bias.contiguous()?, op)?,
        None => apply2(&x, &weight, op)?,
    })
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let y = x.conv2d(&weight.to_dtype(x.dtype())?, padding, stride, 1, 1)?;
    match bias {
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?)?),
        None => Ok(y),
    }
}

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Geometry {
    /// `None` where the operands do not fit, so that candle's own op says what is wrong.
    fn new(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Option<Self> {
        let (&[batch, inputs, height, width], &[outputs, inputs_too, kernel, kernel_too]) = (x.dims(), weight.dims())
        else {
            return None;
        };
        let fits = inputs == inputs_too && kernel == kernel_too && kernel > 0 && stride > 0;
        let reaches = height + 2 * padding >= kernel && width + 2 * padding >= kernel;
        let bias_fits = bias.is_none_or(|bias| bias.dims() == [outputs]);
        let empty = x.elem_count() == 0 || weight.elem_count() == 0;
        (fits && reaches && bias_fits && !empty).then_some(Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            kernel,
            stride,
            padding,
        })
    }

    fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Pixels of a map that comes out.
    fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> on_gpu::Geometry {
        let [inputs, height, width, kernel, stride, padding, out_height, out_width] = [
            self.inputs,
            self.height,
            self.width,
            self.kernel,
            self.stride,
            self.padding,
            self.out_height(),
            self.out_width(),
        ]
        .map(|n| n as i32);
        on_gpu::Geometry { inputs, height, width, kernel, stride, padding, out_height, out_width }
    }

    /// Elements of one sample that goes in.
    fn in_sample(&self) -> usize {
        self.inputs * self.height * self.width
    }

    /// Rows of the columns: weights of one output.
    fn taps(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Winograd(Form),
    Columns,
    Taps,
    /// As on AMX, of a kernel that is kept in `bf16`.
    Tiles,
}

impl Way {
    /// The fastest on this machine; depends on the sizes, and what the kernel is kept in, alone.
    fn of(g: &Geometry, kept: DType) -> Self {
        if tiles::suits(g, kept) {
            Self::Tiles
        } else if taps::suits(g, kept) {
            Self::Taps
        } else if (g.kernel, g.stride, g.padding) != (3, 1, 1) {
            Self::Columns
        } else if let Some(form) = winograd::form(g) {
            Self::Winograd(form)
        } else if direct::available() && (g.batch >= columns::SAMPLES || g.out_pixels() > LARGE_MAP) {
            Self::Direct
        } else {
            Self::Columns
        }
    }
}

/// The op: `y` and the gradients of tracked operands.
struct Convolution {
    geometry: Geometry,
    way: Way,
    points: Option<Arc<Points>>,
}

impl Convolution {
    fn forward(&self, x: &[f32], weight: Values<'_>, bias: Option<&[f32]>) -> (CpuStorage, Shape) {
        let g = &self.geometry;
        let mut y = unwritten(g.batch * g.outputs * g.out_pixels());
        match self.way {
            Way::Direct => direct::convolve(g, x, Kernel::Forward(weight), bias, &mut y),
            Way::Winograd(form) => self.by_points(form, g, x, Kernel::Forward(weight), bias, &mut y),
            Way::Tiles => tiles::convolve(g, x, Kernel::Forward(weight), bias, &mut y),
            Way::Taps => taps::convolve(g, x, Kernel::Forward(weight), bias, &mut y),
            Way::Columns => columns::forward(g, x, weight, self.whole(weight), bias, &mut y),
        }
        (CpuStorage::F32(y), Shape::from((g.batch, g.outputs, g.out_height(), g.out_width())))
    }

    /// By [`winograd`], with the points of the kernel kept, made, or made on the way.
    fn by_points(&self, form: Form, g: &Geometry, x: &[f32], kernel: Kernel<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
        if winograd::streamed::suits(form, g) {
            winograd::streamed::convolve(form, g, x, kernel, bias, y);
        } else {
            winograd::convolve(form, g, x, &self.points(form, g, kernel), bias, y);
        }
    }

    /// What is kept of a constant kernel that many samples meet.
    fn whole(&self, weight: Values<'_>) -> Option<&amx::Left> {
        let points = self.points.as_ref().filter(|_| self.geometry.batch >= columns::SAMPLES)?;
        points.whole.get_or_init(|| columns::kept(&self.geometry, weight)).as_ref()
    }

    /// The kernel's points, kept where the kernel is constant.
    fn points(&self, form: Form, g: &Geometry, kernel: Kernel<'_>) -> Cow<'_, KernelPoints> {
        let Some(points) = &self.points else {
            return Cow::Owned(winograd::transform_kernel(form, g, kernel));
        };
        let place = match kernel {
            Kernel::Forward(_) => &points.forward,
            Kernel::Backward(_) => &points.backward,
        };
        let make = || on_this_thread(|| winograd::transform_kernel(form, g, kernel));
        Cow::Borrowed(place[usize::from(form == Form::F4)].get_or_init(make))
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = &self.geometry;
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return on_gpu::backward(&g.on_gpu(), x, weight, dy);
        }
        let ((sx, lx), (sw, lw), (sd, ld)) =
            (x.storage_and_layout(), weight.storage_and_layout(), dy.storage_and_layout());
        let (w, dy) = (weight_values(&sw, lw)?, slice(&sd, ld)?);
        let dx = x.track_op().then(|| {
            let mut dx = unwritten(lx.shape().elem_count());
            let (swapped, kernel) = (Geometry { inputs: g.outputs, outputs: g.inputs, ..*g }, Kernel::Backward(w));
            match self.way {
                Way::Direct => direct::convolve(&swapped, dy, kernel, None, &mut dx),
                Way::Winograd(form) => self.by_points(form, &swapped, dy, kernel, None, &mut dx),
                Way::Tiles => tiles::convolve(&swapped, dy, kernel, None, &mut dx),
                Way::Columns | Way::Taps
                    if (g.kernel, g.stride, g.padding) == (3, 1, 1) && g.batch >= columns::SAMPLES =>
                {
                    columns::forward(&swapped, dy, kernel.weights(&swapped).as_slice().into(), None, None, &mut dx);
                }
                Way::Columns | Way::Taps => columns::input_gradient(g, dy, w, &mut dx),
            }
            Tensor::from_vec(dx, x.shape(), x.device())
        });
        if !weight.track_op() {
            return Ok((dx.transpose()?, None)); // x may have been released
        }
        let mut dw = vec![0.0; w.len()];
        columns::weight_gradient(g, slice(&sx, lx)?, dy, &mut dw);
        Ok((dx.transpose()?, Some(Tensor::from_vec(dw, weight.shape(), weight.device())?)))
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(cpu(x, lx)?, cpu_weight(w, lw)?, None))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        on_gpu::forward(&self.geometry.on_gpu(), (x, lx), (w, lw), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, &dy.contiguous()?)
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
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
        Ok(self.forward(cpu(x, lx)?, cpu_weight(w, lw)?, Some(cpu(b, lb)?)))
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
        on_gpu::forward(&self.geometry.on_gpu(), (x, lx), (w, lw), Some((b, lb)))
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
        let (dx, dw) = self.backward(x, w, &dy)?;
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return Ok((dx, dw, bias.track_op().then(|| on_gpu::bias_gradient(&dy)).transpose()?));
        }
        let db = if bias.track_op() {
            // pixels first, in order, so that any number of threads gives the same sum
            Some(dy.flatten_from(2)?.sum(2)?.sum(0)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}
