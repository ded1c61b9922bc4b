//! Loss and gradients of a batch in shares of its rows: side by side where the latents are small, one after another, each on
//! all threads, where they are large, so that no more than a share's graph is in memory. Several devices take them in their turns.

use super::batch::Batch;
use super::memory::Thrift;
use super::student::Student;
use crate::Result;
use crate::nn::{Gradients, ParamStore, accumulate, across, deal, read, side_by_side};
use crate::progress::check_interrupted;
use crate::sd::Unet;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Latents of up to so many pixels are small.
const SMALL: usize = 32 * 32;
/// Rows of a share of small latents, about.
const ROWS: usize = 8;
/// Pixels of the latents of a share on a GPU: 8 rows of SD 1.x.
const ON_GPU: usize = 8 * 64 * 64;
/// More rows than this in a share make a GPU no faster.
const MOST_ON_GPU: usize = 64;

/// Whether what is cheap to make again is not kept for the backward pass (on a CPU), for latents of so many pixels.
pub fn is_lean(pixels: usize) -> bool {
    pixels > SMALL
}

/// A network and those of its parameters that are trained.
#[derive(Clone, Copy)]
pub struct Trained<'a> {
    /// The network, built on `params`.
    pub unet: &'a Unet,
    /// Its parameters.
    pub params: &'a ParamStore,
    /// What is done to save memory.
    pub thrift: Thrift,
}

/// How batches are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// How many shares.
    pub count: usize,
    /// Whether they are worked on at the same time.
    pub side_by_side: bool,
    /// Whether each is a single row, of one batch alone.
    single: bool,
}

impl Shares {
    /// The rows of share `i` of each batch; with [`Thrift::single_rows`], all but one are empty.
    pub fn rows<const N: usize>(self, sizes: [usize; N], i: usize) -> [Range<usize>; N] {
        if !self.single {
            return sizes.map(|size| size * i / self.count..size * (i + 1) / self.count);
        }
        let mut before = 0;
        sizes.map(|size| {
            let row = i.wrapping_sub(before);
            before += size;
            if row < size { row..row + 1 } else { 0..0 }
        })
    }

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

/// How batches of these sizes are cut: every share has rows of each, unless memory asks for single rows (of large latents; small
/// ones take little). On a GPU shares are large and go one after another. Depends on the sizes alone.
pub fn shares(sizes: &[usize], pixels: usize, thrift: Thrift, gpu: bool) -> Shares {
    let (rows, smallest) = (sizes.iter().sum::<usize>(), sizes.iter().copied().min().unwrap_or(0));
    let small = pixels <= SMALL;
    let single = thrift.single_rows && !small;
    let count = match gpu {
        true => rows.div_ceil((ON_GPU / pixels.max(1)).clamp(1, MOST_ON_GPU)),
        false if small => rows.div_ceil(ROWS),
        false => rows,
    };
    Shares { count: if single { rows } else { count.min(smallest) }.max(1), side_by_side: small && !gpu, single }
}

/// These rows of a tensor.
pub fn narrow(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}

/// What a share found besides its gradients: numbers, and what they are of.
pub type Found<K> = Vec<(K, Tensor)>;

/// The gradients of the sum of the shares' losses, and what else each share found. `trained` is the network on each device (at least
/// one); `loss` is told at which of these it is, and then which share it is of. Sums are in the order of the shares, on the first.
///
/// # Errors
/// As of [`backward`]: exactly the trainable parameters must get finite gradients, in each share.
pub fn gradients<K: Send>(
    shares: Shares,
    trained: &[Trained<'_>],
    loss: impl Fn(usize, usize, &Student<'_>) -> Result<(Tensor, Found<K>)> + Send + Sync,
) -> Result<(Gradients, Vec<Found<K>>)> {
    let one = |place: usize, i: usize| {
        let Trained { unet, params, thrift } = trained[place];
        let student = Student::new(unet, thrift.checkpointing);
        let (loss, found) = loss(place, i, &student)?;
        Ok((student.backward(loss, params)?, found))
    };
    let mut sum = Gradients::new();
    let mut found = Vec::with_capacity(shares.count);
    let mut take = |(gradients, result)| {
        found.push(result);
        add(&mut sum, gradients)
    };
    match trained {
        [_] => shares.each(|i| one(0, i), take)?,
        _ => {
            let places: Vec<usize> = (0..trained.len()).collect();
            let home = trained[0].params.device();
            // the way to the host is a device's own work, the way from there the first's
            let leave = |place: usize, made| if place == 0 { Ok(made) } else { moved(made, &Device::Cpu) };
            deal(&places, shares.count, |place, i| leave(*place, one(*place, i)?), |_, made| take(moved(made, home)?))?;
        }
    }
    Ok((sum, found))
}

/// All of it on this device.
fn moved<K>((gradients, found): (Gradients, Found<K>), device: &Device) -> Result<(Gradients, Found<K>)> {
    let gradients = gradients.into_iter().map(|(name, gradient)| Ok((name, across(&gradient, device)?)));
    let found = found.into_iter().map(|(of, value)| Ok((of, across(&value, device)?)));
    Ok((gradients.collect::<Result<_>>()?, found.collect::<Result<_>>()?))
}

/// The gradients of the mean of `loss` over a batch's rows, and its value; see [`gradients`].
pub fn of_batch(
    batch: &Batch,
    trained: &[Trained<'_>],
    loss: impl Fn(usize, &Batch, &Student<'_>) -> Result<Tensor> + Send + Sync,
) -> Result<(Gradients, f64)> {
    let n = batch.t.len();
    let (_, _, height, width) = batch.noisy.dims4()?;
    let thrift = trained.first().map_or_else(Thrift::default, |trained| trained.thrift);
    let shares = shares(&[n], height * width, thrift, !batch.noisy.device().is_cpu());
    let everywhere = at_each(batch, trained)?;
    let (gradients, losses) = gradients(shares, trained, |place, i, student| {
        let [rows] = shares.rows([n], i);
        let part = everywhere[place].rows(&rows)?;
        let loss = (loss(place, &part, student)? * (part.t.len() as f64 / n as f64))?;
        let value = loss.detach();
        Ok((loss, vec![((), value)]))
    })?;
    let losses: Vec<Tensor> = losses.into_iter().flatten().map(|(_, loss)| loss).collect();
    Ok((gradients, read(&losses)?.into_iter().map(f64::from).sum()))
}

/// A batch on each device: before its shares are dealt, as reading it waits for the first.
pub fn at_each(batch: &Batch, trained: &[Trained<'_>]) -> Result<Vec<Batch>> {
    trained.iter().map(|trained| batch.on(trained.params.device())).collect()
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
        for (sizes, expected) in [(vec![4, 12], 2), (vec![1, 40], 1), (vec![16, 16], 4), (vec![3], 1), (vec![9], 2)] {
            let shares = shares(&sizes, 256, Thrift::default(), false);
            assert!(shares.side_by_side);
            assert_eq!(shares.count, expected, "{sizes:?}");
            for size in sizes {
                let rows = |i| shares.rows([size], i)[0].clone();
                let covered: Vec<usize> = (0..shares.count).flat_map(rows).collect();
                assert_eq!(covered, (0..size).collect::<Vec<_>>());
                assert!((0..shares.count).all(|i| !rows(i).is_empty()));
            }
        }
        let large = shares(&[4, 12], 64 * 64, Thrift::default(), false);
        assert_eq!(
            (large.count, large.side_by_side),
            (4, false),
            "large latents are work enough for all threads together"
        );
    }

    #[test]
    fn a_gpu_takes_large_shares_one_after_another() {
        let of = |sizes: &[usize], side: usize, single_rows| {
            let shares = shares(sizes, side * side, Thrift { single_rows, ..Thrift::default() }, true);
            assert!(!shares.side_by_side);
            shares.count
        };
        assert_eq!([of(&[4, 12], 16, false), of(&[16, 16], 64, false), of(&[4, 12], 64, false)], [1, 4, 2]);
        assert_eq!([of(&[4, 12], 128, false), of(&[4, 12], 64, true), of(&[4, 12], 16, true)], [4, 16, 1]);
    }

    #[test]
    fn single_rows_are_each_batchs_in_turn() {
        let thrift = Thrift { single_rows: true, ..Thrift::default() };
        assert_eq!(
            shares(&[2, 3], 256, thrift, false),
            shares(&[2, 3], 256, Thrift::default(), false),
            "small latents take little"
        );
        let shares = shares(&[2, 3], 64 * 64, thrift, false);
        let rows: Vec<_> = (0..shares.count).map(|i| shares.rows([2, 3], i)).collect();
        assert_eq!(rows, [[0..1, 0..0], [1..2, 0..0], [0..0, 0..1], [0..0, 1..2], [0..0, 2..3]]);
    }
}
