//! Nearest-neighbour upsampling by two.

use super::kernels::parallel::{chunks, unwritten};
use super::kernels::storage::{cpu, fused, slice};
use super::record::apply1;
use crate::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

/// Doubles height and width, each pixel four times.
///
/// # Shape
/// `(B, C, H, W)` -> `(B, C, 2H, 2W)`.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) && x.rank() == 4 && x.elem_count() > 0 {
        return Ok(apply1(&x.contiguous()?, Nearest)?);
    }
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?;
    Ok(x.reshape((b, c, 2 * h, 2 * w))?)
}

/// `y[2i + a, 2j + b] = x[i, j]`, so `dx[i, j]` is the sum of `dy` over the four.
struct Nearest;

impl CustomOp1 for Nearest {
    fn name(&self) -> &'static str {
        "upsample-nearest-2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let x = cpu(x, layout)?;
        let mut y = unwritten(4 * x.len());
        chunks(&mut y, 4 * h * w, |map, y| {
            let x = &x[map * h * w..];
            for (row, lines) in y.chunks_exact_mut(4 * w).enumerate() {
                let (first, second) = lines.split_at_mut(2 * w);
                first.chunks_exact_mut(2).zip(&x[row * w..]).for_each(|(pair, x)| pair.fill(*x));
                second.copy_from_slice(first);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((b, c, 2 * h, 2 * w))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        super::cuda::upsample::forward(x, layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let dy = dy.contiguous()?;
        #[cfg(feature = "cuda")]
        if dy.device().is_cuda() {
            return Ok(Some(super::cuda::upsample::backward(x, &dy)?));
        }
        let (storage, layout) = dy.storage_and_layout();
        let dy = slice(&storage, layout)?;
        let mut dx = unwritten(dy.len() / 4);
        chunks(&mut dx, h * w, |map, dx| {
            let dy = &dy[map * 4 * h * w..];
            for (row, line) in dx.chunks_exact_mut(w).enumerate() {
                let lines = &dy[row * 4 * w..][..4 * w];
                for (j, dx) in line.iter_mut().enumerate() {
                    *dx = (lines[2 * j] + lines[2 * j + 1]) + (lines[2 * w + 2 * j] + lines[2 * w + 2 * j + 1]);
                }
            }
        });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::testing::compare;

    #[test]
    fn doubles_every_pixel_and_sums_back() {
        compare("upsample", &[&[2, 3, 5, 7]], 1e-6, &|t| upsample_nearest2x(&t[0]));
        compare("upsample", &[&[1, 4, 6, 3]], 1e-6, &|t| upsample_nearest2x(&t[0].transpose(2, 3)?));
    }
}
