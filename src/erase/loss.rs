//! The losses of scoring, memories and repair. All are means over the batch of means over the latent.

use super::batch::Batch;
use super::student::Predictor;
use crate::Result;
use crate::sd::Conditions;
use candle_core::Tensor;

/// The scale of the published class script's guided score: `(1 + w) cond - w uncond`.
const GUIDED_W: f64 = 7.5;

/// Mean squared error.
pub fn mse(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a - b)?.sqr()?.mean_all()?)
}

/// The denoising loss `l(x, c; theta)`: the prediction against the noise (or v).
pub fn denoising(unet: &impl Predictor, batch: &Batch, conditions: &Conditions) -> Result<Tensor> {
    mse(&unet.predict(&batch.noisy, &batch.t, conditions)?, &batch.target)
}

/// The denoising loss of the guided prediction `8.5 cond - 7.5 uncond`; the gradient flows through both.
pub fn guided_denoising(
    unet: &impl Predictor,
    batch: &Batch,
    cond: &Conditions,
    uncond: &Conditions,
) -> Result<Tensor> {
    let cond = unet.predict(&batch.noisy, &batch.t, cond)?;
    let uncond = unet.predict(&batch.noisy, &batch.t, uncond)?;
    mse(&((cond * (1.0 + GUIDED_W))? - (uncond * GUIDED_W)?)?, &batch.target)
}
