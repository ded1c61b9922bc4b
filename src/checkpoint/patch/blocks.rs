//! A tensor's change, block by block: each stands for itself, so that many are worked on at a time and none takes much memory.

use super::numbers::{Direction, Numbers};
use super::sections::{Read, Reader, Writer, number, take};
use safetensors::Dtype;

/// Numbers in a block; the last block of a tensor has what is left.
const BLOCK: usize = 1 << 18;

const SAME: u8 = 0;
const ALL: u8 = 1;
const LISTED: u8 = 2;

/// How a block was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// Nothing changed.
    Same,
    /// A difference for each number.
    All,
    /// Differences for some numbers, and where these are.
    Listed,
}

/// The bytes of each block of a tensor.
pub(super) fn blocks(dtype: Dtype, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(BLOCK * Numbers::of(dtype).width)
}

/// The change of one block, and its form; `from` and `to` have the same length.
pub(super) fn encode(
    writer: &mut Writer,
    numbers: Numbers,
    from: &[u8],
    to: &[u8],
) -> Result<(Form, Vec<u8>), std::io::Error> {
    if from == to {
        return Ok((Form::Same, vec![SAME]));
    }
    let planes = numbers.differences(from, to);
    let n = planes[0].len();
    let changed: Vec<u32> = (0..n).filter(|i| planes.iter().any(|plane| plane[*i] != 0)).map(|i| i as u32).collect();
    let mut all = vec![ALL];
    for plane in &planes {
        all.extend(writer.section(plane)?);
    }
    if changed.len() > n / 2 {
        return Ok((Form::All, all));
    }
    let mut listed = vec![LISTED];
    listed.extend(writer.places(&changed)?);
    for plane in &planes {
        let bytes: Vec<u8> = changed.iter().map(|i| plane[*i as usize]).collect();
        listed.extend(writer.section(&bytes)?);
    }
    Ok(if listed.len() < all.len() { (Form::Listed, listed) } else { (Form::All, all) })
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
    let mut bytes = source.to_vec();
    match take(&mut change, 1)?[0] {
        SAME => {}
        ALL => {
            let planes: Vec<_> = (0..width).map(|_| reader.section(&mut change, n)).collect::<Result<_, _>>()?;
            numbers.apply(&mut bytes, &planes, direction);
        }
        LISTED => {
            let places = reader.places(&mut change, n)?;
            let planes =
                (0..width).map(|_| reader.section(&mut change, places.len())).collect::<Result<Vec<_>, _>>()?;
            let mut some: Vec<u8> = places.iter().flat_map(|i| &source[i * width..][..width]).copied().collect();
            numbers.apply(&mut some, &planes, direction);
            for (place, number) in places.iter().zip(some.chunks(width)) {
                bytes[place * width..][..width].copy_from_slice(number);
            }
        }
        other => return Err(format!("has a block of form {other}, which is not known")),
    }
    if change.is_empty() { Ok(bytes) } else { Err(format!("has {} bytes too many in a block", change.len())) }
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
        for (to, form, most) in [(&base, Form::Same, 1), (&moved, Form::All, 14_000), (&few, Form::Listed, 60)] {
            let (to, numbers) = (floats(to.iter().copied()), Numbers::of(Dtype::F32));
            let (found, change) = encode(&mut writer, numbers, &from, &to).unwrap();
            assert!(found == form && change.len() <= most, "{found:?} in {} bytes", change.len());
            assert!(decode(&mut reader, numbers, &change, &from, Direction::Forward).unwrap() == to, "{form:?}");
            assert!(decode(&mut reader, numbers, &change, &to, Direction::Reverse).unwrap() == from, "{form:?}");
            for damaged in [&change[..change.len() - 1], &[&change[..], b"x"].concat()] {
                assert!(decode(&mut reader, numbers, damaged, &from, Direction::Forward).is_err(), "{form:?}");
            }
        }
        let unknown = decode(&mut reader, Numbers::of(Dtype::F32), &[3], &from, Direction::Forward);
        assert!(unknown.is_err_and(|e| e.contains("form 3")));
    }

    #[test]
    fn blocks_are_told_apart_by_their_lengths() {
        let all = [framed(vec![1, 2, 3]), framed(vec![SAME])].concat();
        assert_eq!(split(&all, 2).unwrap(), [&[1, 2, 3][..], &[SAME]]);
        for (count, bytes) in [(1, &all[..]), (3, &all), (2, &all[..11]), (2, &all[..5]), (usize::MAX, &all)] {
            assert!(split(bytes, count).is_err(), "{count} blocks in {} bytes", bytes.len());
        }
        assert_eq!(
            blocks(Dtype::F16, &[0; 4 * BLOCK + 2]).map(<[u8]>::len).collect::<Vec<_>>(),
            [2 * BLOCK, 2 * BLOCK, 2]
        );
    }
}
