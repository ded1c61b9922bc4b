//! CPU kernels for contiguous `f32` slices: vectorised with run-time dispatch, parallel in blocks of fixed size, so that
//! every result is the same bit for bit at any number of threads.

pub mod activation;
pub mod attention;
pub mod gemm;
pub mod instructions;
pub mod math;
pub mod matmul;
pub mod norm;
pub mod parallel;
pub mod simd;
pub mod storage;
#[cfg(test)]
pub mod testing;
pub mod values;
