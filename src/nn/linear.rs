//! `y = x W^T + b`.

use super::params::ParamPath;
use crate::Result;
use candle_core::Tensor;

/// A linear layer with the checkpoint's `weight` `(out, in)` and, where it has one, `bias` `(out)`.
#[derive(Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` and `bias` at `path`.
    pub fn new(inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { bias: Some(path.get(&[outputs], "bias")?), ..Self::no_bias(inputs, outputs, path)? })
    }

    /// Reads `weight` at `path`.
    pub fn no_bias(inputs: usize, outputs: usize, path: ParamPath<'_>) -> Result<Self> {
        Ok(Self { weight: path.get(&[outputs, inputs], "weight")?, bias: None })
    }

    /// Shape: `(.., in)` -> `(.., out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `x W^T + b` over the last dimension.
///
/// # Shape
/// `x` `(.., in)`, `weight` `(out, in)`, `bias` `(out)` -> `(.., out)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let inputs = weight.dim(1)?;
    let rows = x.elem_count() / inputs;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let y = x.reshape((rows, inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(y.reshape(shape)?)
}
