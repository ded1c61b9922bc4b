//! A tensor's change, block by block: each stands for itself, so that many are worked on at a time and none takes much memory.

use super::numbers::{Direction, Numbers};
use super::sections::{Read, Reader, Writer, number, take};
use safetensors::Dtype;

/// Numbers in a block; the last block of a tensor has what is left.
const BLOCK: usize = 1 << 18;

/// Ways of writing a block that are tried.
const TRIED: usize = 2;

/// The bytes of each block of a tensor.
pub(super) fn blocks(dtype: Dtype, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(BLOCK * Numbers::of(dtype).width)
}

/// The change of one block; `from` and `to` have the same length.
///
/// Most differences of a repaired model are small and some (of weights that were drawn anew) are not: the first have only
/// their low planes, the others are listed with all. How many planes are low is chosen by what the bytes' distribution promises.
pub(super) fn encode(writer: &mut Writer, numbers: Numbers, from: &[u8], to: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let planes = numbers.differences(from, to);
    // how many planes each difference needs
    let needs: Vec<u8> = (0..planes[0].len()).map(|i| needed(&planes, i)).collect();
    let mut shortest: Option<Vec<u8>> = None;
    for low in promising(&planes, &needs) {
        let listed: Vec<u32> = (0..).zip(&needs).filter(|(_, need)| **need > low).map(|(place, _)| place).collect();
        let mut change = vec![low];
        change.extend(writer.places(&listed)?);
        if !listed.is_empty() {
            for plane in &planes {
                let bytes: Vec<u8> = listed.iter().map(|place| plane[*place as usize]).collect();
                change.extend(writer.section(&bytes)?);
            }
        }
        for plane in planes.iter().take(low.into()) {
            let rest = plane.iter().zip(&needs).filter(|(_, need)| **need <= low).map(|(byte, _)| *byte);
            change.extend(writer.section(&rest.collect::<Vec<_>>())?);
        }
        if shortest.as_ref().is_none_or(|shortest| change.len() < shortest.len()) {
            shortest = Some(change);
        }
    }
    Ok(shortest.unwrap_or_default())
}

/// Whether a change lists all that differs.
pub(super) fn is_listed(change: &[u8]) -> bool {
    change.first() == Some(&0)
}

/// One more than the highest plane in which a difference is not zero.
fn needed(planes: &[Vec<u8>], i: usize) -> u8 {
    planes.iter().rposition(|plane| plane[i] != 0).map_or(0, |plane| plane as u8 + 1)
}

/// Numbers of low planes by what they promise, best first.
fn promising(planes: &[Vec<u8>], needs: &[u8]) -> Vec<u8> {
    let width = planes.len();
    // of the numbers that need so many planes: how often each byte is in each plane
    let mut counts = vec![vec![[0u32; 256]; width]; width + 1];
    for (i, need) in needs.iter().enumerate() {
        let counts = &mut counts[usize::from(*need)];
        planes.iter().zip(counts).for_each(|(plane, counts)| counts[usize::from(plane[i])] += 1);
    }
    let bits = |needs: std::ops::RangeInclusive<usize>, plane: usize| {
        let mut sum = [0u32; 256];
        counts[needs].iter().for_each(|counts| sum.iter_mut().zip(counts[plane]).for_each(|(sum, n)| *sum += n));
        entropy(&sum)
    };
    let cost = |low: usize| {
        let listed: u32 = counts[low + 1..].iter().flat_map(|counts| counts[0]).sum();
        let places = entropy(&[listed, needs.len() as u32 - listed]);
        let listed: f64 = (0..width).filter(|_| listed > 0).map(|plane| bits(low + 1..=width, plane)).sum();
        places + listed + (0..low).map(|plane| bits(0..=low, plane)).sum::<f64>()
    };
    let mut all: Vec<(f64, u8)> = (0..=width).map(|low| (cost(low), low as u8)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.into_iter().take(TRIED).map(|(_, low)| low).collect()
}

/// The bits that so many things of each kind need together.
fn entropy(counts: &[u32]) -> f64 {
    let all: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    let bits = |n: &u32| f64::from(*n) * (all / f64::from(*n)).log2();
    counts.iter().filter(|n| **n > 0).map(bits).sum()
}

/// The other side of a block whose `source` side is given.
pub(super) fn decode(
    reader: &mut Reader,
    numbers: Numbers,
    mut change: &[u8],
    source: &[u8],
    direction: Direction,
) -> Read<Vec<u8>> {
    let (n, width) = (source.len() / numbers.width, numbers.width);
    let low = usize::from(take(&mut change, 1)?[0]);
    if low > width {
        return Err(format!("has a block with {low} planes of {width}"));
    }
    let places = reader.places(&mut change, n)?;
    let mut planes = vec![vec![0; n]; width];
    if !places.is_empty() {
        for plane in &mut planes {
            let listed = reader.section(&mut change, places.len())?;
            places.iter().zip(listed).for_each(|(place, byte)| plane[*place] = byte);
        }
    }
    for plane in planes.iter_mut().take(low) {
        let rest = reader.section(&mut change, n - places.len())?;
        if places.is_empty() {
            *plane = rest;
            continue;
        }
        // between the listed ones
        let (mut rest, mut at) = (&rest[..], 0);
        for place in places.iter().copied().chain([n]) {
            plane[at..place].copy_from_slice(take(&mut rest, place - at)?);
            at = place + 1;
        }
    }
    if !change.is_empty() {
        return Err(format!("has {} bytes too many in a block", change.len()));
    }
    let mut bytes = source.to_vec();
    numbers.apply(&mut bytes, &planes, direction);
    Ok(bytes)
}

/// The changes of `count` blocks: each is its length and its bytes, and nothing follows the last.
pub(super) fn split(mut changes: &[u8], count: usize) -> Read<Vec<&[u8]>> {
    if count > changes.len() / 5 {
        return Err("is cut off".into()); // before memory is taken for what cannot be there
    }
    let one = |_| {
        let length = number(&mut changes)?;
        take(&mut changes, length)
    };
    let found = (0..count).map(one).collect::<Read<Vec<_>>>()?;
    if changes.is_empty() { Ok(found) } else { Err(format!("has {} bytes too many", changes.len())) }
}

/// A block's change as it stands in a file.
pub(super) fn framed(change: Vec<u8>) -> Vec<u8> {
    [&(change.len() as u32).to_le_bytes()[..], &change].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Generator;

    fn floats(values: impl Iterator<Item = f32>) -> Vec<u8> {
        values.flat_map(f32::to_le_bytes).collect()
    }

    #[test]
    fn the_smaller_form_is_taken_and_comes_back_in_both_directions() {
        let mut random = Generator::new(7);
        let base: Vec<f32> = (0..5000).map(|_| random.randn(1)[0] * 0.02).collect();
        let moved: Vec<f32> = base.iter().map(|x| x + 1e-4 * random.randn(1)[0]).collect();
        let mut few = base.clone();
        [0, 1, 777, 4999].into_iter().for_each(|i| few[i] = -few[i]);
        let from = floats(base.iter().copied());
        let (mut writer, mut reader) = (Writer::new().unwrap(), Reader::new().unwrap());
        let mut both = moved.clone();
        (0..5000).step_by(20).for_each(|i| both[i] = 0.02 * random.randn(1)[0]);
        for (to, form, most) in [(&base, 0, 5), (&few, 0, 60), (&moved, 3, 13_500), (&both, 3, 13_900)] {
            let (to, numbers) = (floats(to.iter().copied()), Numbers::of(Dtype::F32));
            let change = encode(&mut writer, numbers, &from, &to).unwrap();
            assert!(change[0] == form && change.len() <= most, "{} low planes, {} bytes", change[0], change.len());
            assert_eq!(is_listed(&change), form == 0);
            assert!(decode(&mut reader, numbers, &change, &from, Direction::Forward).unwrap() == to, "{form:?}");
            assert!(decode(&mut reader, numbers, &change, &to, Direction::Reverse).unwrap() == from, "{form:?}");
            for damaged in [&change[..change.len() - 1], &[&change[..], b"x"].concat()] {
                assert!(decode(&mut reader, numbers, damaged, &from, Direction::Forward).is_err(), "{form:?}");
            }
        }
        let unknown = decode(&mut reader, Numbers::of(Dtype::F32), &[5], &from, Direction::Forward);
        assert!(unknown.is_err_and(|e| e.contains("5 planes of 4")));
    }

    #[test]
    fn blocks_are_told_apart_by_their_lengths() {
        let all = [framed(vec![1, 2, 3]), framed(vec![7])].concat();
        assert_eq!(split(&all, 2).unwrap(), [&[1, 2, 3][..], &[7]]);
        for (count, bytes) in [(1, &all[..]), (3, &all), (2, &all[..11]), (2, &all[..5]), (usize::MAX, &all)] {
            assert!(split(bytes, count).is_err(), "{count} blocks in {} bytes", bytes.len());
        }
        assert_eq!(
            blocks(Dtype::F16, &[0; 4 * BLOCK + 2]).map(<[u8]>::len).collect::<Vec<_>>(),
            [2 * BLOCK, 2 * BLOCK, 2]
        );
    }
}
