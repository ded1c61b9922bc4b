//! Pointwise activations and GEGLU.

use crate::Result;
use candle_core::{D, Tensor};

/// `x sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Ok(x.silu()?)
}

/// The exact GELU, `x Phi(x)` by erf (not the tanh approximation).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

/// CLIP's `x sigmoid(1.702 x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let scaled = (x * 1.702)?;
    Ok((x / ((scaled.neg()?.exp()? + 1.0)?))?)
}

/// `a gelu(g)` with `[a | g]` the halves of the last dimension (diffusers' `GEGLU`, exact GELU).
///
/// # Shape
/// `(.., 2 d)` -> `(.., d)`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    Ok((x.narrow(D::Minus1, 0, half)? * gelu(&x.narrow(D::Minus1, half, half)?)?)?)
}
