//! The graph of a pass on a GPU, kept by this program instead of candle.
//!
//! candle's backward pass fills a tensor with zeros for every gradient and adds to it, which costs four times the memory traffic of the
//! gradient itself, and it holds every activation until its end. While [`record`] is at work, an op's result is a leaf of candle's
//! graph and the op stands in a list; [`Record::backward`] goes through the list from its end, moves a gradient where it is the first,
//! and drops what it has passed. On the CPU nothing is recorded, and candle's graph is what it was.

use crate::Result;
use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result as Outcome, Tensor};

/// The ops of a pass, in order.
#[derive(Default)]
pub struct Record {
    #[cfg(feature = "cuda")]
    nodes: Vec<on_gpu::Node>,
}

/// What `work` gives, and the ops on tracked tensors of a GPU that it went through.
///
/// # Errors
/// Those of `work`.
pub fn record<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Record)> {
    #[cfg(feature = "cuda")]
    return on_gpu::record(work);
    #[cfg(not(feature = "cuda"))]
    Ok((work()?, Record::default()))
}

impl Record {
    /// Takes from `store` the gradients of what was recorded (candle put them there for the leaves that a loss was made of), and adds
    /// those of the leaves that this pass began with: parameters among them.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward(self, store: &mut GradStore) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.backward_on_gpu(store)?;
        let _ = store;
        Ok(())
    }
}

/// Whether this is a result that is recorded right now: no parameter, though candle takes it for one.
pub(super) fn is_recorded(x: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    return on_gpu::is_recorded(x);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = x;
        false
    }
}

/// As candle's `apply_op1`.
pub(super) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Outcome<Tensor> {
    #[cfg(feature = "cuda")]
    if on_gpu::records(&[x]) {
        return on_gpu::apply1(x, op);
    }
    x.apply_op1(op)
}

/// As candle's `apply_op2`.
pub(super) fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Outcome<Tensor> {
    #[cfg(feature = "cuda")]
    if on_gpu::records(&[x, y]) {
        return on_gpu::apply2(x, y, op);
    }
    x.apply_op2(y, op)
}

/// As candle's `apply_op3`.
pub(super) fn apply3(
    x: &Tensor,
    y: &Tensor,
    z: &Tensor,
    op: impl CustomOp3 + Send + Sync + 'static,
) -> Outcome<Tensor> {
    #[cfg(feature = "cuda")]
    if on_gpu::records(&[x, y, z]) {
        return on_gpu::apply3(x, y, z, op);
    }
    x.apply_op3(y, z, op)
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use super::*;
    use crate::nn::combine::add;
    use candle_core::op::BackpropOp;
    use candle_core::{CudaStorage, Layout, Shape, Storage, TensorId, bail};
    use std::cell::RefCell;
    use std::collections::HashSet;

    /// An op with its operands.
    enum Op {
        One([Tensor; 1], Box<dyn CustomOp1 + Send + Sync>),
        Two([Tensor; 2], Box<dyn CustomOp2 + Send + Sync>),
        Three([Tensor; 3], Box<dyn CustomOp3 + Send + Sync>),
    }

    pub(super) struct Node {
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

    pub(super) fn record<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Record)> {
        let restore = Restore(RUNNING.replace(Some(Running::default())));
        let result = work()?;
        let nodes = RUNNING.take().map_or_else(Vec::new, |running| running.nodes);
        drop(restore);
        Ok((result, Record { nodes }))
    }

    pub(super) fn is_recorded(x: &Tensor) -> bool {
        RUNNING.with_borrow(|running| running.as_ref().is_some_and(|running| running.results.contains(&x.id())))
    }

    pub(super) fn records(operands: &[&Tensor]) -> bool {
        operands[0].device().is_cuda()
            && operands.iter().any(|x| x.track_op())
            && RUNNING.with_borrow(|running| running.is_some())
    }

    /// The result as a leaf, noted down with its op.
    fn keep((storage, shape): (CudaStorage, Shape), op: Op) -> Tensor {
        let result = Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), true);
        RUNNING.with_borrow_mut(|running| {
            if let Some(running) = running {
                running.results.insert(result.id());
                running.nodes.push(Node { result: result.clone(), op });
            }
        });
        result
    }

    /// What lies on the GPU.
    fn there<'a>(storage: &'a Storage, layout: &'a Layout) -> Outcome<(&'a CudaStorage, &'a Layout)> {
        match storage {
            Storage::Cuda(storage) => Ok((storage, layout)),
            _ => bail!("an op of the GPU got an operand that is not there"),
        }
    }

    pub(super) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Outcome<Tensor> {
        let y = {
            let (sx, lx) = x.storage_and_layout();
            let x = there(&sx, lx)?;
            op.cuda_fwd(x.0, x.1)?
        };
        Ok(keep(y, Op::One([x.clone()], Box::new(op))))
    }

    pub(super) fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Outcome<Tensor> {
        let result = {
            let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
            let (x, y) = (there(&sx, lx)?, there(&sy, ly)?);
            op.cuda_fwd(x.0, x.1, y.0, y.1)?
        };
        Ok(keep(result, Op::Two([x.clone(), y.clone()], Box::new(op))))
    }

    pub(super) fn apply3(
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        op: impl CustomOp3 + Send + Sync + 'static,
    ) -> Outcome<Tensor> {
        let result = {
            let ((sx, lx), (sy, ly)) = (x.storage_and_layout(), y.storage_and_layout());
            let (sz, lz) = z.storage_and_layout();
            let (x, y, z) = (there(&sx, lx)?, there(&sy, ly)?, there(&sz, lz)?);
            op.cuda_fwd(x.0, x.1, y.0, y.1, z.0, z.1)?
        };
        Ok(keep(result, Op::Three([x.clone(), y.clone(), z.clone()], Box::new(op))))
    }

    impl Record {
        pub(super) fn backward_on_gpu(mut self, store: &mut GradStore) -> Result<()> {
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
}
