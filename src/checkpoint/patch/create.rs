//! A patch between two models, written in one pass: no tensor is ever held whole.

use super::TEXT_LIMIT;
use super::apply::hashes;
use super::blocks::{self, blocks};
use super::index::{Change, Dropped, FORMAT, FORMAT_KEY, File, INDEX, Index, Layout, Side, can_be_named};
use super::numbers::Numbers;
use super::rebuild::header_of;
use super::sections::{Writer, pack_text};
use crate::checkpoint::files::{Bytes, ModelFiles};
use crate::checkpoint::hash::sha256_each;
use crate::checkpoint::malformed::parse;
use crate::checkpoint::write::{Output, atomically};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, BTreeSet};
use std::io::SeekFrom;
use std::path::Path;

/// Blocks that are worked on at a time.
const GROUP: usize = 32;

/// Tensors that were written in the same way.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Encoded {
    /// How many.
    pub tensors: usize,
    /// Their bytes in a model.
    pub tensor_bytes: u64,
    /// The bytes of their changes in the patch.
    pub bytes: u64,
}

/// What a patch came to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors that differ.
    pub tensors: usize,
    /// Their bytes in a model.
    pub tensor_bytes: u64,
    /// Files that differ.
    pub files: usize,
    /// Tensors by the way in which they were written: `all values`, `listed values`.
    pub encodings: BTreeMap<&'static str, Encoded>,
    /// The hash of the model that the patch starts from.
    pub base_sha256: String,
    /// The hash of the model that it makes.
    pub result_sha256: String,
    /// What keeps the patch from being reversed, in words: what the base has, and neither the result nor the patch.
    pub dropped: Option<String>,
}

impl Summary {
    /// One line: how large the patch is beside what it changes.
    pub fn line(&self) -> String {
        let (n, s) = (self.tensors, if self.tensors == 1 { "" } else { "s" });
        let share = 100.0 * self.bytes as f64 / self.tensor_bytes.max(1) as f64;
        let back = match &self.dropped {
            None => "reversible".to_string(),
            Some(dropped) => format!("not reversible, for the base has {dropped}"),
        };
        format!("patch: {n} tensor{s} in {} bytes, {share:.0} % of theirs; {back}", self.bytes)
    }
}

/// One file of both models, mapped.
struct Pair {
    path: String,
    base: Bytes,
    result: Bytes,
}

/// A tensor that differs.
struct Changed<'a> {
    pair: &'a Pair,
    name: String,
    base: TensorView<'a>,
    result: TensorView<'a>,
    /// Bytes of its change that were written, and whether some block had all its values.
    written: u64,
    all: bool,
}

/// Writes the patch that makes `edited` of `base`, and `base` of `edited`, to `path`: whole, or not at all. `metadata` is
/// added to what the patch says of itself; the same models give the same bytes.
///
/// # Errors
/// If one is a folder and the other a file, or `edited` has a tensor that `base` does not have in the same type and shape, or
/// something cannot be read or written.
pub fn create(
    base: &ModelFiles,
    edited: &ModelFiles,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Summary> {
    let layout = match (base, edited) {
        (ModelFiles::Single(_), ModelFiles::Single(_)) => Layout::SingleFile,
        (ModelFiles::Single(_), _) | (_, ModelFiles::Single(_)) => {
            let (base, edited) = (base.describe(""), edited.describe(""));
            let what = format!("a patch lies between two folders or two single files, not between {base} and {edited}");
            return Err(Error::usage(what));
        }
        _ => Layout::Folder,
    };
    let (mut files, pairs) = compare_files(base, edited, layout)?;
    let mut texts = BTreeMap::new();
    let mut changed = Vec::new();
    for pair in &pairs {
        let file = files.iter_mut().find(|file| file.path == pair.path);
        let Some(file) = file else { continue };
        if file.change == Some(Change::Weights) {
            let (differing, dropped) = compare_tensors(base, edited, pair)?;
            changed.extend(differing);
            file.dropped = dropped;
        }
        add_texts(file, pair, base, &mut texts)?;
    }
    let index = Index { layout, files };
    let mut metadata = metadata.clone();
    let tensor_bytes: u64 = changed.iter().map(|tensor| tensor.result.data().len() as u64).sum();
    let words = if layout == Layout::Folder { "folder" } else { "single-file" };
    metadata.extend([
        (FORMAT_KEY.to_string(), FORMAT.to_string()),
        ("patch.base_sha256".into(), index.model_hash(Side::Base)),
        ("patch.result_sha256".into(), index.model_hash(Side::Result)),
        ("patch.layout".into(), words.into()),
        ("patch.reversible".into(), index.dropped().is_none().to_string()),
        ("patch.tensors".into(), changed.len().to_string()),
        ("patch.tensor_bytes".into(), tensor_bytes.to_string()),
    ]);
    let text = serde_json::to_vec(&index).map_err(|e| Error::file(path, e))?;
    let mut parts = vec![(INDEX.to_string(), text)];
    parts.extend(texts);
    let size = usize::try_from(tensor_bytes).unwrap_or(usize::MAX);
    let mut bytes = 0;
    atomically(path, size, |output| {
        bytes = write(path, output, &metadata, &parts, &mut changed)?;
        Ok(())
    })?;
    let mut encodings: BTreeMap<&'static str, Encoded> = BTreeMap::new();
    for tensor in &changed {
        let encoded = encodings.entry(if tensor.all { "all values" } else { "listed values" }).or_default();
        encoded.tensors += 1;
        encoded.tensor_bytes += tensor.result.data().len() as u64;
        encoded.bytes += tensor.written;
    }
    Ok(Summary {
        bytes,
        tensors: changed.len(),
        tensor_bytes,
        files: index.files.iter().filter(|file| file.change.is_some()).count(),
        encodings,
        base_sha256: index.model_hash(Side::Base),
        result_sha256: index.model_hash(Side::Result),
        dropped: index.dropped(),
    })
}

/// The files of both models, and those that differ.
fn compare_files(base: &ModelFiles, edited: &ModelFiles, layout: Layout) -> Result<(Vec<File>, Vec<Pair>)> {
    let ((_, before), (_, mut after)) = (hashes(base)?, hashes(edited)?);
    let (mut files, mut pairs) = (Vec::new(), Vec::new());
    // what the edited model's folder has beside the model, as the base has it in the model
    let absent = |path: &&String| layout == Layout::Folder && !after.contains_key(*path) && edited.contains(path);
    let absent: Vec<String> = before.keys().filter(absent).cloned().collect();
    let found = sha256_each(edited, &absent)?;
    let same = absent.into_iter().zip(found).filter(|(path, hash)| before[path] == *hash);
    let beside: BTreeMap<_, _> = same.collect();
    after.extend(beside.clone());
    for path in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        check_interrupted()?;
        if !can_be_named(path) {
            let what = "a patch cannot hold a file of this name (with a colon or a backslash); rename it";
            return Err(Error::file(base.describe(path), what));
        }
        let (was, is) = (before.get(path).cloned(), after.get(path).cloned());
        let beside = beside.contains_key(path);
        let mut file = File { path: path.clone(), base: was, result: is, beside, change: None, dropped: None };
        // a model of one file differs from itself in nothing, but is weights all the same
        if file.base != file.result || layout == Layout::SingleFile {
            let side = |files: &ModelFiles, hash: &Option<String>| match (files, hash) {
                (ModelFiles::Single(single), _) => Bytes::open(single.path()),
                (_, Some(_)) => files.map(path),
                (_, None) => Ok(Bytes::Static(&[])),
            };
            let pair = Pair { path: path.clone(), base: side(base, &file.base)?, result: side(edited, &file.result)? };
            let both = file.base.is_some() && file.result.is_some();
            file.change = Some(if both && path.ends_with(".safetensors") { Change::Weights } else { Change::Text });
            if file.result.is_none() && pair.base.len() > TEXT_LIMIT {
                (file.change, file.dropped) = (None, Some(Dropped { tensors: 0, first: String::new() }));
            } else {
                pairs.push(pair);
            }
        }
        files.push(file);
    }
    Ok((files, pairs))
}

/// The tensors that differ, in order of name, and what only the base has.
fn compare_tensors<'a>(
    base: &ModelFiles,
    edited: &ModelFiles,
    pair: &'a Pair,
) -> Result<(Vec<Changed<'a>>, Option<Dropped>)> {
    let path = if matches!(base, ModelFiles::Single(_)) { "" } else { pair.path.as_str() };
    let old = parse(&pair.base).map_err(|what| Error::file(base.describe(path), what))?;
    let new = parse(&pair.result).map_err(|what| Error::file(edited.describe(path), what))?;
    let mut new: Vec<_> = new.tensors();
    new.sort_by(|a, b| a.0.cmp(&b.0));
    let names: BTreeSet<_> = new.iter().map(|(name, _)| name.as_str()).collect();
    let mut only_old: Vec<_> = old.names().into_iter().filter(|name| !names.contains(name)).collect();
    only_old.sort_unstable();
    let dropped = only_old.first().map(|first| Dropped { tensors: only_old.len(), first: first.to_string() });
    let one = |(name, result): &(String, TensorView<'a>)| {
        check_interrupted()?;
        let found = old.tensor(name).ok().filter(|old| old.dtype() == result.dtype() && old.shape() == result.shape());
        let Some(found) = found else {
            let what = format!(
                "has the tensor {name}, which {} does not have in the same type and shape; a patch cannot hold it, take another \
                 format",
                base.describe(path)
            );
            return Err(Error::file(edited.describe(path), what));
        };
        let same = found.data() == result.data();
        pair.base.release(found.data());
        pair.result.release(result.data());
        let changed = Changed { pair, name: name.clone(), base: found, result: result.clone(), written: 0, all: false };
        Ok((!same).then_some(changed))
    };
    let changed = new.par_iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok((changed.into_iter().flatten().collect(), dropped))
}

/// The content of a small file, or the header of a file of weights, on each side that has one.
fn add_texts(file: &File, pair: &Pair, base: &ModelFiles, texts: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let weights = file.change == Some(Change::Weights);
    let of = |bytes: &'_ Bytes| if weights { header_of(bytes).to_vec() } else { bytes.to_vec() };
    if [&pair.base, &pair.result].iter().any(|bytes| !weights && bytes.len() > TEXT_LIMIT) {
        let what =
            format!("differs, is no safetensors file, and has more than the {TEXT_LIMIT} bytes that a patch takes");
        return Err(Error::file(base.describe(&file.path), what));
    }
    let (old, new) = (of(&pair.base), of(&pair.result));
    if weights && old == new {
        return Ok(());
    }
    if old.len().max(new.len()) > TEXT_LIMIT {
        let what = format!("has a header of more than the {TEXT_LIMIT} bytes that a patch takes");
        return Err(Error::file(base.describe(&file.path), what));
    }
    let mut add = |side: &str, text: &[u8], like: &[u8]| -> Result<()> {
        let packed = pack_text(text, like).map_err(|e| Error::file(base.describe(&file.path), e))?;
        texts.insert(format!("{side}:{}", file.path), packed);
        Ok(())
    };
    if file.base.is_some() {
        add("base", &old, &new)?;
    }
    if file.result.is_some() {
        add("result", &new, &old)?;
    }
    Ok(())
}

/// Writes the file: room for the header, all parts, and the header. Returns how many bytes it has.
fn write(
    path: &Path,
    output: &mut dyn Output,
    metadata: &BTreeMap<String, String>,
    parts: &[(String, Vec<u8>)],
    changed: &mut [Changed<'_>],
) -> Result<u64> {
    // a change takes at most what the numbers take, and a few bytes for each plane of each block
    let most = changed.iter().map(|tensor| 2 * tensor.result.data().len() + 64).sum::<usize>();
    let most = most + parts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let names = |changed: &[Changed<'_>]| -> Vec<(String, u64)> {
        let parts = parts.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64));
        parts.chain(changed.iter().map(|t| (format!("{}:{}", t.pair.path, t.name), t.written))).collect()
    };
    let longest = names(changed).into_iter().map(|(name, _)| (name, None)).collect();
    let room = header(path, metadata, longest, most as u64)?.len().next_multiple_of(8);
    let failed = || Error::write(path, most);
    output.write_all(&(room as u64).to_le_bytes()).map_err(failed())?;
    output.write_all(&vec![b' '; room]).map_err(failed())?;
    for (_, bytes) in parts {
        output.write_all(bytes).map_err(failed())?;
    }
    write_changes(path, output, changed)?;
    let names = names(changed);
    let bytes = names.iter().map(|(_, bytes)| bytes).sum::<u64>() + 8 + room as u64;
    let text = header(path, metadata, names.into_iter().map(|(name, bytes)| (name, Some(bytes))).collect(), 0)?;
    output.seek(SeekFrom::Start(8)).map_err(failed())?;
    output.write_all(text.as_bytes()).map_err(failed())?; // spaces follow
    Ok(bytes)
}

/// The header's JSON; without their lengths, the longest that it can be if all parts have `most` bytes together.
fn header(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    parts: Vec<(String, Option<u64>)>,
    most: u64,
) -> Result<String> {
    let json = |value: &dyn Fn() -> serde_json::Result<String>| value().map_err(|e| Error::file(path, e));
    let mut text = format!("{{\"__metadata__\":{}", json(&|| serde_json::to_string(metadata))?);
    let mut at = 0;
    for (name, bytes) in parts {
        let (from, to, bytes) = bytes.map_or((most, most, most), |bytes| (at, at + bytes, bytes));
        let name = json(&|| serde_json::to_string(&name))?;
        text.push_str(&format!(",{name}:{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[{from},{to}]}}"));
        at = to;
    }
    text.push('}');
    Ok(text)
}

/// Writes the changes of all tensors, some blocks at a time, and notes what each took.
fn write_changes(path: &Path, output: &mut dyn Output, changed: &mut [Changed<'_>]) -> Result<()> {
    let mut work = Vec::new();
    for (number, tensor) in changed.iter().enumerate() {
        let dtype = tensor.result.dtype();
        let both = blocks(dtype, tensor.base.data()).zip(blocks(dtype, tensor.result.data()));
        work.extend(both.map(|(base, result)| (number, Numbers::of(dtype), base, result)));
    }
    for group in work.chunks(GROUP) {
        check_interrupted()?;
        let one = |writer: &mut std::io::Result<Writer>, (_, numbers, base, result): &(_, _, &[u8], &[u8])| {
            let writer = writer.as_mut().map_err(|e| std::io::Error::new(e.kind(), e.to_string()))?;
            blocks::encode(writer, *numbers, base, result)
        };
        let made = group.par_iter().map_init(Writer::new, one).collect::<std::io::Result<Vec<_>>>();
        for ((number, _, base, result), change) in group.iter().zip(made.map_err(Error::io(path))?) {
            let tensor = &mut changed[*number];
            tensor.all |= !blocks::is_listed(&change);
            let bytes = blocks::framed(change);
            output.write_all(&bytes).map_err(Error::write(path, bytes.len()))?;
            tensor.written += bytes.len() as u64;
            tensor.pair.base.release(base);
            tensor.pair.result.release(result);
        }
    }
    Ok(())
}
