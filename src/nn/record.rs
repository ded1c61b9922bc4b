//! The graph of a pass, kept by this program instead of candle.
//!
//! candle's backward pass fills a tensor with zeros for every gradient and adds to it, which costs four times the memory traffic of the
//! gradient itself, and it holds every activation until its end. While [`record`] is at work, an op's result is a leaf of candle's
//! graph and the op stands in a list; [`Record::backward`] goes through the list from its end, moves a gradient where it is the first,
//! and drops what it has passed.

use super::combine::add;
use crate::Result;
use candle_core::backprop::GradStore;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Result as Outcome, Shape, Storage, Tensor, TensorId, bail,
};
use std::cell::RefCell;
use std::collections::HashSet;

/// The ops of a pass, in order.
#[derive(Default)]
pub struct Record {
    nodes: Vec<Node>,
}

/// An op with its operands.
enum Op {
    One([Tensor; 1], Box<dyn CustomOp1 + Send + Sync>),
    Two([Tensor; 2], Box<dyn CustomOp2 + Send + Sync>),
    Three([Tensor; 3], Box<dyn CustomOp3 + Send + Sync>),
}

struct Node {
    result: Tensor,
    op: Op,
}

#[derive(Default)]
struct Running {
    nodes: Vec<Node>,
    results: HashSet<TensorId>,
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
    let restore = Restore(RUNNING.replace(Some(Running::default())));
    let result = work()?;
    let nodes = RUNNING.take().map_or_else(Vec::new, |running| running.nodes);
    drop(restore);
    Ok((result, Record { nodes }))
}

/// Whether this is a result that is recorded right now: no parameter, though candle takes it for one.
pub(super) fn is_recorded(x: &Tensor) -> bool {
    RUNNING.with_borrow(|running| running.as_ref().is_some_and(|running| running.results.contains(&x.id())))
}

fn records(operands: &[&Tensor]) -> bool {
    !operands[0].device().is_metal()
        && operands.iter().any(|x| x.track_op())
        && RUNNING.with_borrow(|running| running.is_some())
}

/// The result as a leaf, noted down with its op.
fn keep((storage, shape): (Storage, Shape), op: Op) -> Tensor {
    let result = Tensor::from_storage(storage, shape, BackpropOp::none(), true);
    RUNNING.with_borrow_mut(|running| {
        if let Some(running) = running {
            running.results.insert(result.id());
            running.nodes.push(Node { result: result.clone(), op });
        }
    });
    result
}

fn on_cpu((storage, shape): (CpuStorage, Shape)) -> (Storage, Shape) {
    (Storage::Cpu(storage), shape)
}

fn on_gpu((storage, shape): (CudaStorage, Shape)) -> (Storage, Shape) {
    (Storage::Cuda(storage), shape)
}

fn apart<T>() -> Outcome<T> {
    bail!("the operands of an op lie on several devices")
}

/// As candle's `apply_op1`.
pub(super) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Outcome<Tensor> {
    if !records(&[x]) {
        return x.apply_op1(op);
    }
    let result = {
        let (sx, lx) = x.storage_and_layout();
        match &*sx {
            Storage::Cpu(x) => on_cpu(op.cpu_fwd(x, lx)?),
            Storage::Cuda(x) => on_gpu(op.cuda_fwd(x, lx)?),
            Storage::Metal(_) => return apart(),
        }
    };
    Ok(keep(result, Op::One([x.clone()], Box::new(op))))
}

/// As candle's `apply_op2`.
pub(super) fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Outcome<Tensor> {
    if !records(&[x, y]) {
        return x.apply_op2(y, op);
    }
    let result = {
        let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
        match (&*sx, &*sy) {
            (Storage::Cpu(x), Storage::Cpu(y)) => on_cpu(op.cpu_fwd(x, lx, y, ly)?),
            (Storage::Cuda(x), Storage::Cuda(y)) => on_gpu(op.cuda_fwd(x, lx, y, ly)?),
            _ => return apart(),
        }
    };
    Ok(keep(result, Op::Two([x.clone(), y.clone()], Box::new(op))))
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
    let result = {
        let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
        let (sz, lz) = z.storage_and_layout();
        match (&*sx, &*sy, &*sz) {
            (Storage::Cpu(x), Storage::Cpu(y), Storage::Cpu(z)) => on_cpu(op.cpu_fwd(x, lx, y, ly, z, lz)?),
            (Storage::Cuda(x), Storage::Cuda(y), Storage::Cuda(z)) => on_gpu(op.cuda_fwd(x, lx, y, ly, z, lz)?),
            _ => return apart(),
        }
    };
    Ok(keep(result, Op::Three([x.clone(), y.clone(), z.clone()], Box::new(op))))
}

impl Record {
    /// Takes from `store` the gradients of what was recorded (candle put them there for the leaves that a loss was made of), and adds
    /// those of the leaves that this pass began with: parameters among them.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward(mut self, store: &mut GradStore) -> Result<()> {
        while let Some(Node { result, op }) = self.nodes.pop() {
            let Some(dy) = store.remove(&result) else { continue };
            let (operands, gradients) = match &op {
                Op::One(x, op) => (&x[..], [op.bwd(&x[0], &result, &dy)?, None, None]),
                Op::Two(x, op) => {
                    let (a, b) = op.bwd(&x[0], &x[1], &result, &dy)?;
                    (&x[..], [a, b, None])
                }
                Op::Three(x, op) => {
                    let (a, b, c) = op.bwd(&x[0], &x[1], &x[2], &result, &dy)?;
                    (&x[..], [a, b, c])
                }
            };
            drop(dy);
            for (x, gradient) in operands.iter().zip(gradients) {
                if let Some(gradient) = gradient.filter(|_| x.track_op()) {
                    give(store, x, gradient)?;
                }
            }
        }
        Ok(())
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
    use crate::nn::{geglu, linear, silu};
    use candle_core::{Device, Layout, Var};
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
