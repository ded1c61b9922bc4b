//! A matrix as the product of two thin ones: its singular value decomposition, cut off.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;

/// Two factors, and what they do not hold.
pub(super) struct Factors {
    /// Columns of `up`, rows of `down`.
    pub rank: usize,
    /// `(rows, rank)`, row by row.
    pub up: Vec<f32>,
    /// `(rank, columns)`, row by row.
    pub down: Vec<f32>,
    /// Sum of squares of the matrix.
    pub squares: f64,
    /// Sum of squares of what the matrix has beyond `alpha / rank * up * down`, with the factors as they are written.
    pub left: f64,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The most columns of `up`.
    pub rank: usize,
    /// No more of them than it takes to leave this, in the Frobenius norm.
    pub tolerance: f64,
    /// The factors are multiplied by `alpha / rank` when they are used.
    pub alpha: f64,
    /// They are rounded to `f16`.
    pub half: bool,
}

/// Factors a matrix of `(rows, columns)`, given row by row. Everything is computed in `f64`, on this thread alone: the same
/// numbers for any number of threads.
///
/// # Errors
/// In words: if the decomposition does not converge, or a factor is too large for its type.
pub(super) fn factor(
    matrix: &mut [f64],
    (rows, columns): (usize, usize),
    wanted: &Wanted,
) -> std::result::Result<Factors, String> {
    let squares = matrix.iter().map(|x| x * x).sum();
    let svd = MatRef::from_row_major_slice(matrix, rows, columns).thin_svd();
    let svd = svd.map_err(|_| "its singular values could not be found: is it full of extreme numbers?")?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let rank = needed(&values, wanted.tolerance).min(wanted.rank);
    // what a program multiplies the product by is taken out here, half of it from either factor
    let scales: Vec<f64> = values[..rank].iter().map(|s| (s * rank as f64 / wanted.alpha).sqrt()).collect();
    let round = |x: f64| if wanted.half { f16::from_f64(x).to_f32() } else { x as f32 };
    let (u, v) = (svd.U(), svd.V());
    let up: Vec<f32> = (0..rows)
        .flat_map(|i| scales.iter().enumerate().map(move |(k, s)| (i, k, s)))
        .map(|(i, k, s)| round(u[(i, k)] * s))
        .collect();
    let down: Vec<f32> = scales
        .iter()
        .enumerate()
        .flat_map(|(k, s)| (0..columns).map(move |j| (j, k, s)))
        .map(|(j, k, s)| round(v[(j, k)] * s))
        .collect();
    if !up.iter().chain(&down).all(|x| x.is_finite()) {
        return Err("changed by so much that its factors do not fit into their type".into());
    }
    add_product(matrix, (rows, columns), &up, &down, -wanted.alpha / rank as f64);
    Ok(Factors { rank, up, down, squares, left: matrix.iter().map(|x| x * x).sum() })
}

/// Adds `scale * up * down` to a matrix of `(rows, columns)`, given row by row.
pub(super) fn add_product(matrix: &mut [f64], (rows, columns): (usize, usize), up: &[f32], down: &[f32], scale: f64) {
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (up, down, rank) = (wide(up), wide(down), up.len() / rows.max(1));
    matmul(
        MatMut::from_row_major_slice_mut(matrix, rows, columns),
        Accum::Add,
        MatRef::from_row_major_slice(&up, rows, rank),
        MatRef::from_row_major_slice(&down, rank, columns),
        scale,
        Par::Seq,
    );
}

/// How many singular values (they descend) it takes so that those left out have no larger norm than `tolerance`; at least one.
fn needed(values: &[f64], tolerance: f64) -> usize {
    let mut squares = 0.0;
    for (rank, value) in values.iter().enumerate().rev() {
        squares += value * value;
        if squares.sqrt() > tolerance {
            return rank + 1;
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;

    const EXACT: Wanted = Wanted { rank: usize::MAX, tolerance: 0.0, alpha: 1.0, half: false };

    fn random(n: usize, seed: u64) -> Vec<f64> {
        Generator::new(seed).randn(n).iter().map(|x| f64::from(*x)).collect()
    }

    /// A matrix that is the product of two of this rank.
    fn product(rows: usize, columns: usize, rank: usize) -> Vec<f64> {
        let (a, b) = (random(rows * rank, 1), random(rank * columns, 2));
        let entry = |i: usize, j: usize| (0..rank).map(|k| a[i * rank + k] * b[k * columns + j]).sum();
        (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
    }

    #[test]
    fn what_is_left_is_the_tail_of_the_singular_values() {
        // an orthogonal basis of 4, stretched by known values
        let half = 0.5;
        let basis = [[half; 4], [half, -half, half, -half], [half, half, -half, -half], [half, -half, -half, half]];
        let stretched = [8.0, 4.0, 2.0, 1.0];
        let entry = |i: usize, j: usize| -> f64 { (0..4).map(|k| basis[k][i] * stretched[k] * basis[3 - k][j]).sum() };
        let matrix: Vec<f64> = (0..16).map(|n| entry(n / 4, n % 4)).collect();
        for rank in 1..=4 {
            let found = factor(&mut matrix.clone(), (4, 4), &Wanted { rank, ..EXACT }).unwrap();
            let tail: f64 = stretched[rank..].iter().map(|s| s * s).sum();
            assert_eq!((found.rank, found.squares.round()), (rank, 85.0));
            assert!((found.left - tail).abs() < 1e-5, "rank {rank}: {} is not {tail}", found.left);
        }
    }

    #[test]
    fn no_more_vectors_are_taken_than_the_matrix_has() {
        for (rows, columns) in [(30, 50), (50, 30), (7, 200)] {
            let matrix = product(rows, columns, 5);
            let norm = matrix.iter().map(|x| x * x).sum::<f64>().sqrt();
            let found =
                factor(&mut matrix.clone(), (rows, columns), &Wanted { tolerance: 1e-9 * norm, ..EXACT }).unwrap();
            assert_eq!((found.rank, found.up.len(), found.down.len()), (5, rows * 5, 5 * columns));
            assert!(found.left.sqrt() < 2e-7 * norm, "{}", found.left.sqrt() / norm);
        }
        assert_eq!(
            (needed(&[3.0, 2.0, 1.0], 0.5), needed(&[3.0, 2.0, 1.0], 1.0), needed(&[3.0, 2.0, 1.0], 9.0)),
            (3, 2, 1)
        );
    }

    #[test]
    fn the_product_is_right_whatever_alpha_is_and_halves_stay_in_range() {
        let (rows, columns) = (40, 24);
        for (alpha, half, scale, most) in
            [(1.0, false, 1.0, 1e-7), (320.0, false, 1e-6, 1e-7), (320.0, true, 1e-4, 1e-3), (16.0, true, 1e6, 1e-3)]
        {
            let matrix: Vec<f64> = random(rows * columns, 3).iter().map(|x| x * scale).collect();
            let mut left = matrix.clone();
            let found = factor(&mut left, (rows, columns), &Wanted { alpha, half, ..EXACT }).unwrap();
            assert_eq!(found.rank, 24);
            let mut sum = vec![0.0; rows * columns];
            add_product(&mut sum, (rows, columns), &found.up, &found.down, alpha / 24.0);
            let squares: f64 = sum.iter().zip(&matrix).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!((squares - found.left).abs() <= 1e-9 * found.squares, "{squares} is not {}", found.left);
            let relative = (squares / found.squares).sqrt();
            assert!(relative < most && relative > 0.0, "alpha {alpha}, halves {half}: {relative}");
        }
        let message = factor(&mut [1e12], (1, 1), &Wanted { half: true, ..EXACT }).err().unwrap();
        assert!(message.contains("do not fit into their type"), "{message}");
    }
}
