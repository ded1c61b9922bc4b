//! Gradient checkpointing by layer, a resnet with its attention (Chen et al. 2016, «Training Deep Nets with Sublinear Memory
//! Cost»): the forward pass keeps what goes into each piece of the network, and the backward pass computes each piece again, from the
//! last to the first.
//!
//! With `h' = stage(h, temb, skips)` and the gradient `g'` of the loss in `h'` (and in the skips that it made), the gradients
//! in `h`, `temb`, the skips that it took and its parameters are those of the scalar `<h', g'>` (plus the same for its skips).
//! At most one piece's graph is in memory. Nothing before the first trainable parameter is computed again.

use super::context::Context;
use super::{AddedConditions, Stage, Unet};
use crate::nn::{Gradients, ParamStore, complete, gather, on_deep_stack, record_lean, repeat_rows, total};
use crate::sd::Conditions;
use crate::{Error, Result};
use candle_core::{Tensor, Var};

/// What a forward pass leaves for its backward pass.
pub struct Tape<'u> {
    unet: &'u Unet,
    t: Vec<f32>,
    added: Option<AddedConditions>,
    context: Context,
    temb: Tensor,
    pieces: Vec<Piece>,
    prediction: Var,
    skips: usize,
}

/// A piece of the network and what went into it.
struct Piece {
    stage: Stage,
    h: Tensor,
    /// The skips that it takes.
    taken: Vec<Tensor>,
    /// How many skips there were before it.
    before: usize,
    /// How many there are after it.
    after: usize,
}

impl Unet {
    /// As [`Unet::forward`], keeping no more than what goes into each layer. The prediction is a leaf of the graph: its
    /// gradient goes into [`Tape::backward`].
    ///
    /// # Errors
    /// As [`Unet::forward`].
    pub fn forward_checkpointed(
        &self,
        x: &Tensor,
        t: &[f32],
        conditions: impl Into<Conditions>,
    ) -> Result<(Tensor, Tape<'_>)> {
        let Conditions { context, added } = &conditions.into();
        let context = Context::new(&context.detach());
        self.check_operands(x, t, &context)?;
        let rows = context.rows()?;
        let (x, t) = (repeat_rows(x, rows)?, t.repeat(rows / t.len().max(1)));
        let temb = self.embed(&t, added.as_ref(), x.device())?.detach();
        let (mut h, mut skips, mut pieces) = (x.detach(), Vec::<Tensor>::new(), Vec::new());
        let mut most = 0;
        for stage in self.stages() {
            let had = skips.clone();
            let out = self.run(stage, &h, &temb, &context, &mut skips)?.detach();
            skips.iter_mut().for_each(|skip| *skip = skip.detach());
            let taken = had[skips.len().min(had.len())..].to_vec();
            pieces.push(Piece { stage, h, taken, before: had.len(), after: skips.len() });
            most = most.max(skips.len());
            h = out;
        }
        let prediction = Var::from_tensor(&h)?;
        let tape = Tape { unet: self, t, added: added.clone(), context, temb, pieces, prediction, skips: most };
        Ok((tape.prediction.as_tensor().clone(), tape))
    }
}

/// The gradients of what passes between pieces.
struct Cotangents {
    h: Tensor,
    temb: Option<Tensor>,
    skips: Vec<Option<Tensor>>,
}

fn add(sum: &mut Option<Tensor>, more: Option<Tensor>) -> Result<()> {
    *sum = match (sum.take(), more) {
        (Some(a), Some(b)) => Some((a + b)?),
        (a, b) => a.or(b),
    };
    Ok(())
}

impl Tape<'_> {
    /// The prediction of this pass: the leaf whose gradient [`Tape::backward`] takes.
    pub fn prediction(&self) -> &Tensor {
        self.prediction.as_tensor()
    }

    /// Adds the gradients in every trainable parameter of `params` to `sum`, for the gradient `dy` of the loss in the
    /// prediction.
    ///
    /// # Errors
    /// If a frozen parameter gets a gradient.
    pub fn backward(mut self, dy: Tensor, params: &ParamStore, sum: &mut Gradients) -> Result<()> {
        let trains = |stage: Stage| params.vars().keys().any(|name| stage.has(name));
        let embedding = params.vars().keys().any(|name| !self.pieces.iter().any(|piece| piece.stage.has(name)));
        let mut cotangents = Cotangents { h: dy, temb: None, skips: vec![None; self.skips] };
        // what went into a piece goes when it is passed
        while let Some(piece) = self.pieces.pop() {
            // below the first trainable parameter nobody asks for a gradient
            let below = embedding || self.pieces.iter().any(|piece| trains(piece.stage));
            if !below && !trains(piece.stage) {
                return Ok(());
            }
            self.piece(&piece, below, embedding, params, &mut cotangents, sum)?;
        }
        if let Some(dtemb) = cotangents.temb {
            let temb = self.unet.embed(&self.t, self.added.as_ref(), dtemb.device())?;
            let mut store = total(&(temb * dtemb)?)?.backward()?;
            gather(&mut store, params, sum)?;
        }
        Ok(())
    }

    fn piece(
        &self,
        piece: &Piece,
        below: bool,
        embedding: bool,
        params: &ParamStore,
        cotangents: &mut Cotangents,
        sum: &mut Gradients,
    ) -> Result<()> {
        let leaf = |tensor: &Tensor, tracked: bool| -> Result<Tensor> {
            Ok(if tracked { Var::from_tensor(tensor)?.as_tensor().clone() } else { tensor.clone() })
        };
        let h = leaf(&piece.h, below && piece.stage != Stage::In)?;
        let temb = leaf(&self.temb, embedding)?;
        let taken = piece.taken.iter().map(|skip| leaf(skip, below)).collect::<Result<Vec<_>>>()?;
        // only the number of the skips before those that it takes matters, so any tensor stands for them
        let mut skips = vec![self.temb.clone(); piece.before - taken.len()];
        skips.extend(taken.iter().cloned());
        let (out, record) = record_lean(|| self.unet.run(piece.stage, &h, &temb, &self.context, &mut skips))?;
        let mut scalar = total(&(&out * &cotangents.h)?)?;
        for (skip, gradient) in skips.iter().zip(&mut cotangents.skips).take(piece.after).skip(piece.before) {
            if let Some(gradient) = gradient.take() {
                scalar = (scalar + total(&(skip * gradient)?)?)?;
            }
        }
        drop((out, skips));
        let mut store = scalar.backward()?;
        drop(scalar);
        record.backward(&mut store)?;
        if below && piece.stage != Stage::In {
            let dh = store.remove(&h);
            cotangents.h = dh.ok_or_else(|| Error::Numeric(format!("no gradient passes through {:?}", piece.stage)))?;
        }
        if embedding {
            add(&mut cotangents.temb, store.remove(&temb))?;
        }
        for (place, skip) in (piece.before - taken.len()..piece.before).zip(&taken) {
            add(&mut cotangents.skips[place], store.remove(skip))?;
        }
        gather(&mut store, params, sum)
    }
}

/// The gradients of `loss` in the trainable parameters, through passes that were checkpointed.
///
/// # Errors
/// As [`crate::nn::backward`].
pub fn backward_through(loss: Tensor, tapes: Vec<Tape<'_>>, params: &ParamStore) -> Result<Gradients> {
    on_deep_stack(move || {
        let mut sum = Gradients::new();
        let mut store = loss.backward()?;
        drop(loss);
        gather(&mut store, params, &mut sum)?;
        for tape in tapes {
            if let Some(dy) = store.remove(tape.prediction()) {
                tape.backward(dy, params, &mut sum)?;
            }
        }
        complete(sum, params)
    })
}
