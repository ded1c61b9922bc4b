//! 2-d convolution.

use super::params::ParamPath;
use crate::Result;
use candle_core::Tensor;

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
    let y = x.conv2d(weight, padding, stride, 1, 1)?;
    match bias {
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?)?),
        None => Ok(y),
    }
}
