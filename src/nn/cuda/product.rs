//! Matrix products by cuBLAS.

use super::Gpu;
use super::memory::Operand;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::{WrapErr, gemm_reduced_precision_f32};
use candle_core::{Result, bail};

/// A matrix of a product, row-major.
#[derive(Clone, Copy)]
pub struct Matrix {
    /// Address of its first element.
    pub at: u64,
    /// Whether it holds `bf16`.
    pub half: bool,
    /// Elements from a row to the next, as it lies in memory.
    pub line: usize,
    /// Whether what is multiplied is the transpose of what lies in memory.
    pub transposed: bool,
    /// Elements from one matrix of the batch to the next; 0 where all products share it.
    pub apart: usize,
}

impl Matrix {
    /// One matrix of rows of `line` elements.
    pub fn new(of: &Operand, line: usize) -> Self {
        Self { at: of.at, half: of.half, line, transposed: false, apart: 0 }
    }

    /// Its transpose.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// One of several, `apart` elements from one to the next.
    pub fn apart(self, apart: usize) -> Self {
        Self { apart, ..self }
    }
}

/// `batch` products of `(m, k)` and `(k, n)`.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// `c = alpha a b + beta c`; `c` is not transposed, and `f32` unless `a` and `b` are `bf16`, where it may be either. In full `f32`, in
/// TF32 if candle's switch for that is on, or of `bf16` operands with sums in `f32`.
///
/// # Errors
/// If the operands are of different types, or a size is beyond what cuBLAS takes.
pub fn product(gpu: &Gpu, sizes: Sizes, a: Matrix, b: Matrix, (alpha, beta): (f32, f32), c: Matrix) -> Result<()> {
    if a.half != b.half || (c.half && !a.half) || c.transposed {
        bail!("a product got operands that do not fit each other");
    }
    let int = |n: usize| i32::try_from(n).map_err(|_| candle_core::Error::msg(format!("{n} is too large for cuBLAS")));
    let (kind, compute) = match (a.half, gemm_reduced_precision_f32()) {
        (true, _) => (sys::cudaDataType_t::CUDA_R_16BF, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        (false, true) => (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32),
        (false, false) => (sys::cudaDataType_t::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
    };
    let way = |matrix: &Matrix| match matrix.transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let blas = gpu.device.cublas_handle();
    gpu.stream.context().bind_to_thread().w()?;
    let (alpha, beta) = ((&raw const alpha).cast(), (&raw const beta).cast());
    let algorithm = sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT;
    let result_kind = if c.half { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_32F };
    // cuBLAS counts columns first: what it is told is c^T = b^T a^T
    let (m, n, k) = (int(sizes.n)?, int(sizes.m)?, int(sizes.k)?);
    let (line_a, line_b, line_c) = (int(b.line)?, int(a.line)?, int(c.line)?);
    // SAFETY: the addresses are of memory of this device, which is large enough for the sizes and lines; the handle works on the
    // same stream as everything else.
    unsafe {
        let (at_a, at_b, at_c) = (b.at as *const _, a.at as *const _, c.at as *mut _);
        if sizes.batch == 1 {
            result::gemm_ex(
                *blas.handle(),
                way(&b),
                way(&a),
                m,
                n,
                k,
                alpha,
                at_a,
                kind,
                line_a,
                at_b,
                kind,
                line_b,
                beta,
                at_c,
                result_kind,
                line_c,
                compute,
                algorithm,
            )
        } else {
            result::gemm_strided_batched_ex(
                *blas.handle(),
                way(&b),
                way(&a),
                m,
                n,
                k,
                alpha,
                at_a,
                kind,
                line_a,
                b.apart as i64,
                at_b,
                kind,
                line_b,
                a.apart as i64,
                beta,
                at_c,
                result_kind,
                line_c,
                c.apart as i64,
                int(sizes.batch)?,
                compute,
                algorithm,
            )
        }
    }
    .w()
}
