//! The backward pass, and the check that exactly the trainable parameters got finite gradients.

use super::combine::add;
use super::kernels::parallel::{alone, work_alone};
use super::params::ParamStore;
use super::record::Record;
use super::total::finite;
use crate::{Error, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use std::collections::BTreeMap;

/// Gradients by parameter name; each has the shape of its parameter.
pub type Gradients = BTreeMap<String, Tensor>;

/// candle walks the graph by recursion, as deep as the network is long.
const STACK_BYTES: usize = 256 << 20;

/// Gradients of the scalar `loss` with respect to every trainable parameter of `params`; drops the graph.
///
/// # Errors
/// If a trainable parameter has no gradient, a frozen one has one, or a value is NaN or infinite: the message names it.
pub fn backward(loss: Tensor, params: &ParamStore) -> Result<Gradients> {
    backward_recorded(loss, Vec::new(), params)
}

/// As [`backward`], through passes that were recorded.
///
/// # Errors
/// As [`backward`].
pub fn backward_recorded(loss: Tensor, records: Vec<Record>, params: &ParamStore) -> Result<Gradients> {
    on_deep_stack(move || collect(loss, records, params))
}

/// Runs `work` on a thread whose stack is deep enough for a graph's recursion.
///
/// # Errors
/// Those of `work`, and if it panics.
pub fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let alone = alone();
    std::thread::scope(|scope| {
        let work = move || {
            work_alone(alone);
            work()
        };
        let work = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let work = work.map_err(|e| Error::Numeric(format!("cannot start a thread for the backward pass: {e}")))?;
        work.join().unwrap_or_else(|_| Err(Error::Numeric("the backward pass panicked".into())))
    })
}

fn collect(loss: Tensor, records: Vec<Record>, params: &ParamStore) -> Result<Gradients> {
    let mut gradients = Gradients::new();
    let mut store = loss.backward()?;
    drop(loss);
    for record in records {
        record.backward(&mut store)?;
    }
    gather(&mut store, params, &mut gradients)?;
    complete(gradients, params)
}

/// Adds one gradient to what `sum` has of this name.
pub fn accumulate(sum: &mut Gradients, name: String, gradient: Tensor) -> Result<()> {
    let total = match sum.get(&name) {
        Some(so_far) => add(so_far, &gradient)?,
        None => gradient,
    };
    sum.insert(name, total);
    Ok(())
}

/// Moves the trainable parameters' gradients out of `store`, adding each to what `sum` has.
///
/// # Errors
/// If a frozen parameter has a gradient: the message names it.
pub fn gather(store: &mut GradStore, params: &ParamStore, sum: &mut Gradients) -> Result<()> {
    for (name, var) in params.vars() {
        let Some(gradient) = store.remove(var.as_tensor()) else { continue };
        accumulate(sum, name.clone(), gradient)?;
    }
    for (name, tensor) in params.tensors() {
        if !params.vars().contains_key(name) && store.get(tensor).is_some() {
            return Err(Error::Numeric(format!("{name} is frozen but got a gradient")));
        }
    }
    Ok(())
}

/// The gradients, if every trainable parameter has one and all are finite.
///
/// # Errors
/// Otherwise; the message names the parameter.
pub fn complete(gradients: Gradients, params: &ParamStore) -> Result<Gradients> {
    let mut found = Vec::with_capacity(gradients.len());
    for name in params.vars().keys() {
        let gradient = gradients.get(name);
        found.push(gradient.ok_or_else(|| Error::Numeric(format!("{name} is trainable but got no gradient")))?);
    }
    match params.vars().keys().zip(finite(&found)?).find(|(_, finite)| !finite) {
        Some((name, _)) => Err(Error::Numeric(format!(
            "the gradient of {name} is not finite; lower the learning rate or check the model for NaN"
        ))),
        None => Ok(gradients),
    }
}
