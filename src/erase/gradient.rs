//! Loss and gradients of a batch in shares of its rows: side by side where the latents are small, one after another, each on
//! all threads, where they are large, so that no more than a share's graph is in memory.

use super::batch::Batch;
use super::student::Student;
use crate::Result;
use crate::nn::{Gradients, ParamStore, accumulate, side_by_side};
use crate::progress::check_interrupted;
use crate::sd::Unet;
use candle_core::Tensor;
use std::ops::Range;

/// Latents of up to so many pixels are small.
const SMALL: usize = 32 * 32;
/// Rows of a share of small latents, about.
const ROWS: usize = 4;

/// A network and those of its parameters that are trained.
#[derive(Clone, Copy)]
pub struct Trained<'a> {
    /// The network, built on `params`.
    pub unet: &'a Unet,
    /// Its parameters.
    pub params: &'a ParamStore,
    /// Whether blocks are computed again in the backward pass, to save memory.
    pub checkpointing: bool,
}

/// How batches are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// How many shares.
    pub count: usize,
    /// Whether they are worked on at the same time.
    pub side_by_side: bool,
}

impl Shares {
    /// `one` of every share, each given to `take` in the order of the shares.
    ///
    /// # Errors
    /// The first in that order, or an interruption between shares that go one after another.
    pub fn each<T: Send>(
        self,
        one: impl Fn(usize) -> Result<T> + Send + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        if self.side_by_side {
            return side_by_side(self.count, one)?.into_iter().try_for_each(take);
        }
        (0..self.count).try_for_each(|i| {
            check_interrupted()?;
            take(one(i)?)
        })
    }
}

/// How batches of these sizes are cut: every share has rows of each. Depends on the sizes alone.
pub fn shares(sizes: &[usize], pixels: usize) -> Shares {
    let (rows, smallest) = (sizes.iter().sum::<usize>(), sizes.iter().copied().min().unwrap_or(0));
    let small = pixels <= SMALL;
    Shares { count: if small { rows.div_ceil(ROWS) } else { rows }.min(smallest).max(1), side_by_side: small }
}

/// The rows of share `i` of `shares` of a batch of `size`.
pub fn rows(size: usize, i: usize, shares: usize) -> Range<usize> {
    size * i / shares..size * (i + 1) / shares
}

/// These rows of a tensor.
pub fn narrow(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}

/// The gradients of the sum of the shares' losses, and what else each share found. Sums are in the order of the shares.
///
/// # Errors
/// As of [`backward`]: exactly the trainable parameters must get finite gradients, in each share.
pub fn gradients<R: Send>(
    shares: Shares,
    trained: Trained<'_>,
    loss: impl Fn(usize, &Student<'_>) -> Result<(Tensor, R)> + Send + Sync,
) -> Result<(Gradients, Vec<R>)> {
    let one = |i: usize| {
        let student = Student::new(trained.unet, trained.checkpointing);
        let (loss, found) = loss(i, &student)?;
        Ok((student.backward(loss, trained.params)?, found))
    };
    let mut sum = Gradients::new();
    let mut found = Vec::with_capacity(shares.count);
    shares.each(one, |(gradients, result)| {
        found.push(result);
        add(&mut sum, gradients)
    })?;
    Ok((sum, found))
}

/// The gradients of the mean of `loss` over a batch's rows, and its value.
pub fn of_batch(
    batch: &Batch,
    trained: Trained<'_>,
    loss: impl Fn(&Batch, &Student<'_>) -> Result<Tensor> + Send + Sync,
) -> Result<(Gradients, f64)> {
    let n = batch.t.len();
    let (_, _, height, width) = batch.noisy.dims4()?;
    let shares = shares(&[n], height * width);
    let (gradients, losses) = gradients(shares, trained, |i, student| {
        let part = batch.rows(&rows(n, i, shares.count))?;
        let loss = (loss(&part, student)? * (part.t.len() as f64 / n as f64))?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        Ok((loss, value))
    })?;
    Ok((gradients, losses.iter().sum()))
}

/// Adds gradients to a sum that has none yet or the same names.
pub fn add(sum: &mut Gradients, gradients: Gradients) -> Result<()> {
    gradients.into_iter().try_for_each(|(name, gradient)| accumulate(sum, name, gradient))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_row_once_and_have_rows_of_each_batch() {
        for (sizes, expected) in [(vec![4, 12], 4), (vec![1, 40], 1), (vec![16, 16], 8), (vec![3], 1), (vec![9], 3)] {
            let Shares { count, side_by_side } = shares(&sizes, 256);
            assert!(side_by_side);
            assert_eq!(count, expected, "{sizes:?}");
            for size in sizes {
                let covered: Vec<usize> = (0..count).flat_map(|i| rows(size, i, count)).collect();
                assert_eq!(covered, (0..size).collect::<Vec<_>>());
                assert!((0..count).all(|i| !rows(size, i, count).is_empty()));
            }
        }
        let large = Shares { count: 4, side_by_side: false };
        assert_eq!(shares(&[4, 12], 64 * 64), large, "large latents are work enough for all threads together");
    }
}
