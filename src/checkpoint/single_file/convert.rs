//! A tensor's bytes from one layout to the other.

use super::names::How;
use safetensors::Dtype;
use std::borrow::Cow;

/// A tensor: its type, shape and little-endian bytes.
pub(super) type Raw<'a> = (Dtype, Vec<usize>, Cow<'a, [u8]>);

/// diffusers' parameter out of an original tensor.
///
/// # Errors
/// In words without the tensor's name, if the shape is not one that can lie there.
pub(super) fn to_diffusers<'a>(how: How, dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<Raw<'a>, String> {
    match (how, shape) {
        (How::Same, _) => Ok((dtype, shape.to_vec(), Cow::Borrowed(bytes))),
        (How::Squeezed, [rows, columns, rest @ ..]) if rest.iter().all(|dim| *dim == 1) => {
            Ok((dtype, vec![*rows, *columns], Cow::Borrowed(bytes)))
        }
        (How::Third(third), [rows, rest @ ..]) if rows % 3 == 0 && third < 3 && bytes.len().is_multiple_of(3) => {
            let size = bytes.len() / 3;
            let part = &bytes[third * size..(third + 1) * size];
            Ok((dtype, [&[rows / 3], rest].concat(), Cow::Borrowed(part)))
        }
        (How::Transposed, [rows, columns]) => {
            Ok((dtype, vec![*columns, *rows], Cow::Owned(transposed(dtype, *rows, *columns, bytes)?)))
        }
        _ => Err(format!("is {shape:?}, which no known model has")),
    }
}

/// The original tensor of the parameters that lie in it, in order of their place.
///
/// # Errors
/// As [`to_diffusers`].
pub(super) fn to_original<'a>(parts: &[(How, Dtype, &[usize], &'a [u8])]) -> Result<Raw<'a>, String> {
    let shapes: Vec<_> = parts.iter().map(|(how, dtype, shape, _)| (*how, *dtype, *shape)).collect();
    let (dtype, to) = original_shape(&shapes)?;
    let bytes = match parts {
        [(How::Transposed, _, shape, bytes)] => {
            let (rows, columns) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
            Cow::Owned(transposed(dtype, rows, columns, bytes)?)
        }
        [(_, _, _, bytes)] => Cow::Borrowed(*bytes),
        _ => Cow::Owned(parts.iter().flat_map(|part| part.3).copied().collect()),
    };
    Ok((dtype, to, bytes))
}

/// The type and shape that [`to_original`] gives, without the bytes.
///
/// # Errors
/// As [`to_original`].
pub(super) fn original_shape(parts: &[(How, Dtype, &[usize])]) -> Result<(Dtype, Vec<usize>), String> {
    let Some((how, dtype, shape)) = parts.first().copied() else { return Err("has no parts".into()) };
    if parts.iter().any(|part| part.1 != dtype || part.2 != shape) {
        return Err("is made of queries, keys and values that differ in type or shape".into());
    }
    match (how, shape) {
        (How::Same, _) | (How::Squeezed, [_, _, 1, 1]) => Ok((dtype, shape.to_vec())),
        (How::Squeezed, [rows, columns]) => Ok((dtype, vec![*rows, *columns, 1, 1])),
        (How::Third(_), [rows, rest @ ..]) if parts.len() == 3 => Ok((dtype, [&[3 * rows], rest].concat())),
        (How::Transposed, [rows, columns]) => Ok((dtype, vec![*columns, *rows])),
        _ => Err(format!("is {shape:?}, which no known model has")),
    }
}

fn transposed(dtype: Dtype, rows: usize, columns: usize, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let width = dtype.bitsize() / 8;
    if !dtype.bitsize().is_multiple_of(8) || rows * columns * width != bytes.len() {
        return Err(format!("is stored as {dtype:?}, which is not read"));
    }
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_there_and_back_gives_the_same_bytes() {
        let bytes: Vec<u8> = (0..48).collect();
        let f16 = Dtype::F16;
        for (how, shape, there) in [
            (How::Same, &[4, 6][..], &[4, 6][..]),
            (How::Squeezed, &[4, 6, 1, 1], &[4, 6]),
            (How::Transposed, &[4, 6], &[6, 4]),
        ] {
            let (dtype, ours, data) = to_diffusers(how, f16, shape, &bytes).unwrap();
            assert_eq!((dtype, ours.as_slice()), (f16, there));
            let back = to_original(&[(how, dtype, &ours, &data)]).unwrap();
            assert_eq!((back.1.as_slice(), &*back.2), (shape, bytes.as_slice()), "{how:?}");
        }
        let thirds: Vec<_> = (0..3).map(|i| to_diffusers(How::Third(i), f16, &[6, 4], &bytes).unwrap()).collect();
        assert_eq!((thirds[1].1.as_slice(), &*thirds[1].2), (&[2, 4][..], &bytes[16..32]));
        let parts = thirds.iter().enumerate().map(|(i, third)| (How::Third(i), f16, third.1.as_slice(), &*third.2));
        let back = to_original(&parts.collect::<Vec<_>>()).unwrap();
        assert_eq!((back.1.as_slice(), &*back.2), (&[6, 4][..], bytes.as_slice()));
    }

    #[test]
    fn rows_and_columns_change_places() {
        let bytes: Vec<u8> = [1u16, 2, 3, 4, 5, 6].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_, shape, turned) = to_diffusers(How::Transposed, Dtype::F16, &[2, 3], &bytes).unwrap();
        let values: Vec<u16> = turned.chunks(2).map(|x| u16::from_le_bytes([x[0], x[1]])).collect();
        assert_eq!((shape, values), (vec![3, 2], vec![1, 4, 2, 5, 3, 6]));
    }

    #[test]
    fn a_shape_that_cannot_lie_there_is_said() {
        for (how, shape) in [
            (How::Squeezed, &[4, 6, 2, 1][..]),
            (How::Squeezed, &[48]),
            (How::Third(0), &[4, 6]),
            (How::Third(0), &[]),
            (How::Transposed, &[4, 3, 2]),
        ] {
            let message = to_diffusers(how, Dtype::F16, shape, &[0; 48]).unwrap_err();
            assert!(message.contains("which no known model has"), "{message}");
        }
    }
}
