//! 2-d convolution that computes gradients of tracked operands only.
//!
//! With `X` the columns of [`columns`] (`(in k k, H' W')` of one sample) and `W` as `(out, in k k)`:
//! `y = W X + b`, `dW = sum over samples of dy X^T`, `db = sum of dy`, and `dX = W^T dy`, folded back onto the input.
//! A 3x3 convolution of stride 1 and padding 1 goes through [`direct`] instead; its input gradient is the same
//! convolution of `dy` with the kernel flipped and its channels swapped.

mod columns;
mod direct;

use super::kernels::parallel::unwritten;
use super::kernels::storage::{cpu, fused, slice};
use super::params::ParamPath;
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

/// A convolution with the checkpoint's `weight` `(out, in, k, k)` and `bias` `(out)`.
#[derive(Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
    padding: usize,
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
        Ok(Self { weight: path.get(&[outputs, inputs, kernel, kernel], "weight")?, bias: None, stride, padding })
    }

    /// Shape: `(B, in, H, W)` -> `(B, out, H', W')`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &self.weight, self.bias.as_ref(), self.stride, self.padding)
    }
}

/// Cross-correlation with zero padding on all four sides.
///
/// # Shape
/// `x` `(B, in, H, W)`, `weight` `(out, in, k, k)`, `bias` `(out)` -> `(B, out, (H+2p-k)/s+1, (W+2p-k)/s+1)`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let operands: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    let Some(op) = Geometry::new(x, weight, bias, stride, padding).filter(|_| fused(&operands)) else {
        return reference(x, weight, bias, stride, padding);
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op)?,
        None => x.apply_op2(&weight, op)?,
    })
}

/// The same by candle's ops: for other types and devices, and what the tests compare with.
fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let y = x.conv2d(weight, padding, stride, 1, 1)?;
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

    /// Elements of one sample that goes in.
    fn in_sample(&self) -> usize {
        self.inputs * self.height * self.width
    }

    /// Rows of the columns: weights of one output.
    fn taps(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    fn is_direct(&self) -> bool {
        self.kernel == 3 && self.stride == 1 && self.padding == 1 && direct::available()
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (CpuStorage, Shape) {
        let mut y = unwritten(self.batch * self.outputs * self.out_pixels());
        if self.is_direct() {
            direct::convolve(self, x, direct::Kernel::Forward(weight), bias, &mut y);
        } else {
            columns::forward(self, x, weight, bias, &mut y);
        }
        (CpuStorage::F32(y), Shape::from((self.batch, self.outputs, self.out_height(), self.out_width())))
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let ((sx, lx), (sw, lw), (sd, ld)) =
            (x.storage_and_layout(), weight.storage_and_layout(), dy.storage_and_layout());
        let (values, w, dy) = (slice(&sx, lx)?, slice(&sw, lw)?, slice(&sd, ld)?);
        let dx = x.track_op().then(|| {
            let mut dx = unwritten(values.len());
            if self.is_direct() {
                let swapped = Self { inputs: self.outputs, outputs: self.inputs, ..*self };
                direct::convolve(&swapped, dy, direct::Kernel::Backward(w), None, &mut dx);
            } else {
                columns::input_gradient(self, dy, w, &mut dx);
            }
            Tensor::from_vec(dx, x.shape(), x.device())
        });
        let dw = weight.track_op().then(|| {
            let mut dw = vec![0.0; w.len()];
            columns::weight_gradient(self, values, dy, &mut dw);
            Tensor::from_vec(dw, weight.shape(), weight.device())
        });
        Ok((dx.transpose()?, dw.transpose()?))
    }
}

impl CustomOp2 for Geometry {
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
        Ok(self.forward(cpu(x, lx)?, cpu(w, lw)?, None))
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

impl CustomOp3 for Geometry {
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
        Ok(self.forward(cpu(x, lx)?, cpu(w, lw)?, Some(cpu(b, lb)?)))
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
        let db = if bias.track_op() {
            // pixels first, in order, so that any number of threads gives the same sum
            Some(dy.flatten_from(2)?.sum(2)?.sum(0)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;

    fn check(
        batch: usize,
        inputs: usize,
        outputs: usize,
        size: [usize; 2],
        kernel: usize,
        stride: usize,
        padding: usize,
    ) {
        let x = [batch, inputs, size[0], size[1]];
        let w = [outputs, inputs, kernel, kernel];
        let name = format!("conv2d k{kernel} s{stride} p{padding}");
        compare(&name, &[&x, &w, &[outputs]], 5e-6, &|t| conv2d(&t[0], &t[1], Some(&t[2]), stride, padding));
    }

    #[test]
    fn three_by_three_of_stride_one_on_odd_sizes() {
        check(1, 1, 1, [1, 1], 3, 1, 1);
        check(2, 3, 5, [5, 7], 3, 1, 1);
        check(5, 4, 9, [4, 4], 3, 1, 1);
        check(1, 16, 16, [16, 16], 3, 1, 1); // as many channels as rows and columns
        check(2, 20, 24, [9, 33], 3, 1, 1);
        check(1, 130, 10, [6, 50], 3, 1, 1); // more channels than one block
    }

    #[test]
    fn every_other_geometry() {
        check(2, 3, 4, [7, 5], 3, 2, 1);
        check(2, 3, 4, [8, 6], 3, 2, 1);
        check(1, 3, 4, [9, 7], 3, 2, 0);
        check(2, 6, 5, [5, 3], 1, 1, 0);
        check(3, 6, 5, [5, 7], 1, 2, 0); // candle cannot, where the parities of height and width differ
        check(1, 3, 4, [15, 11], 7, 2, 3);
        check(2, 3, 4, [6, 7], 3, 1, 0);
    }

    #[test]
    fn works_without_bias_and_on_views() {
        compare("conv2d", &[&[2, 5, 6, 3], &[4, 3, 3, 3]], 5e-6, &|t| {
            conv2d(&t[0].permute((0, 3, 1, 2))?, &t[1], None, 1, 1)
        });
    }
}
