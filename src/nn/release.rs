//! Memory of results that only the graph still holds.
//!
//! candle keeps every operand of an op until the graph goes, whether its backward pass reads it or not. The input of a frozen
//! convolution, the terms of a sum and the like are never read again: their elements can go at once, while the node stays.

use super::record::{forget, is_recorded};
use crate::Result;
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Storage, Tensor};
use std::sync::Mutex;

/// Gives back the elements of `x`. Whoever calls this knows that nothing will read them: neither another reader of the same tensor (or
/// of one that shares its elements), nor the backward pass of the op that made it (attention) or of an op that took it (norms,
/// activations, attention, and products with a trainable weight do; sums, concatenations, moves and frozen layers do not).
///
/// Without a graph nothing happens: dropping `x` is enough.
pub fn release(x: Tensor) -> Result<()> {
    if x.track_op() && (!x.is_variable() || is_recorded(&x)) {
        give_back(&x)?;
    }
    Ok(())
}

/// Of an `x` that nothing later in the forward pass reads: [`forget`] if the backward pass does, [`release`] if not.
pub fn done_with(x: Tensor, read_again: bool) -> Result<()> {
    if read_again { forget(&x).map(drop) } else { release(x) }
}

/// Gives back the elements of `x`, whoever reads them.
pub(super) fn give_back(x: &Tensor) -> candle_core::Result<()> {
    x.inplace_op1(&Release)
}

/// Whether the elements of `x` were given back (in main memory).
pub(super) fn is_given_back(x: &Tensor) -> bool {
    matches!(&*x.storage_and_layout().0, Storage::Cpu(CpuStorage::F32(values)) if values.is_empty())
        && x.elem_count() > 0
}

/// Puts elements in the place of those that were given back (in main memory).
pub(super) fn replace(x: &Tensor, elements: Storage) -> candle_core::Result<()> {
    x.inplace_op1(&Replace(Mutex::new(Some(elements))))
}

struct Replace(Mutex<Option<Storage>>);

impl InplaceOp1 for Replace {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        match self.0.lock().map(|mut elements| elements.take()) {
            Ok(Some(Storage::Cpu(elements))) => *storage = elements,
            _ => candle_core::bail!("elements of another device"),
        }
        Ok(())
    }
}

struct Release;

impl InplaceOp1 for Release {
    fn name(&self) -> &'static str {
        "release"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        if let CpuStorage::F32(values) = storage
            && values.len() == layout.shape().elem_count()
        {
            *values = Vec::new();
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        super::cuda::release(storage, layout)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        Ok(())
    }

    /// Left to the graph.
    fn metal_fwd(&self, _: &mut candle_core::MetalStorage, _: &Layout) -> candle_core::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{add, linear};
    use candle_core::{Device, Storage, Var};

    #[test]
    fn gradients_do_not_need_what_was_released() {
        let x = Var::randn(0f32, 1., (3, 4), &Device::Cpu).unwrap();
        let w = Tensor::randn(0f32, 1., (5, 4), &Device::Cpu).unwrap();
        let gradient = |give_back: bool| {
            let sum = add(&x, &x).unwrap();
            let y = linear(&sum, &w, None).unwrap();
            if give_back {
                release(sum.clone()).unwrap();
                let (storage, _) = sum.storage_and_layout();
                let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { panic!("{storage:?}") };
                assert!(values.is_empty(), "the elements are gone");
            }
            let loss = y.sum_all().unwrap();
            loss.backward().unwrap().get(&x).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(gradient(true), gradient(false));
    }

    #[test]
    fn what_is_not_in_a_graph_or_only_a_part_stays() {
        let plain = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu).unwrap();
        release(plain.clone()).unwrap();
        let var = Var::from_tensor(&plain).unwrap();
        release(var.as_tensor().clone()).unwrap();
        let sum = add(&var, &plain).unwrap();
        release(sum.narrow(0, 1, 2).unwrap()).unwrap();
        for (x, first) in [(&plain, 1f32), (var.as_tensor(), 1.), (&sum, 2.)] {
            assert_eq!(x.to_vec1::<f32>().unwrap()[0], first);
        }
    }
}
