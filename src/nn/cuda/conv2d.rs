//! Convolutions as products with columns: `y = W X + b`, `dX` the same of `dy` with the kernel flipped (3x3, stride 1) or `W^T dy`
//! gathered back onto the input, `dW = sum of dy X^T`.

use super::*;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CudaStorage, Layout, Shape};

/// Columns of up to so many bytes at a time: what a product reads shall still lie in the cache.
const COLUMNS: usize = 32 << 20;

/// Sizes of a convolution, as the kernels have them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Geometry {
    pub inputs: i32,
    pub height: i32,
    pub width: i32,
    pub kernel: i32,
    pub stride: i32,
    pub padding: i32,
    pub out_height: i32,
    pub out_width: i32,
}

// SAFETY: plain numbers in C's layout, as `struct Geometry` of convolution.cu.
unsafe impl DeviceRepr for Geometry {}

impl Geometry {
    fn taps(&self) -> usize {
        (self.inputs * self.kernel * self.kernel) as usize
    }

    fn in_sample(&self) -> usize {
        self.inputs as usize * self.height as usize * self.width as usize
    }

    fn pixels(&self) -> usize {
        self.out_height as usize * self.out_width as usize
    }

    /// Whether the columns are the input itself.
    fn is_product(&self) -> bool {
        (self.kernel, self.stride, self.padding) == (1, 1, 0)
    }

    /// Whether it is a 3x3 kernel's that keeps height and width.
    fn is_3x3(&self) -> bool {
        (self.kernel, self.stride, self.padding) == (3, 1, 1)
    }

    /// Images and rows of the result that are worked on at a time.
    fn shares(&self, batch: usize, bytes: usize) -> (usize, usize) {
        let row = self.taps() * self.out_width as usize * bytes;
        let rows = (COLUMNS / row.max(1)).clamp(1, self.out_height as usize);
        if rows < self.out_height as usize {
            return (1, rows);
        }
        ((COLUMNS / (row * rows).max(1)).clamp(1, batch.max(1)), rows)
    }
}

/// The columns of some images, and of some rows of the result, as a matrix for each image.
struct Columns {
    _room: Room,
    matrix: Matrix,
}

impl Columns {
    /// `x`: the first of the images.
    fn new(gpu: &Gpu, g: &Geometry, x: Operand, images: usize, (row, rows): (usize, usize)) -> Result<Self> {
        let pixels = rows * g.out_width as usize;
        let room = gpu.room(images * g.taps() * pixels, x.half)?;
        // numbers in 16 bytes
        let wide = if x.half { 8 } else { 4 };
        let by_lines = g.is_3x3() && (g.width as usize).is_multiple_of(wide) && x.at.is_multiple_of(16);
        let (name, threads) = match by_lines {
            true => (Name::Columns3x3, g.inputs as usize * pixels / wide),
            false => (Name::Columns, g.inputs as usize * pixels),
        };
        launch!(gpu, name.of(x.half), over(threads, images), x.at, room.operand.at, *g, row as i32, rows as i32)?;
        Ok(Self { matrix: Matrix::new(&room.operand, pixels).apart(g.taps() * pixels), _room: room })
    }
}

/// `x` `(B, in, H, W)`, `w` `(out, in, k, k)`, `bias` `(out)` -> `(B, out, H', W')`.
pub fn forward(
    g: &Geometry,
    (x, lx): (&CudaStorage, &Layout),
    (w, lw): (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::new(&x.device)?;
    let (batch, outputs) = (lx.dims()[0], lw.dims()[0]);
    let (x, w) = (operand(x, lx)?, weight(&gpu, w, lw)?);
    let y = convolve(&gpu, g, x, w.operand, (batch, outputs))?;
    if let Some((bias, layout)) = bias {
        let (bias, y) = (gpu.as_type(operand(bias, layout)?, false)?, y.operand);
        each!(&gpu, Name::BiasMaps.of(y.half), y.len, bias.operand.at, y.at, y.len, g.pixels(), outputs)?;
    }
    output(&gpu, y, (batch, outputs, g.out_height as usize, g.out_width as usize))
}

/// Without a bias, in the type of `x`.
fn convolve(gpu: &Gpu, g: &Geometry, x: Operand, w: Operand, (batch, outputs): (usize, usize)) -> Result<Room> {
    let sample = outputs * g.pixels();
    let y = gpu.room(batch * sample, x.half)?;
    let to = y.operand;
    let half = x.half || w.half;
    let (x, w) = (gpu.as_type(x, half)?, gpu.as_type(w, half)?);
    let weight = Matrix::new(&w.operand, g.taps());
    let multiply = |columns: Matrix, images: usize, image: usize, first: usize, pixels: usize| {
        let sizes = Sizes { batch: images, m: outputs, n: pixels, k: g.taps() };
        let to = Matrix { at: to.from(image * sample + first), ..Matrix::new(&to, g.pixels()) };
        product(gpu, sizes, weight, columns, (1.0, 0.0), to.apart(sample))
    };
    if g.is_product() {
        multiply(Matrix::new(&x.operand, g.pixels()).apart(g.in_sample()), batch, 0, 0, g.pixels())?;
        return Ok(y);
    }
    let (images, rows) = g.shares(batch, if half { 2 } else { 4 });
    for image in (0..batch).step_by(images) {
        let images = images.min(batch - image);
        for row in (0..g.out_height as usize).step_by(rows) {
            let rows = rows.min(g.out_height as usize - row);
            let from = Operand { at: x.operand.from(image * g.in_sample()), ..x.operand };
            let columns = Columns::new(gpu, g, from, images, (row, rows))?;
            let width = g.out_width as usize;
            multiply(columns.matrix, images, image, row * width, rows * width)?;
        }
    }
    Ok(y)
}

/// `dx` and `dW`, each where tracked; `dW` in `f32`.
pub fn backward(g: &Geometry, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(dy)?;
    let ((sx, lx), (sw, lw), (sd, ld)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
    let dy = input(&sd, ld)?;
    let (batch, outputs) = (x.dim(0)?, w.dim(0)?);
    let dx = match x.track_op() {
        true => {
            let dx = input_gradient(&gpu, g, weight_input(&gpu, &sw, lw)?, dy, (batch, outputs))?;
            Some(tensor(&gpu, gpu.given_as(dx, is_half(x))?, x.shape())?)
        }
        false => None,
    };
    let dw = match w.track_op() {
        // a frozen layer's input may have been released
        true => {
            let dw = weight_gradient(&gpu, g, input(&sx, lx)?, dy, (batch, outputs))?;
            Some(tensor(&gpu, dw, w.shape())?)
        }
        false => None,
    };
    Ok((dx, dw))
}

/// In the type of `dy`.
fn input_gradient(
    gpu: &Gpu,
    g: &Geometry,
    weight: Room,
    dy: Operand,
    (batch, outputs): (usize, usize),
) -> Result<Room> {
    if g.is_3x3() {
        return flipped(gpu, g, weight, dy, (batch, outputs));
    }
    let (dx, half) = (gpu.room(batch * g.in_sample(), dy.half)?, dy.half || weight.operand.half);
    let to = dx.operand;
    let (pixels, sample) = (g.pixels(), outputs * g.pixels());
    let (dy, weight) = (gpu.as_type(dy, half)?, gpu.given_as(weight, half)?);
    let dy = Matrix::new(&dy.operand, pixels).apart(sample);
    let weight = Matrix::new(&weight.operand, g.taps()).t();
    let sizes = |images| Sizes { batch: images, m: g.taps(), n: pixels, k: outputs };
    if g.is_product() {
        let to = Matrix::new(&to, pixels).apart(g.in_sample());
        product(gpu, sizes(batch), weight, dy, (1.0, 0.0), to)?;
        return Ok(dx);
    }
    let columns = g.taps() * pixels;
    let images = (8 * COLUMNS / (4 * columns).max(1)).clamp(1, batch.max(1));
    let between = gpu.room(images * columns, false)?;
    let bytes = if dy.half { 2 } else { 4 };
    for image in (0..batch).step_by(images) {
        let images = images.min(batch - image);
        let dy = Matrix { at: dy.at + (image * sample * bytes) as u64, ..dy };
        let into = Matrix::new(&between.operand, pixels).apart(columns);
        product(gpu, sizes(images), weight, dy, (1.0, 0.0), into)?;
        let (grid, name) = (over(g.in_sample(), images), Name::ColumnsGrad.of(to.half));
        launch!(gpu, name, grid, between.operand.at, to.from(image * g.in_sample()), *g)?;
    }
    Ok(dx)
}

/// The input's gradient of a 3x3 convolution of stride 1 and padding 1: the same of `dy`, with the kernel flipped and its channels
/// swapped.
fn flipped(gpu: &Gpu, g: &Geometry, weight: Room, dy: Operand, (batch, outputs): (usize, usize)) -> Result<Room> {
    let w = weight.operand;
    let room = gpu.room(w.len, w.half)?;
    let inputs = g.inputs as usize;
    let grid = ((inputs.div_ceil(32) as u32, outputs.div_ceil(32) as u32, 1), (THREADS as u32, 1, 1));
    launch!(gpu, Name::Flip.of(w.half), grid, w.at, room.operand.at, outputs as i32, g.inputs)?;
    drop(weight); // what was widened for this is not needed beside it
    let swapped = Geometry { inputs: outputs as i32, ..*g };
    convolve(gpu, &swapped, dy, room.operand, (batch, inputs))
}

fn weight_gradient(gpu: &Gpu, g: &Geometry, x: Operand, dy: Operand, (batch, outputs): (usize, usize)) -> Result<Room> {
    let dw = gpu.room(outputs * g.taps(), false)?;
    let to = Matrix::new(&dw.operand, g.taps());
    let dy = gpu.as_type(dy, x.half)?;
    let (_, rows) = g.shares(1, 4);
    let width = g.out_width as usize;
    let mut beta = 0.0;
    for image in 0..batch {
        for row in (0..g.out_height as usize).step_by(rows) {
            let rows = rows.min(g.out_height as usize - row);
            let from = Operand { at: x.from(image * g.in_sample()), ..x };
            let columns = Columns::new(gpu, g, from, 1, (row, rows))?;
            let at = dy.operand.from((image * outputs * g.out_height as usize + row) * width);
            let dy = Matrix { at, ..Matrix::new(&dy.operand, g.pixels()) };
            let sizes = Sizes { batch: 1, m: outputs, n: g.taps(), k: rows * width };
            product(gpu, sizes, dy, columns.matrix.t(), (1.0, beta), to)?;
            beta = 1.0;
        }
    }
    Ok(dw)
}

/// Sums of `dy` `(B, out, H', W')` over samples and pixels: a bias's gradient.
pub fn bias_gradient(dy: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = dy.dims4()?;
    let maps = layout::map_sums(dy, batch * channels, height * width)?;
    linear::column_sums(&maps, channels)
}
