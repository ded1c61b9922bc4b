//! A 3x3 convolution of a map at twice its size, which is never whole in memory.

use super::Conv2d;
use crate::Result;
use crate::nn::upsample_nearest2x;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, InplaceOp2, Layout, MetalStorage, Tensor};

/// Values of the larger map that are made at a time.
const STRIPE: usize = 1 << 24;
/// Rows of `x` that a stripe reads beyond its own, on either side: the kernel wants half a row, and [`super::winograd`]'s tiles of four
/// rows shall lie as they do in the whole map, so that the result has the same bits.
const BEYOND: usize = 2;

impl Conv2d {
    /// As [`Conv2d::forward`] of [`upsample_nearest2x`], for a kernel of 3x3, stride 1 and padding 1. Outside a graph large maps are
    /// computed stripe by stripe.
    ///
    /// # Shape
    /// `(B, in, H, W)` -> `(B, out, 2H, 2W)`.
    pub fn forward_upsampled(&self, x: &Tensor) -> Result<Tensor> {
        self.in_stripes(x, STRIPE)
    }

    fn in_stripes(&self, x: &Tensor, stripe: usize) -> Result<Tensor> {
        let (batch, inputs, height, width) = x.dims4()?;
        let rows = (stripe / (4 * batch * inputs * width).max(1)).max(1).next_multiple_of(BEYOND);
        if rows >= height || x.track_op() || self.weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op)
        {
            return self.forward(&upsample_nearest2x(x)?);
        }
        let outputs = self.weight.dim(0)?;
        // SAFETY: the stripes below cover every row.
        let y = unsafe { Tensor::empty((batch, outputs, 2 * height, 2 * width), x.dtype(), x.device())? };
        for first in (0..height).step_by(rows) {
            let end = (first + rows).min(height);
            let (from, to) = (first.saturating_sub(BEYOND), (end + BEYOND).min(height));
            let stripe = self.forward(&upsample_nearest2x(&x.narrow(2, from, to - from)?)?)?;
            y.inplace_op2(&stripe, &Rows { skip: 2 * (first - from), at: 2 * first, rows: 2 * (end - first) })?;
        }
        Ok(y)
    }
}

/// Copies rows of maps `(B, C, h, W)` to rows of other maps `(B, C, H, W)`.
struct Rows {
    /// Rows of the source before the first that is copied.
    skip: usize,
    /// Rows of the target before where it goes.
    at: usize,
    rows: usize,
}

impl Rows {
    fn copy<S: BackendStorage>(&self, to: &mut S, lt: &Layout, from: &S, lf: &Layout) -> candle_core::Result<()> {
        let ((b, c, height, width), (_, _, lines, _)) = (lt.shape().dims4()?, lf.shape().dims4()?);
        let (Some((to_start, _)), Some((start, _))) = (lt.contiguous_offsets(), lf.contiguous_offsets()) else {
            candle_core::bail!("rows of maps that are not contiguous")
        };
        let (block, source, target) = (self.rows * width, start + self.skip * width, to_start + self.at * width);
        from.copy2d(to, b * c, block, lines * width, height * width, source, target)
    }
}

impl InplaceOp2 for Rows {
    fn name(&self) -> &'static str {
        "copy rows"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, lt: &Layout, from: &CpuStorage, lf: &Layout) -> candle_core::Result<()> {
        self.copy(to, lt, from, lf)
    }

    fn cuda_fwd(&self, to: &mut CudaStorage, lt: &Layout, from: &CudaStorage, lf: &Layout) -> candle_core::Result<()> {
        self.copy(to, lt, from, lf)
    }

    fn metal_fwd(
        &self,
        to: &mut MetalStorage,
        lt: &Layout,
        from: &MetalStorage,
        lf: &Layout,
    ) -> candle_core::Result<()> {
        self.copy(to, lt, from, lf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn stripes_have_the_bits_of_the_whole() {
        let randn = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        // sizes that go through Winograd's convolution in either form, and through the others
        for (batch, inputs, outputs, height, width) in [(1, 32, 24, 37, 40), (2, 8, 16, 24, 16), (1, 5, 3, 9, 4)] {
            let conv = Conv2d {
                weight: randn(&[outputs, inputs, 3, 3]),
                bias: Some(randn(&[outputs])),
                stride: 1,
                padding: 1,
                points: None,
            };
            let x = randn(&[batch, inputs, height, width]);
            let bits = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let whole = bits(conv.forward(&upsample_nearest2x(&x).unwrap()).unwrap());
            for rows in [2, 8, 14] {
                let found = bits(conv.in_stripes(&x, rows * 4 * batch * inputs * width).unwrap());
                if (inputs, rows) != (32, 2) {
                    assert_eq!(found, whole, "{inputs}x{height}x{width}, {rows} rows");
                    continue;
                }
                // stripes so low are convolved in another form
                let largest = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
                let off = found.iter().zip(&whole).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off <= 1e-5 * largest, "{off} of {largest}");
            }
            // a graph is kept whole
            let var = Var::from_tensor(&x).unwrap();
            let loss = conv.in_stripes(var.as_tensor(), 1).unwrap().sum_all().unwrap();
            assert!(loss.backward().unwrap().get(&var).is_some());
        }
    }
}
