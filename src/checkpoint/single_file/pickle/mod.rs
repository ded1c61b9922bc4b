//! Tensors of a PyTorch checkpoint (`.ckpt`, a zip archive since PyTorch 1.6), where they lie in the file.

mod machine;

use candle_core::pickle::Object;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// The largest `data.pkl`; those of Stable Diffusion have less than 1 MB.
const LARGEST_PICKLE: u64 = 32 << 20;
/// How often `state_dict` may lie in a `state_dict`.
const NESTED: usize = 4;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// Whether a file begins as such a checkpoint does.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// Every tensor of a checkpoint by name.
///
/// # Errors
/// In words without the file's name: if it is damaged, asks for anything but tensors, or holds them in a way that is not read.
pub(super) fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Place>, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("a damaged PyTorch checkpoint ({e}); download it again");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| damaged(&e))?;
    let (mut members, mut pickles) = (BTreeMap::new(), Vec::new());
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(|e| damaged(&e))?;
        let name = member.name().map_err(|e| damaged(&e))?.into_owned();
        let stored = member.compression() == CompressionMethod::Stored && member.size() == member.compressed_size();
        let start = member.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.zip(usize::try_from(member.size()).ok()).and_then(|(start, size)| start.checked_add(size));
        let range = start.zip(end).map(|(start, end)| start..end).filter(|range| stored && range.end <= bytes.len());
        if let Some(folder) = name.strip_suffix("data.pkl") {
            pickles.push((folder.to_string(), i, member.size()));
        }
        members.insert(name, range);
    }
    let [(folder, index, size)] = &pickles[..] else {
        return Err(format!("a zip archive with {} data.pkl, so no checkpoint of PyTorch's", pickles.len()));
    };
    if *size > LARGEST_PICKLE {
        return Err(format!("a PyTorch checkpoint whose data.pkl has {size} bytes; at most {LARGEST_PICKLE} are read"));
    }
    let mut pickle = Vec::new();
    let member = archive.by_index(*index).map_err(|e| damaged(&e))?;
    member.take(LARGEST_PICKLE).read_to_end(&mut pickle).map_err(|e| damaged(&e))?;
    if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
        let mut text = String::new();
        let _ = order.by_ref().take(16).read_to_string(&mut text);
        if text != "little" {
            return Err(format!("a PyTorch checkpoint of a machine with another order of bytes ({text:?})"));
        }
    }
    let object = machine::read(&pickle).map_err(|what| format!("a PyTorch checkpoint whose data.pkl {what}"))?;
    let storage = |key: &str| {
        let range = members.get(&format!("{folder}data/{key}")).cloned();
        range.flatten().ok_or_else(|| format!("its storage {key} is missing or compressed; download it again"))
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in state_dict(object)? {
        let Object::Unicode(name) = name else { continue };
        if let Some(view) = view(&value) {
            let place = view.and_then(|view| view.place(&storage)).map_err(|what| format!("{name}: {what}"))?;
            tensors.insert(name, place);
        }
    }
    Ok(tensors)
}

/// Reads a `data.pkl` alone.
pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    state_dict(machine::read(bytes)?)?.iter().filter_map(|(_, value)| view(value)).try_for_each(|view| view.map(drop))
}

/// The dictionary of tensors, which may lie in another under `state_dict`.
fn state_dict(mut object: Object) -> Result<Vec<(Object, Object)>, String> {
    for _ in 0..NESTED {
        let Object::Dict(mut pairs) = object else { break };
        let is_state = |(key, _): &(Object, Object)| matches!(key, Object::Unicode(key) if key == "state_dict");
        match pairs.iter().position(is_state) {
            Some(i) => object = pairs.swap_remove(i).1,
            None => return Ok(pairs),
        }
    }
    Err("a PyTorch file without a dictionary of tensors".into())
}

/// A tensor as `_rebuild_tensor_v2` is told of it.
struct View<'a> {
    class: &'a str,
    storage: &'a str,
    /// In elements.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// What a value says of a tensor; `None` if it is something else.
fn view(value: &Object) -> Option<Result<View<'_>, String>> {
    let Object::Reduce { callable, args } = value else { return None };
    let (Object::Class { class_name, .. }, Object::Tuple(args)) = (&**callable, &**args) else { return None };
    match class_name.as_str() {
        "_rebuild_parameter" => view(args.first()?),
        "_rebuild_tensor_v2" => Some(rebuilt(args).ok_or_else(|| "a tensor that is not told in the known way".into())),
        _ => None,
    }
}

fn rebuilt(args: &[Object]) -> Option<View<'_>> {
    let [Object::PersistentLoad(id), offset, Object::Tuple(shape), Object::Tuple(strides), ..] = args else {
        return None;
    };
    let Object::Tuple(id) = &**id else { return None };
    let [Object::Unicode(kind), Object::Class { class_name, .. }, Object::Unicode(storage), ..] = &id[..] else {
        return None;
    };
    let numbers = |values: &[Object]| values.iter().map(number).collect::<Option<Vec<_>>>();
    let (shape, strides) = (numbers(shape)?, numbers(strides)?);
    (kind == "storage").then_some(View { class: class_name, storage, offset: number(offset)?, shape, strides })
}

fn number(value: &Object) -> Option<usize> {
    match value {
        Object::Int(value) => usize::try_from(*value).ok(),
        Object::Long(value) => usize::try_from(*value).ok(),
        _ => None,
    }
}

impl View<'_> {
    /// The tensor's bytes in the file: they must lie in its storage, in order.
    fn place(&self, storage: &dyn Fn(&str) -> Result<Range<usize>, String>) -> Result<Place, String> {
        let dtype = match self.class {
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::BF16,
            "DoubleStorage" => Dtype::F64,
            "LongStorage" => Dtype::I64,
            "IntStorage" => Dtype::I32,
            "ShortStorage" => Dtype::I16,
            "CharStorage" => Dtype::I8,
            "ByteStorage" => Dtype::U8,
            "BoolStorage" => Dtype::BOOL,
            other => return Err(format!("a storage of the kind {other}, which is not read")),
        };
        let beyond = || "lies outside its storage; the file is damaged".to_string();
        let mut expected = 1usize;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size > 1 && *stride != expected {
                return Err("its elements are not in order; save the model again with contiguous tensors".into());
            }
            expected = expected.checked_mul(*size).ok_or_else(beyond)?;
        }
        if self.shape.len() != self.strides.len() {
            return Err(beyond());
        }
        let width = dtype.bitsize() / 8;
        let within = storage(self.storage)?;
        let start =
            self.offset.checked_mul(width).and_then(|bytes| within.start.checked_add(bytes)).ok_or_else(beyond)?;
        let end = expected.checked_mul(width).and_then(|bytes| start.checked_add(bytes)).ok_or_else(beyond)?;
        if end > within.end {
            return Err(beyond());
        }
        Ok(Place { dtype, shape: self.shape.clone(), bytes: start..end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_pytorch_wrote_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/single_file/torch.ckpt");
        let bytes = std::fs::read(path).unwrap();
        let found = tensors(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            bytes[found[name].bytes.clone()].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let up_to = |from: u8, to: u8| (from..to).map(f32::from).collect::<Vec<_>>();
        assert_eq!((found["whole"].shape.clone(), floats("whole")), (vec![2, 3, 4], up_to(0, 24)));
        assert_eq!((found["part.of.a.storage"].shape.clone(), floats("part.of.a.storage")), (vec![6], up_to(6, 12)));
        assert_eq!(floats("another.part"), [12.0, 13.0]);
        assert_eq!(floats("parameter"), [1.0, 1.0]);
        assert_eq!((found["one.wide"].shape.clone(), floats("one.wide")), (vec![3, 1], up_to(0, 3)));
        let types = ["half", "bfloat", "scalar", "ids"].map(|name| (found[name].dtype, found[name].shape.clone()));
        let shapes = [vec![1, 2], vec![3], vec![], vec![1, 5]];
        let expected = [Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I64].into_iter().zip(shapes);
        assert_eq!(types.to_vec(), expected.collect::<Vec<_>>());
        assert_eq!(bytes[found["half"].bytes.clone()], [0, 0x3e, 0, 0xc0]);
        assert_eq!(bytes[found["scalar"].bytes.clone()], 7f64.to_le_bytes());
        assert_eq!(found.len(), 9, "{:?}", found.keys());
    }
}
