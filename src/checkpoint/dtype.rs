//! Numbers as a checkpoint stores them, to and from `f32`.

use candle_core::Tensor;
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

/// A tensor's `f32` values as little-endian bytes of `dtype`, rounded to nearest (ties to even).
///
/// # Errors
/// In words without the tensor's name: if a value is not finite, or too large for `dtype`, or `dtype` is no float.
pub(super) fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>, String> {
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(|e| e.to_string())?;
    if !values.iter().all(|x| x.is_finite()) {
        return Err("has a value that is NaN or infinite; nothing was written".into());
    }
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect(),
        Dtype::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(&values);
            check_range(halves.iter().all(|x| x.is_finite()), dtype)?;
            halves.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        Dtype::BF16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(&values);
            check_range(halves.iter().all(|x| x.is_finite()), dtype)?;
            halves.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        other => return Err(format!("is stored as {other:?}, which cannot be edited")),
    };
    Ok(bytes)
}

fn check_range(finite: bool, dtype: Dtype) -> Result<(), String> {
    if finite {
        return Ok(());
    }
    Err(format!("has a value too large for {dtype:?}; lower the learning rate, or start from the float32 weights"))
}
