//! Sums over all values of a tensor, and reading them without making a GPU wait more often than it must.

use crate::Result;
use candle_core::{D, Tensor};

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
