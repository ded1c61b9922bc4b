//! Sums over all values of a tensor, and reading them without making a GPU wait more often than it must.

use super::kernels::parallel::tasks;
use super::kernels::storage::slice;
use crate::Result;
use candle_core::{D, DType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest row that a GPU sums by one group of its threads.
const ROW: usize = 1024;

/// The sum of all values, a scalar. On a GPU, rows are summed first: candle sums with one group of threads for each result.
pub fn total(x: &Tensor) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => Ok(x.sum_all()?),
        false => Ok(row_sums(x)?.sum_all()?),
    }
}

/// Sums over rows of at most [`ROW`] values each, whatever the shape.
///
/// # Shape
/// Any `n` values -> `(rows,)`.
pub fn row_sums(x: &Tensor) -> Result<Tensor> {
    let count = x.elem_count();
    let width = (1..=ROW).rev().find(|width| count.is_multiple_of(*width)).unwrap_or(1);
    Ok(x.flatten_all()?.reshape((count / width, width))?.sum(D::Minus1)?)
}

/// Whether all values of each tensor are finite (on a GPU: their squares too), for which a GPU is waited for once.
///
/// # Errors
/// Those of candle.
pub fn finite(tensors: &[&Tensor]) -> Result<Vec<bool>> {
    if tensors.iter().any(|x| !x.device().is_cpu() || x.dtype() != DType::F32) {
        let squares = tensors.iter().map(|x| total(&x.sqr()?)).collect::<Result<Vec<_>>>()?;
        return Ok(read(&squares)?.into_iter().map(f32::is_finite).collect());
    }
    let of = |x: &&Tensor| {
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        Ok(all_finite(slice(&storage, layout)?))
    };
    tensors.iter().map(of).collect()
}

fn all_finite(values: &[f32]) -> bool {
    const BLOCK: usize = 1 << 16;
    /// All bits of the exponent: infinite, or no number.
    const EXPONENT: u32 = 0x7f80_0000;
    let found = AtomicBool::new(false);
    tasks(values.len().div_ceil(BLOCK), |i| {
        let block = &values[i * BLOCK..values.len().min((i + 1) * BLOCK)];
        // without a way out in its midst a loop becomes vectors
        let largest = block.iter().map(|x| x.to_bits() & EXPONENT).fold(0, u32::max);
        found.fetch_or(largest == EXPONENT, Ordering::Relaxed);
    });
    !found.into_inner()
}

/// The values of scalars, for which a GPU is waited for once.
///
/// # Errors
/// If one is no scalar.
pub fn read(scalars: &[Tensor]) -> Result<Vec<f32>> {
    match scalars {
        [] => Ok(Vec::new()),
        scalars => Ok(Tensor::stack(scalars, 0)?.to_vec1()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn one_value_that_is_not_finite_is_found() {
        let of = |at: usize, value: f32| {
            let mut values = vec![f32::MAX; 200_003];
            values[at] = value;
            Tensor::from_vec(values, 200_003, &Device::Cpu).unwrap()
        };
        let all = [
            of(0, f32::MIN),
            of(0, f32::NAN),
            of(65_535, f32::NAN),
            of(65_536, f32::INFINITY),
            of(200_002, f32::NEG_INFINITY),
            of(200_002, -0.0),
        ];
        assert_eq!(finite(&all.each_ref()).unwrap(), [true, false, false, false, false, true]);
        assert_eq!(finite(&[]).unwrap(), Vec::<bool>::new());
    }

    #[test]
    fn rows_cover_every_value_once_and_pass_gradients_on() {
        for shape in [vec![1], vec![3001], vec![40, 96, 3], vec![2048, 2]] {
            let count: usize = shape.iter().product();
            let x = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape.as_slice()).unwrap();
            let x = Var::from_tensor(&(x / count as f64).unwrap()).unwrap();
            let rows = row_sums(x.as_tensor()).unwrap();
            assert!(rows.elem_count() >= count.div_ceil(ROW), "{shape:?}");
            let sum = rows.sum_all().unwrap();
            let expected = (count as f32 - 1.0) / 2.0;
            assert!((read(std::slice::from_ref(&sum)).unwrap()[0] - expected).abs() <= 1e-4 * expected, "{shape:?}");
            let gradient = sum.backward().unwrap().remove(&x).unwrap();
            assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| *g == 1.0));
        }
        assert_eq!(read(&[]).unwrap(), Vec::<f32>::new());
    }
}
