//! Whether two models differ on the same prompts and seeds. (The interval of a paired difference of rates is
//! [`crate::audit::paired_drop`].)

use crate::{Error, Result};
use serde::Serialize;

/// McNemar's test (1947) in its exact form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Pairs that are a hit before and not after.
    pub only_before: usize,
    /// Pairs that are a hit after and not before.
    pub only_after: usize,
    /// The chance of a split at least as uneven if both kinds were equally likely (two-sided binomial test with p =
    /// 1/2); 1 without changes.
    pub p: f64,
}

/// McNemar's exact test of hits on the same prompts and seeds.
///
/// # Errors
/// If there are not as many answers before as after.
pub fn mcnemar(before: &[bool], after: &[bool]) -> Result<McNemar> {
    same_length(before.len(), after.len(), "McNemar's test")?;
    let count = |b: bool, a: bool| before.iter().zip(after).filter(|(x, y)| **x == b && **y == a).count();
    let (only_before, only_after) = (count(true, false), count(false, true));
    Ok(McNemar { only_before, only_after, p: two_sided(only_before.min(only_after), only_before + only_after) })
}

/// `min(1, 2 P(X <= k))` for `X` of `n` fair coins; `k <= n / 2`.
fn two_sided(k: usize, n: usize) -> f64 {
    if 2 * k >= n {
        return 1.0;
    }
    // ln C(n, i) - n ln 2, from i = 0 on: the chance itself may be too small for a number
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log.exp();
    for i in 1..=k {
        log += ((n - i + 1) as f64 / i as f64).ln();
        sum += log.exp();
    }
    (2.0 * sum).min(1.0)
}

/// A mean difference with its bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bootstrap {
    /// The mean of `after - before`.
    pub mean: f64,
    /// The 2.5 % point of the means of resampled pairs.
    pub low: f64,
    /// The 97.5 % point.
    pub high: f64,
}

/// The mean difference of two models' numbers on the same prompts and seeds, with its 95 % percentile interval:
/// `resamples` times as many pairs as there are, drawn with replacement (Efron & Tibshirani 1993, chapter 13; quantiles
/// between two values are interpolated, as in NumPy). The same `seed` gives the same interval.
///
/// # Errors
/// If there are no pairs, not as many before as after, or no resamples.
pub fn paired_bootstrap(before: &[f64], after: &[f64], resamples: usize, seed: u64) -> Result<Bootstrap> {
    same_length(before.len(), after.len(), "the paired bootstrap")?;
    let differences: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let n = differences.len();
    if n == 0 || resamples == 0 {
        return Err(Error::usage("the paired bootstrap needs at least one pair and one resample"));
    }
    let mut state = seed;
    let mut draw = || ((u128::from(split_mix(&mut state)) * n as u128) >> 64) as usize;
    let mut means: Vec<f64> =
        (0..resamples).map(|_| (0..n).map(|_| differences[draw()]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let place = q * (means.len() - 1) as f64;
        let (low, part) = (place.floor() as usize, place.fract());
        let high = means[(low + 1).min(means.len() - 1)];
        means[low] + part * (high - means[low])
    };
    Ok(Bootstrap { mean: differences.iter().sum::<f64>() / n as f64, low: quantile(0.025), high: quantile(0.975) })
}

/// SplitMix64 (Steele et al. 2014): good enough to draw indices, and the same everywhere.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn same_length(before: usize, after: usize, what: &str) -> Result<()> {
    if before == after {
        return Ok(());
    }
    Err(Error::usage(format!("{what}: {before} answers before and {after} after; it needs pairs")))
}
