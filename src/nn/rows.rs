//! Rows of a batch side by side: for small networks, a thread that takes a few rows through all layers is much faster than
//! all threads together in each layer. And rows whose results do not depend on how many others are beside them.

use super::kernels::parallel::shares;
use crate::Result;
use candle_core::{Device, Tensor};
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    /// See [`assuming_rows`].
    static ASSUMED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `f`, in which layers choose how they compute as if every batch had `rows` rows. The ways differ in the last bits, so
/// that without this a row's result depends on how many others are beside it. Holds for this thread; shares that `f` starts
/// must say so for themselves.
pub fn assuming_rows<T>(rows: usize, f: impl FnOnce() -> T) -> T {
    /// Puts the number back, on a panic too.
    struct Restore(Option<usize>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASSUMED.set(self.0);
        }
    }
    let _restore = Restore(ASSUMED.replace(Some(rows)));
    f()
}

/// The rows by which a way is chosen, where that is not the batch.
pub(super) fn assumed_rows() -> Option<usize> {
    ASSUMED.get()
}

/// `f(rows)` for every `size` rows of `0..count`, joined along the first dimension: side by side on the CPU, one after another on
/// a GPU, which a few rows keep busy. The cut depends on the sizes alone.
///
/// # Errors
/// The first of `f`'s errors, in the order of the rows.
pub fn by_rows(
    device: &Device,
    count: usize,
    size: usize,
    f: impl Fn(Range<usize>) -> Result<Tensor> + Send + Sync,
) -> Result<Tensor> {
    let size = size.max(1);
    if count <= size {
        return f(0..count);
    }
    let (parts, part) = (count.div_ceil(size), |i: usize| f(i * size..((i + 1) * size).min(count)));
    let parts = match device.is_cpu() {
        true => side_by_side(parts, part)?,
        false => (0..parts).map(part).collect::<Result<_>>()?,
    };
    Ok(Tensor::cat(&parts, 0)?)
}

/// `f(i)` for `i` in `0..count`, side by side, in order.
///
/// # Errors
/// The first of `f`'s errors, in order of `i`.
pub fn side_by_side<T: Send>(count: usize, f: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    shares(count, f).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use candle_core::Device;

    #[test]
    fn rows_are_joined_in_order_and_the_first_error_wins() {
        let x = Tensor::arange(0f32, 22., &Device::Cpu).unwrap().reshape((11, 2)).unwrap();
        let doubled = by_rows(&Device::Cpu, 11, 3, |rows| Ok((x.narrow(0, rows.start, rows.len())? * 2.0)?)).unwrap();
        assert_eq!(doubled.to_vec2::<f32>().unwrap(), (x * 2.0).unwrap().to_vec2::<f32>().unwrap());
        let failed = by_rows(&Device::Cpu, 11, 3, |rows| Err(Error::usage(format!("rows from {}", rows.start))));
        assert_eq!(failed.unwrap_err().to_string(), "rows from 0");
    }
}
