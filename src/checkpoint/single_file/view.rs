//! A file of weights, opened: a file of its own, or one component's part of a single file.

use super::convert::to_diffusers;
use super::{Entry, How, SingleFile, Tensors};
use crate::checkpoint::files::{Bytes, ModelFiles};
use crate::checkpoint::malformed::parse;
use crate::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A file of weights that is mapped while this lives; nothing of it is copied but what is turned round.
pub(in crate::checkpoint) struct TensorFile {
    bytes: Bytes,
    part: Option<Part>,
    /// What the file is called in messages.
    described: String,
}

struct Part {
    file: Arc<SingleFile>,
    rel: String,
    /// Parameters whose bytes are not in the file in this order.
    turned: BTreeMap<String, Vec<u8>>,
}

impl TensorFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or it is damaged.
    pub(in crate::checkpoint) fn open(files: &ModelFiles, rel: &str) -> Result<Self> {
        let (bytes, described) = (files.map(rel)?, files.describe(rel));
        let ModelFiles::Single(file) = files else { return Ok(Self { bytes, part: None, described }) };
        let mut turned_round = BTreeMap::new();
        let parsed = file.tensors(&bytes).map_err(|what| Error::file(&described, what))?;
        let entries = file.weights(rel).unwrap_or_default();
        for entry in entries.iter().filter(|entry| entry.how == How::Transposed) {
            let wrong = |what: String| Error::file(&described, format!("{}: {what}", entry.original));
            let view = parsed.get(&entry.original).map_err(wrong)?;
            let turned = to_diffusers(entry.how, view.dtype(), view.shape(), view.data()).map_err(wrong)?;
            let Cow::Owned(turned) = turned.2 else { continue };
            turned_round.insert(entry.diffusers.clone(), turned);
        }
        drop(parsed);
        let part = Part { file: file.clone(), rel: rel.to_string(), turned: turned_round };
        Ok(Self { bytes, part: Some(part), described })
    }

    /// Every tensor by diffusers' name, in order of name.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(in crate::checkpoint) fn tensors(&self) -> Result<Views<'_>> {
        let wrong = |what: String| Error::file(&self.described, what);
        let mut tensors = match &self.part {
            None => parse(&self.bytes).map_err(wrong)?.tensors(),
            Some(part) => part.tensors(&part.file.tensors(&self.bytes).map_err(wrong)?).map_err(wrong)?,
        };
        // so that which error comes first does not depend on a hash map
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(tensors)
    }

    /// The file's own metadata; none of a part's.
    pub(in crate::checkpoint) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        if self.part.is_some() {
            return Ok(BTreeMap::new());
        }
        self.whole_metadata()
    }

    /// The metadata of the file that this is, or is a part of.
    pub(in crate::checkpoint) fn whole_metadata(&self) -> Result<BTreeMap<String, String>> {
        if self.part.as_ref().is_some_and(|part| part.file.is_pickle()) {
            return Ok(BTreeMap::new());
        }
        let header = SafeTensors::read_metadata(&self.bytes).map_err(|e| Error::file(&self.described, e))?.1;
        Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
    }

    /// Whether this is a part of a larger file.
    pub(in crate::checkpoint) fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// All of the file, or of what it is a part of.
    pub(in crate::checkpoint) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// See [`Bytes::release`].
    pub(in crate::checkpoint) fn release(&self, part: &[u8]) {
        self.bytes.release(part);
    }
}

/// Tensors by name.
type Views<'a> = Vec<(String, TensorView<'a>)>;

impl Part {
    fn tensors<'a>(&'a self, parsed: &Tensors<'a>) -> std::result::Result<Views<'a>, String> {
        let one = |entry: &Entry| {
            let named = |what: String| format!("{}: {what}", entry.original);
            let view = parsed.get(&entry.original).map_err(named)?;
            let (dtype, shape) = (view.dtype(), view.shape());
            let (shape, bytes) = match self.turned.get(&entry.diffusers) {
                Some(turned) => (shape.iter().rev().copied().collect(), turned.as_slice()),
                None => match to_diffusers(entry.how, dtype, shape, view.data()).map_err(named)? {
                    (_, shape, Cow::Borrowed(bytes)) => (shape, bytes),
                    (_, shape, Cow::Owned(_)) => return Err(named(format!("was not turned round to {shape:?}"))),
                },
            };
            let view = TensorView::new(dtype, shape, bytes).map_err(|e| named(e.to_string()))?;
            Ok((entry.diffusers.clone(), view))
        };
        self.file.weights(&self.rel).unwrap_or_default().iter().map(one).collect()
    }
}
