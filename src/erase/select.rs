//! The exact k-th smallest of many floats, without a sort and without a copy.

use crate::{Error, Result};
use rayon::prelude::*;

/// Floats of one chunk of parallel work.
const CHUNK: usize = 1 << 18;

/// The `k`-th smallest (1-based) of all values, which must not be negative or NaN: two counting passes over the bits, as
/// the bits of non-negative floats are in the order of the floats.
///
/// # Errors
/// If `k` is 0 or larger than the number of values, or a value is negative, NaN or infinite (named by its slice).
pub fn kth_smallest(slices: &[(&str, &[f32])], k: usize) -> Result<f32> {
    let total: usize = slices.iter().map(|(_, s)| s.len()).sum();
    if k == 0 || k > total {
        return Err(Error::usage(format!(
            "cannot take value {k} of {total}: the kept fraction must lie above 0 and below 1"
        )));
    }
    for (name, slice) in slices {
        if !slice.par_iter().with_min_len(CHUNK).all(|v| v.is_finite() && *v >= 0.0) {
            return Err(Error::Numeric(format!("the score of {name} has a value that is negative or not finite")));
        }
    }
    let (high, below) = find(&count(slices, |bits| Some(bits >> 16)), k);
    let (low, _) = find(&count(slices, |bits| (bits >> 16 == high).then_some(bits & 0xffff)), k - below);
    Ok(f32::from_bits(high << 16 | low))
}

/// How often each 16-bit digit occurs. `-0.0` counts as `0.0`.
fn count(slices: &[(&str, &[f32])], digit: impl Fn(u32) -> Option<u32> + Sync) -> Vec<u64> {
    let empty = || vec![0u64; 1 << 16];
    let parts = slices.par_iter().flat_map(|(_, slice)| slice.par_chunks(CHUNK));
    let add = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let histogram = |mut counts: Vec<u64>, chunk: &[f32]| {
        for value in chunk {
            if let Some(digit) = digit((value + 0.0).to_bits()) {
                counts[digit as usize] += 1;
            }
        }
        counts
    };
    parts.fold(empty, histogram).reduce(empty, add)
}

/// The digit in which the `k`-th falls, and how many values lie below that digit.
fn find(counts: &[u64], k: usize) -> (u32, usize) {
    let mut below = 0;
    for (digit, count) in counts.iter().enumerate() {
        if below + *count as usize >= k {
            return (digit as u32, below);
        }
        below += *count as usize;
    }
    (counts.len() as u32 - 1, below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;

    #[test]
    fn equals_sorting_ties_and_zeros_included() {
        let mut values: Vec<f32> = Generator::new(1).randn(5000).iter().map(|v| v.abs()).collect();
        values.extend([0.0, -0.0, 1e-40, 3.0, 3.0, 3.0, f32::MAX]);
        let (a, b) = values.split_at(1234);
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        for k in [1, 2, 3, 4, 100, 2500, values.len() - 3, values.len()] {
            assert_eq!(kth_smallest(&[("a", a), ("b", b)], k).unwrap(), sorted[k - 1].abs(), "k = {k}");
        }
    }

    #[test]
    fn refuses_what_has_no_order_or_no_kth() {
        assert!(kth_smallest(&[("a", &[1.0])], 0).is_err());
        assert!(kth_smallest(&[("a", &[1.0])], 2).is_err());
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            let error = kth_smallest(&[("fine", &[1.0]), ("to_q", &[0.0, bad])], 1).unwrap_err().to_string();
            assert!(error.contains("to_q"), "{error}");
        }
    }
}
