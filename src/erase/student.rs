//! The network that is trained, as a loss sees it: with its graph in memory, or with checkpoints.

use super::gradient::is_lean;
use crate::Result;
use crate::nn::{Gradients, ParamStore, Record, backward_recorded, record, record_lean};
use crate::sd::{Conditions, Tape, Unet, backward_through};
use candle_core::Tensor;
use std::cell::RefCell;

/// What predicts the noise (or v): a network as it is, or as it is trained.
pub trait Predictor {
    /// As [`Unet::forward`].
    ///
    /// # Errors
    /// As [`Unet::forward`].
    fn predict(&self, x: &Tensor, t: &[f32], conditions: &Conditions) -> Result<Tensor>;
}

impl Predictor for Unet {
    fn predict(&self, x: &Tensor, t: &[f32], conditions: &Conditions) -> Result<Tensor> {
        self.forward(x, t, conditions)
    }
}

impl Predictor for Student<'_> {
    fn predict(&self, x: &Tensor, t: &[f32], conditions: &Conditions) -> Result<Tensor> {
        let Some(tapes) = &self.tapes else {
            let pass = || self.unet.forward(x, t, conditions);
            let (_, _, height, width) = x.dims4()?;
            let (prediction, record) = if is_lean(height * width) { record_lean(pass) } else { record(pass) }?;
            self.records.borrow_mut().push(record);
            return Ok(prediction);
        };
        let (prediction, tape) = self.unet.forward_checkpointed(x, t, conditions)?;
        tapes.borrow_mut().push(tape);
        Ok(prediction)
    }
}

/// One loss's view of the trained network. Every prediction goes through it, so that the backward pass finds its way.
pub struct Student<'u> {
    unet: &'u Unet,
    /// The passes so far, if blocks are computed again in the backward pass.
    tapes: Option<RefCell<Vec<Tape<'u>>>>,
    /// The passes so far, if they are kept whole.
    records: RefCell<Vec<Record>>,
}

impl<'u> Student<'u> {
    /// With `checkpointing`, the graph is kept block by block (see [`Unet::forward_checkpointed`]).
    pub fn new(unet: &'u Unet, checkpointing: bool) -> Self {
        Self { unet, tapes: checkpointing.then(RefCell::default), records: RefCell::default() }
    }

    /// The gradients of a loss of its predictions.
    ///
    /// # Errors
    /// As [`backward`].
    pub fn backward(self, loss: Tensor, params: &ParamStore) -> Result<Gradients> {
        match self.tapes {
            None => backward_recorded(loss, self.records.into_inner(), params),
            Some(tapes) => backward_through(loss, tapes.into_inner(), params),
        }
    }
}
