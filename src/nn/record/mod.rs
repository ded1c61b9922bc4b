//! The graph of a pass, kept by this program instead of candle.
//!
//! candle's backward pass fills a tensor with zeros for every gradient and adds to it, which costs four times the memory traffic of the
//! gradient itself, and it holds every activation until its end. While [`record`] is at work, an op's result is a leaf of candle's
//! graph and the op stands in a list; [`Record::backward`] goes through the list from its end, moves a gradient where it is the first,
//! and drops what it has passed.
//!
//! What is cheap to make need not be kept at all: [`forget`] gives the elements of a result back, and the backward pass makes them again
//! from its op's operands just before they are read (selective checkpointing: Korthikanti et al. 2022, «Reducing Activation Recomputation
//! in Large Transformer Models»).

mod op;

use super::combine::add;
use super::release::{give_back, is_given_back, replace};
use crate::Result;
use candle_core::backprop::GradStore;
use candle_core::op::BackpropOp;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result as Outcome, Tensor, TensorId, bail};
use op::Op;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// The ops of a pass, in order.
#[derive(Default)]
pub struct Record {
    nodes: Vec<Node>,
    /// Which op made which elements.
    results: HashMap<Elements, usize>,
    /// What the backward pass makes again.
    forgotten: HashSet<Elements>,
}

/// What tells the elements of a tensor (and of its views) from all others, as long as somebody holds them.
type Elements = usize;

fn elements(x: &Tensor) -> Elements {
    std::ptr::from_ref(&*x.storage_and_layout().0) as usize
}

struct Node {
    result: Tensor,
    op: Op,
}

#[derive(Default)]
struct Running {
    record: Record,
    /// Whether [`forget`] does anything.
    forgets: bool,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// What was recorded before comes back, whatever happens.
struct Restore(Option<Running>);

impl Drop for Restore {
    fn drop(&mut self) {
        RUNNING.replace(self.0.take());
    }
}

/// What `work` gives, and the ops on tracked tensors that it went through.
///
/// # Errors
/// Those of `work`.
pub fn record<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Record)> {
    recorded(false, work)
}

/// As [`record`], without what the layers [`forget`].
///
/// # Errors
/// Those of `work`.
pub fn record_lean<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Record)> {
    recorded(true, work)
}

fn recorded<T>(forgets: bool, work: impl FnOnce() -> Result<T>) -> Result<(T, Record)> {
    let restore = Restore(RUNNING.replace(Some(Running { forgets, ..Running::default() })));
    let result = work()?;
    let record = RUNNING.take().map_or_else(Record::default, |running| running.record);
    drop(restore);
    Ok((result, record))
}

/// Gives back the elements of a result that is cheap to make again, if this pass is recorded by [`record_lean`] (on a CPU), and says
/// whether it did. Nothing later in the forward pass may read it. What it was made of must be there in the backward pass, or be a result
/// of this pass too: forgotten and released results that others are made of are made again with them.
///
/// # Errors
/// If something is reading it.
pub fn forget(x: &Tensor) -> Result<bool> {
    if keeps_all() || !x.device().is_cpu() {
        return Ok(false);
    }
    let key = elements(x);
    let made = RUNNING.with_borrow_mut(|running| {
        let record = running.as_mut().map(|running| &mut running.record);
        let record = record.filter(|record| record.results.contains_key(&key));
        record.map(|record| record.forgotten.insert(key)).is_some()
    });
    if made {
        give_back(x)?;
    }
    Ok(made)
}

/// Whether this is a result that is recorded right now: no parameter, though candle takes it for one.
pub(super) fn is_recorded(x: &Tensor) -> bool {
    RUNNING.with_borrow(|running| running.as_ref().is_some_and(|running| running.record.made(x)))
}

/// Whether a pass is at work that keeps whatever its backward pass reads (as candle's graph does too): [`forget`] does nothing.
pub(super) fn keeps_all() -> bool {
    RUNNING.with_borrow(|running| running.as_ref().is_none_or(|running| !running.forgets))
}

fn records(operands: &[&Tensor]) -> bool {
    !operands[0].device().is_metal()
        && operands.iter().any(|x| x.track_op())
        && RUNNING.with_borrow(|running| running.is_some())
}

/// The result of an op as a leaf, noted down with it.
fn keep(op: Op) -> Outcome<Tensor> {
    let (storage, shape) = op.forward()?;
    let result = Tensor::from_storage(storage, shape, BackpropOp::none(), true);
    let key = elements(&result);
    RUNNING.with_borrow_mut(|running| {
        if let Some(Running { record, .. }) = running {
            record.results.insert(key, record.nodes.len());
            record.nodes.push(Node { result: result.clone(), op });
        }
    });
    Ok(result)
}

/// As candle's `apply_op1`.
pub(super) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Outcome<Tensor> {
    if !records(&[x]) {
        return x.apply_op1(op);
    }
    keep(Op::One([x.clone()], Box::new(op)))
}

/// As candle's `apply_op2`.
pub(super) fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Outcome<Tensor> {
    if !records(&[x, y]) {
        return x.apply_op2(y, op);
    }
    keep(Op::Two([x.clone(), y.clone()], Box::new(op)))
}

/// As candle's `apply_op3`.
pub(super) fn apply3(
    x: &Tensor,
    y: &Tensor,
    z: &Tensor,
    op: impl CustomOp3 + Send + Sync + 'static,
) -> Outcome<Tensor> {
    if !records(&[x, y, z]) {
        return x.apply_op3(y, z, op);
    }
    keep(Op::Three([x.clone(), y.clone(), z.clone()], Box::new(op)))
}

impl Record {
    /// Takes from `store` the gradients of what was recorded (candle put them there for the leaves that a loss was made of), and adds
    /// those of the leaves that this pass began with: parameters among them.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward(mut self, store: &mut GradStore) -> Result<()> {
        while let Some(Node { result, .. }) = self.nodes.last() {
            if let Some(dy) = store.remove(result) {
                self.step(dy, store)?;
            }
            self.nodes.pop();
        }
        Ok(())
    }

    /// Backwards through the last op.
    fn step(&self, dy: Tensor, store: &mut GradStore) -> Result<()> {
        let Some(Node { result, op }) = self.nodes.last() else { return Ok(()) };
        let mut made = Vec::new();
        for x in op.operands().iter().chain([result]).filter(|x| self.forgotten.contains(&elements(x))) {
            self.make_again(x, &mut made)?;
        }
        self.spare(made)?;
        let gradients = op.backward(result, &dy)?;
        drop(dy);
        for (x, gradient) in op.operands().iter().zip(gradients) {
            if let Some(gradient) = gradient.filter(|_| x.track_op()) {
                give(store, x, gradient)?;
            }
        }
        Ok(())
    }

    /// Whether this pass made the tensor.
    fn made(&self, x: &Tensor) -> bool {
        let node = self.results.get(&elements(x)).and_then(|node| self.nodes.get(*node));
        node.is_some_and(|node| node.result.id() == x.id())
    }

    /// Makes the elements of `x` again, if they were given back, and before them those that it was made of.
    fn make_again(&self, x: &Tensor, made: &mut Vec<Tensor>) -> Outcome<()> {
        if !is_given_back(x) {
            return Ok(());
        }
        let Some(Node { result, op }) = self.results.get(&elements(x)).and_then(|node| self.nodes.get(*node)) else {
            bail!("what the backward pass reads was given back, and nothing says how it was made")
        };
        let mut on_the_way = Vec::new();
        op.operands().iter().try_for_each(|operand| self.make_again(operand, &mut on_the_way))?;
        replace(result, op.forward()?.0)?;
        self.spare(on_the_way)?;
        made.push(result.clone());
        Ok(())
    }

    /// Gives back what was made again only to make something of it: nobody reads it.
    fn spare(&self, made: Vec<Tensor>) -> Outcome<()> {
        made.iter().filter(|x| !self.forgotten.contains(&elements(x))).try_for_each(give_back)
    }
}

/// Adds to the gradient of `x`. If `x` was made of leaves by candle's own ops, to those leaves' gradients.
fn give(store: &mut GradStore, x: &Tensor, gradient: Tensor) -> Result<()> {
    if !x.is_variable() {
        let leaves = (x * gradient)?.sum_all()?.backward()?;
        let ids: Vec<TensorId> = leaves.get_ids().copied().collect();
        for id in ids {
            let (before, more) = (store.get_id(id).cloned(), leaves.get_id(id).cloned());
            if let Some(more) = more {
                store.insert_id(id, sum(before, more)?);
            }
        }
        return Ok(());
    }
    let before = store.remove(x);
    store.insert(x, sum(before, gradient)?);
    Ok(())
}

fn sum(before: Option<Tensor>, more: Tensor) -> Result<Tensor> {
    match before {
        Some(before) => add(&before, &more),
        None => Ok(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{geglu, linear, release, silu};
    use candle_core::{CpuStorage, Device, Layout, Shape, Var};
    use std::sync::{Arc, Weak};

    fn pass(vars: &[Var; 3]) -> Result<Tensor> {
        let h = linear(&vars[0], &vars[1], Some(vars[2].as_tensor()))?;
        let h = add(&silu(&h)?, &h)?; // of a result that several read
        let h = (h * 0.5)?.reshape((3, 2, 20))?; // candle's own ops, and several that read what comes out
        geglu(&add(&silu(&h)?, &h)?)
    }

    #[test]
    fn gradients_are_those_of_candles_graph() {
        let var = |seed: u64, shape: &[usize]| {
            let values = crate::diffusion::Generator::new(seed).randn_tensor(shape, &Device::Cpu).unwrap();
            Var::from_tensor(&values).unwrap()
        };
        let vars = [var(1, &[6, 8]), var(2, &[20, 8]), var(3, &[20])];
        let loss = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap();
        let candles = loss(&pass(&vars).unwrap()).backward().unwrap();
        let (y, record) = record(|| pass(&vars)).unwrap();
        assert!(y.is_variable() && record.nodes.len() == 6 && !is_recorded(&y), "nothing is recorded any more");
        let mut ours = loss(&y).backward().unwrap();
        drop(y);
        record.backward(&mut ours).unwrap();
        for var in &vars {
            let of = |store: &GradStore| store.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (ours, candles) = (of(&ours), of(&candles));
            let largest = candles.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0 && ours.iter().zip(&candles).all(|(a, b)| (a - b).abs() <= 1e-6 * largest));
        }
    }

    #[test]
    fn what_was_forgotten_is_made_again_when_it_is_read() {
        let x = Var::new(&[[1f32, -2., 3.], [0.5, 4., -1.]], &Device::Cpu).unwrap();
        let gradient = |forgets: bool| {
            let (mut kept, mut gone) = (0, Vec::new());
            let (y, record) = recorded(forgets, || {
                let a = silu(&x)?;
                let b = add(&a, &a)?;
                let c = silu(&b)?;
                let d = silu(&c.reshape((3, 2))?)?; // of a view: its elements are those of `c`
                assert_eq!((forget(&b)?, forget(&c)?, forget(x.as_tensor())?), (forgets, forgets, false));
                if forgets {
                    release(a.clone())?; // nobody reads it but who makes `b` again
                }
                kept += usize::from(!is_given_back(&d));
                gone.extend([a, b, c].iter().map(is_given_back));
                Ok(d)
            })
            .unwrap();
            assert_eq!((kept, gone), (1, vec![forgets; 3]));
            let mut store = y.sum_all().unwrap().backward().unwrap();
            record.backward(&mut store).unwrap();
            store.get(&x).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(gradient(true), gradient(false));
        let (y, _) = record(|| silu(&x)).unwrap();
        assert!(!forget(&y).unwrap(), "nothing is recorded any more");
    }

    #[test]
    fn what_cannot_be_made_again_is_an_error() {
        let x = Var::new(&[1f32, -2., 3.], &Device::Cpu).unwrap();
        let (y, record) = record_lean(|| {
            let halves = (x.as_tensor() * 0.5)?; // candle's own: nobody noted it down
            let y = silu(&silu(&halves)?)?;
            give_back(&halves)?;
            Ok(y)
        })
        .unwrap();
        let forgotten: Vec<Elements> = record.nodes.iter().map(|node| elements(&node.result)).collect();
        let record = Record { forgotten: forgotten.into_iter().collect(), ..record };
        give_back(&record.nodes[0].result).unwrap();
        let mut store = y.sum_all().unwrap().backward().unwrap();
        let error = record.backward(&mut store).unwrap_err().to_string();
        assert!(error.contains("was given back"), "{error}");
    }

    /// Passes on what it gets, and looks whether the one after it is still there when its own turn comes.
    struct Watch {
        token: Arc<()>,
        after: Weak<()>,
    }

    impl CustomOp1 for Watch {
        fn name(&self) -> &'static str {
            "watch"
        }

        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Outcome<(CpuStorage, Shape)> {
            Ok((x.clone(), layout.shape().clone()))
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Outcome<Option<Tensor>> {
            assert_eq!((Arc::strong_count(&self.token), self.after.strong_count()), (1, 0));
            Ok(Some(dy.clone()))
        }
    }

    #[test]
    fn what_is_passed_is_dropped() {
        let x = Var::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let tokens = [Arc::new(()), Arc::new(())];
        let after = [Arc::downgrade(&tokens[1]), Weak::new()];
        let (y, record) = record(|| {
            let mut y = x.as_tensor().clone();
            for (token, after) in tokens.into_iter().zip(after) {
                y = apply1(&y, Watch { token, after })?;
            }
            Ok(y)
        })
        .unwrap();
        let mut store = y.sum_all().unwrap().backward().unwrap();
        drop(y);
        record.backward(&mut store).unwrap();
        assert_eq!(store.get(&x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
    }
}
