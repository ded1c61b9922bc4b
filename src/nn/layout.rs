//! Feature maps to tokens and back, and a vector added to every pixel.

use super::kernels::gemm::transpose_onto;
use super::kernels::matmul::View;
use super::kernels::parallel::{SharedMut, chunks, tasks, unwritten};
use super::kernels::storage::fused;
use super::record::{apply1, apply2};
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};

/// Pixels as tokens.
///
/// # Shape
/// `(B, C, H, W)` -> `(B, HW, C)`.
pub fn to_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    swap(x, (b, c, h * w), Shape::from((b, h * w, c)))
}

/// Tokens as pixels.
///
/// # Shape
/// `(B, HW, C)` -> `(B, C, H, W)`.
pub fn from_tokens(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, tokens, c) = x.dims3()?;
    if tokens != height * width {
        return Err(candle_core::Error::msg(format!("{tokens} tokens are not {height} x {width} pixels")).into());
    }
    swap(x, (b, tokens, c), Shape::from((b, c, height, width)))
}

/// `(B, M, N)` -> `(B, N, M)`, contiguous, whatever the shapes that both are given in.
fn swap(x: &Tensor, sizes: (usize, usize, usize), shape: Shape) -> Result<Tensor> {
    if fused(&[x]) {
        return Ok(apply1(&x.contiguous()?, Swap { sizes, shape })?);
    }
    Ok(x.reshape(sizes)?.transpose(1, 2)?.reshape(shape)?)
}

/// `sizes`: those of `(B, M, N)`; `shape`: of what comes out.
struct Swap {
    sizes: (usize, usize, usize),
    shape: Shape,
}

impl CustomOp1 for Swap {
    fn name(&self) -> &'static str {
        "swap-last-two"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, m, n) = self.sizes;
        let CpuStorage::F32(all) = storage else { bail!("swap expects f32") };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("swap expects a contiguous tensor") };
        let src = &all[start..end];
        let mut dst = unwritten(src.len());
        const TILE: usize = 16;
        let (cuts, to) = (n.div_ceil(TILE), SharedMut::new(&mut dst));
        tasks(b * cuts, |task| {
            let (sample, first) = (task / cuts, task % cuts * TILE);
            let (count, from) = (TILE.min(n - first), &src[sample * m * n + first..]);
            let to = to.at((sample * n + first) * m, count * m);
            // SAFETY: these rows of the result belong to this task alone; `at` checked the bounds.
            unsafe { transpose_onto(View::new(from, n, 1), (m, count), to, m) };
        });
        Ok((CpuStorage::F32(dst), self.shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::layout::swap(x, layout, self.sizes, &self.shape)
    }

    /// The transpose of a transpose.
    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (b, m, n) = self.sizes;
        let back = Self { sizes: (b, n, m), shape: x.shape().clone() };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// Adds a vector to every pixel of its sample.
///
/// # Shape
/// `x` `(B, C, H, W)`, `e` `(B, C)` -> `(B, C, H, W)`.
pub fn add_per_channel(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    let (b, c, _, _) = x.dims4()?;
    if !fused(&[x, e]) {
        return Ok(x.broadcast_add(&e.reshape((b, c, 1, 1))?)?);
    }
    if e.dims() != [b, c] {
        return Err(candle_core::Error::Msg(format!("{:?} cannot be added to {:?}", e.dims(), x.dims())).into());
    }
    // candle computes gradients of both operands of its own addition, tracked or not
    let (x, e) = (x.contiguous()?, e.contiguous()?);
    Ok(apply2(&x, &e, AddPerChannel)?)
}

struct AddPerChannel;

impl CustomOp2 for AddPerChannel {
    fn name(&self) -> &'static str {
        "add-per-channel"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        e: &CpuStorage,
        e_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = x_layout.shape().dims4()?;
        let (CpuStorage::F32(x), CpuStorage::F32(e)) = (x, e) else { bail!("add-per-channel expects f32") };
        let (Some((start, end)), Some((e_start, e_end))) =
            (x_layout.contiguous_offsets(), e_layout.contiguous_offsets())
        else {
            bail!("add-per-channel expects contiguous tensors")
        };
        let (x, e) = (&x[start..end], &e[e_start..e_end]);
        let mut y = unwritten(b * c * h * w);
        const MAPS: usize = 16;
        chunks(&mut y, (MAPS * h * w).max(1), |chunk, y| {
            for (i, y) in y.chunks_mut(h * w).enumerate() {
                let map = chunk * MAPS + i;
                y.iter_mut().zip(&x[map * h * w..]).for_each(|(y, x)| *y = x + e[map]);
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        e: &CudaStorage,
        le: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::layout::add_per_channel((x, lx), (e, le))
    }

    /// `dx = dy`; `de` sums `dy` over the pixels.
    fn bwd(
        &self,
        x: &Tensor,
        e: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| grad.clone());
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() && e.track_op() {
            let (b, c, h, w) = grad.dims4()?;
            let sums = super::cuda::layout::map_sums(&grad.contiguous()?, b * c, h * w)?.reshape((b, c))?;
            return Ok((dx, Some(sums.to_dtype(e.dtype())?)));
        }
        let de = if e.track_op() { Some(grad.flatten_from(2)?.sum(2)?) } else { None };
        Ok((dx, de))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn tokens_are_pixels_channel_by_channel_and_back() {
        let x = Tensor::arange(0f32, 2. * 3. * 5. * 7., &Device::Cpu).unwrap().reshape((2, 3, 5, 7)).unwrap();
        let tokens = to_tokens(&x).unwrap();
        let expected = x.reshape((2, 3, 35)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        assert_eq!(tokens.to_vec3::<f32>().unwrap(), expected.to_vec3::<f32>().unwrap());
        let back = from_tokens(&tokens, 5, 7).unwrap();
        assert_eq!(
            back.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
    }

    #[test]
    fn gradients_of_layout_ops_equal_candles() {
        let x = Var::randn(0f32, 1., (2, 3, 4, 5), &Device::Cpu).unwrap();
        let e = Var::randn(0f32, 1., (2, 3), &Device::Cpu).unwrap();
        let weights = Tensor::randn(0f32, 1., (2, 20, 3), &Device::Cpu).unwrap();
        let ours = to_tokens(&add_per_channel(&x, &e).unwrap()).unwrap();
        let theirs = x
            .broadcast_add(&e.reshape((2, 3, 1, 1)).unwrap())
            .unwrap()
            .flatten_from(2)
            .unwrap()
            .transpose(1, 2)
            .unwrap();
        let [a, b] = [ours, theirs].map(|y| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&x, &e] {
            let (a, b) = (a.get(var).unwrap(), b.get(var).unwrap());
            let d = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(d < 1e-5, "{d}");
            assert!(a.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.);
        }
    }
}
