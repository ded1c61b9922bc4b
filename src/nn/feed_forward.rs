//! `out(geglu(proj(x)))` of frozen layers, some rows at a time: what lies between is eight times as wide as `x`, and never there as a
//! whole. The backward pass makes it again from `x`, which costs a sixth of what it takes.

use super::activation::{GegluGradOver, geglu};
use super::kernels::parallel::unwritten;
use super::kernels::storage::{cpu, fused, slice};
use super::linear::Linear;
use super::record::{apply1, keeps_all};
use crate::Result;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

/// Rows of a piece: products of so many are as fast as those of more.
const ROWS: usize = 1024;

/// The two layers with a GEGLU between them; `None` where that is better done one after another: if a layer is trained, if there are few
/// rows, if everything is to be kept for the backward pass, or not on a CPU.
///
/// # Shape
/// `x` `(.., in)`, `proj` from `in` to `2 d`, `out` from `d` to `out` -> `(.., out)`.
///
/// # Errors
/// If the sizes do not fit.
pub fn feed_forward_by_rows(x: &Tensor, proj: &Linear, out: &Linear) -> Result<Option<Tensor>> {
    let (outputs, _) = out.parts().0.dims2()?;
    let (_, inputs) = proj.parts().0.dims2()?;
    let frozen = ![proj, out].into_iter().any(|layer| {
        let (weight, bias) = layer.parts();
        weight.track_op() || bias.is_some_and(Tensor::track_op)
    });
    let many = inputs > 0 && x.elem_count() > ROWS * inputs && x.dims().last() == Some(&inputs);
    if !(frozen && many && x.device().is_cpu() && fused(&[x])) || x.track_op() && keeps_all() {
        return Ok(None);
    }
    Ok(Some(apply1(&x.contiguous()?, FeedForward { proj: proj.clone(), out: out.clone(), outputs })?))
}

/// With `h = proj(x)` and `y = out(geglu(h))`: `dh` is GEGLU's for `dy W_out`, and `dx = dh W_proj`.
struct FeedForward {
    proj: Linear,
    out: Linear,
    outputs: usize,
}

/// A piece of whole rows as a tensor of its own.
fn piece(values: &[f32], width: usize) -> candle_core::Result<Tensor> {
    Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu)
}

/// Puts what `work` makes of each piece of rows of width `width` one after another.
fn by_pieces(
    values: &[f32],
    width: usize,
    made: usize,
    work: impl Fn(usize, Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Vec<f32>> {
    let mut all = unwritten(values.len() / width * made);
    for (i, (rows, all)) in values.chunks(ROWS * width).zip(all.chunks_mut(ROWS * made)).enumerate() {
        let result = work(i, piece(rows, width)?)?;
        let (storage, layout) = result.storage_and_layout();
        all.copy_from_slice(slice(&storage, layout)?);
    }
    Ok(all)
}

fn plain(error: crate::Error) -> candle_core::Error {
    candle_core::Error::Msg(error.to_string())
}

impl CustomOp1 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward by rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut shape = layout.dims().to_vec();
        let width = shape.last().copied().unwrap_or(1);
        if let Some(last) = shape.last_mut() {
            *last = self.outputs;
        }
        let y = by_pieces(cpu(x, layout)?, width, self.outputs, |_, x| {
            let h = self.proj.forward(&x).map_err(plain)?;
            self.out.forward(&geglu(&h).map_err(plain)?).map_err(plain)
        })?;
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (x, dy) = (x.detach(), dy.contiguous()?);
        let ((sx, lx), (sd, ld)) = (x.storage_and_layout(), dy.storage_and_layout());
        let width = x.dims().last().copied().unwrap_or(1);
        let dy = slice(&sd, ld)?;
        let dx = by_pieces(slice(&sx, lx)?, width, width, |i, x| {
            let dy = &dy[i * ROWS * self.outputs..][..x.dim(0)? * self.outputs];
            let h = self.proj.forward(&x).map_err(plain)?;
            let dh = self.out.input_gradient(&piece(dy, self.outputs)?)?;
            h.inplace_op2(&dh, &GegluGradOver)?;
            self.proj.input_gradient(&h)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::geglu_linear_over;
    use crate::nn::kernels::testing::{compare, tensor};
    use candle_core::{DType, Var};

    fn layers(inputs: usize, half: usize, outputs: usize) -> (Linear, Linear) {
        let random = |shape: &[usize], seed| tensor(shape, seed, DType::F32);
        let proj = Linear::from_parts(random(&[2 * half, inputs], 3), Some(random(&[2 * half], 4)));
        (proj, Linear::from_parts(random(&[outputs, half], 5), Some(random(&[outputs], 6))))
    }

    #[test]
    fn matches_the_layers_one_after_another() {
        for (rows, inputs, half, outputs) in [(2049, 3, 5, 7), (4096, 48, 64, 48), (2500, 33, 17, 20)] {
            let (proj, out) = layers(inputs, half, outputs);
            let x = tensor(&[1, rows, inputs], 1, DType::F32);
            let whole = geglu_linear_over(proj.forward(&x).unwrap(), &out).unwrap();
            let parts = feed_forward_by_rows(&x, &proj, &out).unwrap().expect("there are many rows");
            assert_eq!(whole.to_vec3::<f32>().unwrap(), parts.to_vec3::<f32>().unwrap(), "{rows} rows");
            compare("feed-forward", &[&[1, rows, inputs]], 4e-6, &|x| {
                let (proj, out) = layers_as(x[0].dtype(), &proj, &out);
                match feed_forward_by_rows(&x[0], &proj, &out)? {
                    Some(y) => Ok(y),
                    None => out.forward(&geglu(&proj.forward(&x[0])?)?), // the reference, in f64
                }
            });
        }
    }

    fn layers_as(dtype: DType, proj: &Linear, out: &Linear) -> (Linear, Linear) {
        let cast = |layer: &Linear| {
            let (weight, bias) = layer.parts();
            Linear::from_parts(weight.to_dtype(dtype).unwrap(), bias.map(|bias| bias.to_dtype(dtype).unwrap()))
        };
        (cast(proj), cast(out))
    }

    #[test]
    fn few_rows_and_trained_layers_go_one_after_another() {
        let (proj, out) = layers(4, 3, 5);
        let of = |rows: usize| tensor(&[rows, 4], 1, DType::F32);
        assert!(feed_forward_by_rows(&of(ROWS), &proj, &out).unwrap().is_none());
        assert!(feed_forward_by_rows(&of(ROWS + 1), &proj, &out).unwrap().is_some());
        let (weight, bias) = proj.parts();
        let trained = Var::from_tensor(weight).unwrap();
        let trained = Linear::from_parts(trained.as_tensor().clone(), bias.cloned());
        assert!(feed_forward_by_rows(&of(ROWS + 1), &trained, &out).unwrap().is_none());
        let tracked = Var::from_tensor(&of(ROWS + 1)).unwrap();
        let of_recorded = |lean: bool| {
            let pass = || feed_forward_by_rows(&tracked, &proj, &out);
            if lean { crate::nn::record_lean(pass) } else { crate::nn::record(pass) }.unwrap().0.is_some()
        };
        assert!(!of_recorded(false) && of_recorded(true), "memory is spared where it is asked for");
    }
}
