//! Numbers as a checkpoint stores them, to and from `f32`.

use candle_core::{Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements one task converts: large enough to vectorise, small enough to stay in the L2 cache.
const CHUNK: usize = 1 << 15;

/// What reading a tensor's bytes as `f32` gave.
pub(super) enum Decoded {
    /// Every value is finite.
    Floats(Vec<f32>),
    /// A buffer of integers, not converted.
    Integers,
    /// At least one value is NaN or infinite (or beyond `f32`).
    NotFinite,
    /// A floating-point type that is not read.
    Unsupported,
}

/// Bytes (little-endian, any alignment) to `f32`, in parallel.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Decoded {
    let convert: fn(&[u8], &mut [f32]) = match dtype {
        Dtype::F32 => |bytes, out| each(bytes, out, f32::from_le_bytes),
        Dtype::F64 => |bytes, out| each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => |bytes, out| each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => |bytes, out| {
            let mut halves = vec![f16::ZERO; out.len()];
            each(bytes, &mut halves, f16::from_le_bytes);
            halves.convert_to_f32_slice(out);
        },
        Dtype::BOOL
        | Dtype::U8
        | Dtype::I8
        | Dtype::U16
        | Dtype::I16
        | Dtype::U32
        | Dtype::I32
        | Dtype::U64
        | Dtype::I64 => return Decoded::Integers,
        _ => return Decoded::Unsupported,
    };
    let width = dtype.bitsize() / 8;
    let mut floats = vec![0f32; bytes.len() / width];
    let finite = floats.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * width)).map(|(out, bytes)| {
        convert(bytes, out);
        out.iter().fold(true, |finite, x| finite & x.is_finite()) // no early end, so that it vectorises
    });
    if finite.reduce(|| true, |a, b| a & b) { Decoded::Floats(floats) } else { Decoded::NotFinite }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], from: impl Fn([u8; N]) -> T) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = from(*bytes);
    }
}

/// A tensor's `f32` values as little-endian bytes of `dtype`, rounded to nearest (ties to even). Takes no more memory than these.
///
/// # Errors
/// In words without the tensor's name: if a value is not finite, or too large for `dtype`, or `dtype` is no float.
pub(super) fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>, String> {
    let tensor = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.contiguous()).map_err(|e| e.to_string())?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err("does not lie in this machine's memory".into());
    };
    let values = &storage.as_slice::<f32>().map_err(|e| e.to_string())?[start..end];
    if !values.par_chunks(CHUNK).all(|values| values.iter().fold(true, |finite, x| finite & x.is_finite())) {
        return Err("has a value that is NaN or infinite; nothing was written".into());
    }
    match dtype {
        Dtype::F32 => Ok(all(values, |values, out| put(values, out, |x| x.to_le_bytes()))),
        Dtype::F64 => Ok(all(values, |values, out| put(values, out, |x| f64::from(*x).to_le_bytes()))),
        Dtype::F16 => {
            let bytes = all(values, |values, out| {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                put(&halves, out, |x: &f16| x.to_le_bytes());
            });
            // rounded to infinity: all bits of the exponent, none of the fraction
            check_range(bytes.par_chunks(2).all(|x| x[1] & 0x7c != 0x7c), dtype)?;
            Ok(bytes)
        }
        Dtype::BF16 => {
            let bytes = all(values, |values, out| {
                let mut halves = vec![bf16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                put(&halves, out, |x: &bf16| x.to_le_bytes());
            });
            check_range(bytes.par_chunks(2).all(|x| (x[1] & 0x7f, x[0] & 0x80) != (0x7f, 0x80)), dtype)?;
            Ok(bytes)
        }
        other => Err(format!("is stored as {other:?}, which cannot be edited")),
    }
}

/// All values as bytes of the width of `dtype`, in parallel.
fn all<const N: usize>(values: &[f32], convert: impl Fn(&[f32], &mut [[u8; N]]) + Sync) -> Vec<u8> {
    let mut bytes = vec![0u8; values.len() * N];
    let out = bytes.as_chunks_mut::<N>().0;
    out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, values)| convert(values, out));
    bytes
}

fn put<T, const N: usize>(values: &[T], out: &mut [[u8; N]], to: impl Fn(&T) -> [u8; N]) {
    values.iter().zip(out).for_each(|(value, out)| *out = to(value));
}

fn check_range(finite: bool, dtype: Dtype) -> Result<(), String> {
    if finite {
        return Ok(());
    }
    Err(format!("has a value too large for {dtype:?}; lower the learning rate, or start from the float32 weights"))
}
