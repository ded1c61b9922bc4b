//! Residual sums and skip connections.

use super::kernels::parallel::{SharedMut, chunks, tasks, unwritten};
use super::kernels::storage::{cpu, cpu_mut, fused};
use super::record::apply2;
use super::release::release;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Shape, Tensor, bail};

/// Elements of one task.
const BLOCK: usize = 1 << 15;

/// `a + b`; unlike candle's own sum, an operand that is not tracked gets no gradient.
///
/// # Shape
/// Any, both alike.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !fused(&[a, b]) || a.shape() != b.shape() {
        return Ok((a + b)?);
    }
    Ok(apply2(&a.contiguous()?, &b.contiguous()?, Add)?)
}

/// `a + b`, for a `b` that nothing else reads: without a graph, the sum takes its place.
///
/// # Shape
/// Any, both alike.
pub fn add_last(a: &Tensor, b: Tensor) -> Result<Tensor> {
    let free = ![a, &b].into_iter().any(Tensor::track_op) && b.device().is_cpu();
    if free && fused(&[a, &b]) && a.shape() == b.shape() && b.is_contiguous() {
        b.inplace_op2(&a.contiguous()?, &AddOver)?;
        return Ok(b);
    }
    let sum = add(a, &b)?;
    release(b)?;
    Ok(sum)
}

struct AddOver;

impl InplaceOp2 for AddOver {
    fn name(&self) -> &'static str {
        "residual-add-over"
    }

    fn cpu_fwd(&self, b: &mut CpuStorage, lb: &Layout, a: &CpuStorage, la: &Layout) -> candle_core::Result<()> {
        let (a, b) = (cpu(a, la)?, cpu_mut(b, lb)?);
        chunks(b, BLOCK, |i, b| b.iter_mut().zip(&a[i * BLOCK..]).for_each(|(b, a)| *b += a));
        Ok(())
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (cpu(a, la)?, cpu(b, lb)?);
        let mut y = unwritten(a.len());
        chunks(&mut y, BLOCK, |i, y| {
            let (a, b) = (&a[i * BLOCK..], &b[i * BLOCK..]);
            y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
        });
        Ok((CpuStorage::F32(y), la.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::combine::add((a, la), (b, lb))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            let dy = dy.contiguous()?;
            let of = |x: &Tensor| x.track_op().then(|| super::cuda::combine::add_backward(x, &dy)).transpose();
            return Ok((of(a)?, of(b)?));
        }
        Ok((a.track_op().then(|| dy.clone()), b.track_op().then(|| dy.clone())))
    }
}

/// The rows of `x` again and again, up to `rows` of them; `x` itself, if it has as many.
///
/// # Errors
/// If `rows` is not a multiple of its rows.
pub fn repeat_rows(x: &Tensor, rows: usize) -> Result<Tensor> {
    match x.dim(0)? {
        had if had == rows => Ok(x.clone()),
        had if had > 0 && rows.is_multiple_of(had) => Ok(Tensor::cat(&vec![x; rows / had], 0)?),
        had => Err(candle_core::Error::msg(format!("{had} rows repeated are never {rows}")).into()),
    }
}

/// `[a | b]` along the channels.
///
/// # Shape
/// `(B, C, H, W)` and `(B, D, H, W)` -> `(B, C + D, H, W)`.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !fused(&[a, b]) || a.rank() != 4 || b.rank() != 4 || a.dim(0)? != b.dim(0)? || a.dims()[2..] != b.dims()[2..] {
        return Ok(Tensor::cat(&[a, b], 1)?);
    }
    Ok(apply2(&a.contiguous()?, &b.contiguous()?, Concat)?)
}

struct Concat;

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "concat-channels"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let ((n, c, h, w), (n_too, d, h_too, w_too)) = (la.shape().dims4()?, lb.shape().dims4()?);
        if (n, h, w) != (n_too, h_too, w_too) {
            bail!("{:?} and {:?} cannot stand side by side", la.shape(), lb.shape());
        }
        let (a, b) = (cpu(a, la)?, cpu(b, lb)?);
        let (x, y) = (c * h * w, d * h * w);
        let mut out = unwritten(n * (x + y));
        let shared = SharedMut::new(&mut out);
        tasks(n, |i| {
            // SAFETY: each sample belongs to one task; `slice` checks the bounds.
            let sample = unsafe { shared.slice(i * (x + y), x + y) };
            sample[..x].copy_from_slice(&a[i * x..][..x]);
            sample[x..].copy_from_slice(&b[i * y..][..y]);
        });
        Ok((CpuStorage::F32(out), Shape::from((n, c + d, h, w))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::combine::concat((a, la), (b, lb))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (c, d) = (a.dim(1)?, b.dim(1)?);
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            let dy = dy.contiguous()?;
            let of = |x: &Tensor, first: usize| {
                x.track_op().then(|| super::cuda::combine::concat_backward(x, &dy, first)).transpose()
            };
            return Ok((of(a, 0)?, of(b, c)?));
        }
        let da = if a.track_op() { Some(dy.narrow(1, 0, c)?.contiguous()?) } else { None };
        let db = if b.track_op() { Some(dy.narrow(1, c, d)?.contiguous()?) } else { None };
        Ok((da, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::{compare, tensor};
    use candle_core::{DType, Var};

    #[test]
    fn sums_and_their_gradients() {
        compare("add", &[&[2, 3, 5], &[2, 3, 5]], 1e-6, &|t| add(&t[0], &t[1]));
        compare("add", &[&[7, 40_000], &[7, 40_000]], 1e-6, &|t| add(&t[0], &t[1]));
        compare("add views", &[&[4, 3], &[3, 4]], 1e-6, &|t| add(&t[0].t()?, &t[1]));
    }

    #[test]
    fn a_sum_takes_the_place_of_its_last_operand_where_there_is_no_graph() {
        let (a, b) = (tensor(&[2, 40_000], 1, DType::F32), tensor(&[2, 40_000], 2, DType::F32));
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = values(&add(&a, &b).unwrap());
        for (a, in_place) in [(a.clone(), true), (Var::from_tensor(&a).unwrap().into_inner(), false)] {
            let own = b.copy().unwrap();
            let sum = add_last(&a, own.clone()).unwrap();
            assert!(values(&sum) == expected);
            assert_eq!(values(&own) == expected, in_place);
        }
        compare("add last", &[&[2, 3, 5], &[2, 3, 5]], 1e-6, &|t| add_last(&t[0], (&t[1] * 2.0)?));
        assert!(add_last(&a, b.narrow(1, 0, 7).unwrap()).is_err());
    }

    #[test]
    fn rows_are_repeated_in_order() {
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &candle_core::Device::Cpu).unwrap();
        let repeated = repeat_rows(&x, 4).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(repeated, [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(repeat_rows(&x, 2).unwrap().id(), x.id());
        assert!(repeat_rows(&x, 3).is_err() && repeat_rows(&x.narrow(0, 0, 0).unwrap(), 3).is_err());
        compare("rows repeated", &[&[2, 3]], 1e-6, &|t| repeat_rows(&t[0], 6));
    }

    #[test]
    fn concatenation_and_its_gradients() {
        compare("concat", &[&[2, 3, 4, 5], &[2, 1, 4, 5]], 1e-6, &|t| concat_channels(&t[0], &t[1]));
    }
}
