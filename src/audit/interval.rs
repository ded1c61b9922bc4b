//! Confidence intervals of rates.

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % score interval (1927) of `hits` out of `n`, as fractions; 0 to 1 if there are none.
pub fn wilson(hits: usize, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (count, p) = (n as f64, hits as f64 / n as f64);
    let z2 = Z * Z / count;
    let centre = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (p * (1.0 - p) / count + z2 / (4.0 * count)).sqrt();
    let low = if hits == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if hits == n { 1.0 } else { (centre + half).min(1.0) };
    (low, high)
}

/// The drop from before to after of paired answers (the same prompt and seed), as a fraction, with its 95 % interval by
/// the normal approximation for paired proportions (Agresti & Min 2005: half a pair is added to each kind of change).
pub fn paired_drop(before: &[bool], after: &[bool]) -> (f64, f64, f64) {
    let n = before.len().min(after.len());
    if n == 0 {
        return (0.0, -1.0, 1.0);
    }
    let count = |b: bool, a: bool| before.iter().zip(after).filter(|(x, y)| **x == b && **y == a).count() as f64;
    let (lost, gained) = (count(true, false), count(false, true));
    let drop = (lost - gained) / n as f64;
    let (lost, gained, total) = (lost + 0.5, gained + 0.5, n as f64 + 2.0);
    let centre = (lost - gained) / total;
    let half = Z * ((lost + gained - (lost - gained).powi(2) / total).max(0.0)).sqrt() / total;
    (drop, (centre - half).max(-1.0), (centre + half).min(1.0))
}

/// The mean of several axes' drops with its 95 % interval. A picture states labels on several axes, so its answers hang
/// together; the interval is that of the mean over pictures of what each adds to the mean drop (normal approximation, with
/// half a pair added to each kind of change of each axis, as in [`paired_drop`]).
///
/// `axes` holds for each axis `(picture, before, after)`.
pub fn mean_drop(axes: &[Vec<(usize, bool, bool)>]) -> Option<(f64, f64, f64)> {
    let axes: Vec<_> = axes.iter().filter(|axis| !axis.is_empty()).collect();
    let k = axes.len() as f64;
    let mut parts: std::collections::BTreeMap<usize, f64> = Default::default();
    let (mut mean, mut added) = (0.0, 0.0);
    for axis in &axes {
        let n = axis.len() as f64;
        for (picture, before, after) in *axis {
            let change = f64::from(i8::from(*before) - i8::from(*after)) / (n * k);
            *parts.entry(*picture).or_default() += change;
            mean += change;
        }
        added += 1.0 / (n * k).powi(2);
    }
    if parts.is_empty() {
        return None;
    }
    let n = parts.len() as f64;
    let variance = parts.values().map(|part| (part - mean / n).powi(2)).sum::<f64>() + added;
    let half = Z * variance.sqrt();
    Some((mean, (mean - half).max(-1.0), (mean + half).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_equals_published_values() {
        // scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        for (hits, n, low, high) in [
            (0, 96, 0.0, 0.038_476),
            (2, 96, 0.005_732, 0.072_807),
            (10, 20, 0.299_298, 0.700_702),
            (5, 5, 0.565_518, 1.0),
        ] {
            let (l, h) = wilson(hits, n);
            assert!((l - low).abs() < 2e-6 && (h - high).abs() < 2e-6, "{hits}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    #[test]
    fn a_paired_drop_counts_changes_only() {
        let before = [true, true, true, false, false, true, true, true];
        let after = [true, false, false, true, false, true, true, true];
        let (drop, low, high) = paired_drop(&before, &after);
        assert!((drop - 0.125).abs() < 1e-12 && low < 0.0 && high > 0.125);
        let (drop, low, high) = paired_drop(&[true; 400], &[true; 400]);
        assert!(drop == 0.0 && low > -0.01 && high < 0.01 && low < 0.0);
    }

    #[test]
    fn a_mean_drop_of_one_axis_is_its_paired_drop_and_of_equal_axes_no_narrower() {
        let axis: Vec<(usize, bool, bool)> = (0..400).map(|i| (i, i % 10 != 0, i % 7 != 0)).collect();
        let side = |f: fn(&(usize, bool, bool)) -> bool| axis.iter().map(f).collect::<Vec<_>>();
        let (drop, low, high) = paired_drop(&side(|a| a.1), &side(|a| a.2));
        let (mean, mean_low, mean_high) = mean_drop(std::slice::from_ref(&axis)).unwrap();
        assert!((mean - drop).abs() < 1e-12 && (mean_low - low).abs() < 2e-3 && (mean_high - high).abs() < 2e-3);
        // the same pictures right and wrong on both axes: nothing is learnt from the second
        let (_, two_low, two_high) = mean_drop(&[axis.clone(), axis.clone()]).unwrap();
        assert!((two_high - two_low) > 0.99 * (mean_high - mean_low));
        // different pictures: twice as many, so narrower by the root of two
        let other = axis.iter().map(|(i, b, a)| (i + 400, *b, *a)).collect();
        let (_, low, high) = mean_drop(&[axis, other]).unwrap();
        assert!(((high - low) * 2f64.sqrt() / (mean_high - mean_low) - 1.0).abs() < 0.02);
        assert_eq!(mean_drop(&[]), None);
    }
}
