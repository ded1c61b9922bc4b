//! Tensors of a PyTorch checkpoint (`.ckpt`, a zip archive since PyTorch 1.6), where they lie in the file.

mod cells;
mod machine;
mod members;

use machine::{Pickle, Value};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// The largest `data.pkl`; those of Stable Diffusion have less than 1 MB.
const LARGEST_PICKLE: u64 = 32 << 20;
/// How often `state_dict` may lie in a `state_dict`.
const NESTED: usize = 4;
/// The most tensors. (The largest checkpoint of the kinds that are read has 2,515.)
const TENSORS: usize = 20_000;
/// The most dimensions of a tensor.
const DIMENSIONS: usize = 8;
/// The most things that a tensor is told by: its storage, offset, shape, strides and what matters in training.
const ARGUMENTS: usize = 16;

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
    members::check(bytes)?;
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
    let at = members.get(&format!("{folder}data.pkl")).cloned().flatten();
    let pickle =
        at.and_then(|at| bytes.get(at)).ok_or("a PyTorch checkpoint whose data.pkl is compressed; save it again")?;
    // a reader that checks what it reads
    let member = archive.by_index(*index).map_err(|e| damaged(&e))?;
    std::io::copy(&mut member.take(LARGEST_PICKLE), &mut std::io::sink()).map_err(|e| damaged(&e))?;
    if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
        let mut text = String::new();
        let _ = order.by_ref().take(16).read_to_string(&mut text);
        if text != "little" {
            return Err(format!("a PyTorch checkpoint of a machine with another order of bytes ({text:?})"));
        }
    }
    let pickle = machine::read(pickle).map_err(|what| format!("a PyTorch checkpoint whose data.pkl {what}"))?;
    let storage = |key: &str| {
        let range = members.get(&format!("{folder}data/{key}")).cloned();
        range.flatten().ok_or_else(|| format!("its storage {key:.80} is missing or compressed; download it again"))
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries(&pickle, state_dict(&pickle)?) {
        let Some(name) = pickle.text(name) else { continue };
        if let Some(view) = view(&pickle, value, true) {
            let place = view.and_then(|view| view.place(&storage)).map_err(|what| format!("{name:.80}: {what}"))?;
            if tensors.len() == TENSORS {
                return Err(format!("a PyTorch checkpoint with more than {TENSORS} tensors"));
            }
            tensors.insert(name.to_string(), place);
        }
    }
    Ok(tensors)
}

/// Reads a `data.pkl` alone.
pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let pickle = machine::read(bytes)?;
    let views = entries(&pickle, state_dict(&pickle)?).filter_map(|(_, value)| view(&pickle, value, true));
    views.take(TENSORS).try_for_each(|view| view.map(drop))
}

/// The dictionary of tensors, which may lie in another under `state_dict`.
fn state_dict(pickle: &Pickle<'_>) -> Result<Value, String> {
    let mut value = pickle.result;
    for _ in 0..NESTED {
        let Some(entries) = pickle.dict(value) else { break };
        match entries.filter(|(key, _)| pickle.text(*key) == Some("state_dict")).last() {
            Some((_, inner)) => value = inner,
            None => return Ok(value),
        }
    }
    Err("a PyTorch file without a dictionary of tensors".into())
}

fn entries(pickle: &Pickle<'_>, dict: Value) -> impl Iterator<Item = (Value, Value)> {
    pickle.dict(dict).into_iter().flatten()
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

/// What a value says of a tensor, or of a `parameter` that is one; `None` if it is something else.
fn view<'a>(pickle: &Pickle<'a>, value: Value, parameter: bool) -> Option<Result<View<'a>, String>> {
    let [callable, args] = pickle.reduced(value)?;
    let args = pickle.tuple(args, ARGUMENTS)?;
    match pickle.class(callable)?.1 {
        "_rebuild_parameter" if parameter => view(pickle, *args.first()?, false),
        "_rebuild_tensor_v2" => {
            Some(rebuilt(pickle, &args).ok_or_else(|| "a tensor that is not told in the known way".into()))
        }
        _ => None,
    }
}

fn rebuilt<'a>(pickle: &Pickle<'a>, args: &[Value]) -> Option<View<'a>> {
    let [id, offset, shape, strides, ..] = args else { return None };
    let id = pickle.tuple(pickle.persistent(*id)?, ARGUMENTS)?;
    let [kind, class, storage, ..] = &id[..] else { return None };
    let numbers = |value: Value| -> Option<Vec<usize>> {
        pickle.tuple(value, DIMENSIONS)?.into_iter().map(|number| pickle.number(number)).collect()
    };
    let (shape, strides) = (numbers(*shape)?, numbers(*strides)?);
    let (class, storage, offset) = (pickle.class(*class)?.1, pickle.text(*storage)?, pickle.number(*offset)?);
    (pickle.text(*kind)? == "storage").then_some(View { class, storage, offset, shape, strides })
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
