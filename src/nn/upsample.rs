//! Nearest-neighbour upsampling by two.

use crate::Result;
use candle_core::Tensor;

/// Doubles height and width, each pixel four times.
///
/// # Shape
/// `(B, C, H, W)` -> `(B, C, 2H, 2W)`.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?;
    Ok(x.reshape((b, c, 2 * h, 2 * w))?)
}
