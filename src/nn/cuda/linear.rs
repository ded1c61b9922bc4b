//! `y = x W^T + b` and its gradients.

use super::*;
use candle_core::{CudaStorage, Layout, Shape};

/// `x` `(.., in)`, `w` `(out, in)`, `bias` `(out)` -> `(.., out)`.
pub fn forward(
    (x, lx): (&CudaStorage, &Layout),
    (w, lw): (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let (outputs, inputs) = lw.shape().dims2()?;
    let (x, w) = (operand(x, lx)?, weight(&gpu, w, lw)?);
    let rows = x.len / inputs.max(1);
    let mut shape = lx.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let y = gpu.room(rows * outputs, x.half)?;
    let mut beta = 0.0;
    if let Some((bias, layout)) = bias {
        let (bias, name) = (gpu.as_type(operand(bias, layout)?, false)?, Name::FillRows.of(x.half));
        each!(&gpu, name, y.operand.len, bias.operand.at, y.operand.at, y.operand.len, outputs)?;
        beta = 1.0;
    }
    let half = x.half || w.operand.half;
    let (x, w) = (gpu.as_type(x, half)?, gpu.as_type(w.operand, half)?);
    let sizes = Sizes { batch: 1, m: rows, n: outputs, k: inputs };
    let (a, b) = (Matrix::new(&x.operand, inputs), Matrix::new(&w.operand, inputs).t());
    product(&gpu, sizes, a, b, (1.0, beta), Matrix::new(&y.operand, outputs))?;
    output(&gpu, y, shape)
}

/// `dx = dy W` where it is wanted and `dW = dy^T x` where the weight is tracked, in `f32`.
pub fn backward(x: &Tensor, wanted: bool, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(dy)?;
    let (outputs, inputs) = w.dims2()?;
    let elements = x.elem_count();
    let rows = elements / inputs.max(1);
    let ((sx, lx), (sw, lw), (sd, ld)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
    let dy = input(&sd, ld)?;
    let (mut dx, mut dw) = (None, None);
    if wanted {
        let weight = weight_input(&gpu, &sw, lw)?;
        let half = dy.half || weight.operand.half;
        let gradient = gpu.room(elements, is_half(x))?;
        let (dy, weight) = (gpu.as_type(dy, half)?, gpu.as_type(weight.operand, half)?);
        let sizes = Sizes { batch: 1, m: rows, n: inputs, k: outputs };
        let (a, b) = (Matrix::new(&dy.operand, outputs), Matrix::new(&weight.operand, inputs));
        product(&gpu, sizes, a, b, (1.0, 0.0), Matrix::new(&gradient.operand, inputs))?;
        dx = Some(tensor(&gpu, gradient, x.shape())?);
    }
    if w.track_op() {
        let values = input(&sx, lx)?; // not before: a frozen layer's input may have been released
        let dy = gpu.as_type(dy, values.half)?;
        let gradient = gpu.room(outputs * inputs, false)?;
        let sizes = Sizes { batch: 1, m: outputs, n: inputs, k: rows };
        let (a, b) = (Matrix::new(&dy.operand, outputs).t(), Matrix::new(&values, inputs));
        product(&gpu, sizes, a, b, (1.0, 0.0), Matrix::new(&gradient.operand, inputs))?;
        dw = Some(tensor(&gpu, gradient, w.shape())?);
    }
    Ok((dx, dw))
}

/// Sums of the columns of `dy` `(.., width)`: a bias's gradient.
pub fn column_sums(dy: &Tensor, width: usize) -> Result<Tensor> {
    let gpu = Gpu::of(dy)?;
    let (storage, layout) = dy.storage_and_layout();
    let dy = input(&storage, layout)?;
    let (sums, rows) = (gpu.room(width, false)?, dy.len / width.max(1));
    launch!(&gpu, Name::ColumnSums.of(dy.half), columns(width), dy.at, sums.operand.at, rows, width)?;
    tensor(&gpu, sums, width)
}
