//! Which tensors differ between two models, and by how much; read piece by piece.

use super::super::dtype::{Decoded, decode};
use super::Weights;
use crate::progress::check_interrupted;
use crate::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use serde::Serialize;
use std::collections::BTreeMap;

/// Elements that are converted at a time.
const PIECE: usize = 1 << 20;

/// How a tensor differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its name, with the component in front if the model is a folder.
    pub name: String,
    /// Its part of the network.
    pub block: String,
    /// Elements.
    pub elements: usize,
    /// Elements that differ.
    pub changed: usize,
    /// `||new - base|| / ||base||`; absent if a value is not finite, or the base is all zero.
    pub relative: Option<f64>,
    /// The largest absolute difference of an element.
    pub largest: f64,
}

/// The tensors of one block that differ, together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockChange {
    /// Its name: `unet/down_blocks.0`.
    pub block: String,
    /// Tensors that both models have there.
    pub tensors: usize,
    /// Those that differ.
    pub changed: usize,
    /// `||new - base|| / ||base||` over those that differ.
    pub relative: Option<f64>,
    /// The largest absolute difference.
    pub largest: f64,
}

/// What two models have in common and what not.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Tensors that are equal, byte for byte.
    pub same: usize,
    /// Tensors with equal values in another type.
    pub same_values: usize,
    /// Those that differ, by name.
    pub changed: Vec<Change>,
    /// The same by block, most changed first.
    pub blocks: Vec<BlockChange>,
    /// In the base, but not here.
    pub missing: Vec<String>,
    /// Here, but not in the base.
    pub added: Vec<String>,
    /// In both, with other shapes.
    pub reshaped: Vec<String>,
    /// How many elements each tensor has that both have.
    #[serde(skip)]
    pub elements: BTreeMap<String, usize>,
}

/// Sums over elements.
#[derive(Clone, Copy, Default)]
struct Sums {
    changed: usize,
    squares: f64,
    base_squares: f64,
    largest: f64,
    not_finite: bool,
}

impl Sums {
    fn and(self, other: Self) -> Self {
        Self {
            changed: self.changed + other.changed,
            squares: self.squares + other.squares,
            base_squares: self.base_squares + other.base_squares,
            largest: self.largest.max(other.largest),
            not_finite: self.not_finite | other.not_finite,
        }
    }

    fn relative(&self) -> Option<f64> {
        (!self.not_finite && self.base_squares > 0.0).then(|| (self.squares / self.base_squares).sqrt())
    }
}

/// Compares `new` with `base`.
///
/// # Errors
/// If they have no tensor of the same name, or the user interrupts.
pub(super) fn compare(new: &Weights, base: &Weights) -> Result<Difference> {
    // a single file is compared by the names that it has in a folder
    let as_folder = !new.parts.is_empty() || !base.parts.is_empty();
    let (ours, theirs) = (new.tensors(as_folder)?, base.tensors(as_folder)?);
    let (ours, theirs) = same_naming(ours, theirs);
    let mut out = Difference {
        missing: theirs.keys().filter(|name| !ours.contains_key(*name)).cloned().collect(),
        added: ours.keys().filter(|name| !theirs.contains_key(*name)).cloned().collect(),
        ..Difference::default()
    };
    let both: Vec<_> = ours.iter().filter_map(|(name, view)| Some((name, view, theirs.get(name)?))).collect();
    if both.is_empty() {
        return Err(Error::usage(format!(
            "--base {}: has no tensor of the same name; compare models of the same layout",
            base.path.display()
        )));
    }
    let differ = |(name, view, other): &(&String, &TensorView<'_>, &TensorView<'_>)| -> Result<_> {
        check_interrupted()?;
        let found = match view.shape() == other.shape() {
            false => Compared::Reshaped,
            true if view.dtype() == other.dtype() && view.data() == other.data() => Compared::Same,
            true => Compared::Sums(sums(view, other)),
        };
        new.release(view.data());
        base.release(other.data());
        Ok(((*name).clone(), view.shape().iter().product::<usize>(), found))
    };
    let mut blocks: BTreeMap<String, (usize, usize, Sums)> = BTreeMap::new();
    for found in both.par_iter().map(differ).collect::<Result<Vec<_>>>()? {
        let (name, elements, found) = found;
        out.elements.insert(name.clone(), elements);
        let block = block(&name);
        let entry = blocks.entry(block.clone()).or_default();
        entry.0 += 1;
        match found {
            Compared::Same => out.same += 1,
            Compared::Reshaped => out.reshaped.push(name),
            Compared::Sums(sums) if sums.changed == 0 && !sums.not_finite => out.same_values += 1,
            Compared::Sums(sums) => {
                (entry.1, entry.2) = (entry.1 + 1, entry.2.and(sums));
                let (relative, largest) = (sums.relative(), sums.largest);
                out.changed.push(Change { name, block, elements, changed: sums.changed, relative, largest });
            }
        }
    }
    let blocks = blocks.into_iter().filter(|(_, (_, changed, _))| *changed > 0);
    out.blocks = blocks
        .map(|(block, (tensors, changed, sums))| {
            let (relative, largest) = (sums.relative(), sums.largest);
            BlockChange { block, tensors, changed, relative, largest }
        })
        .collect();
    out.blocks.sort_by(|a, b| b.relative.unwrap_or(f64::MAX).total_cmp(&a.relative.unwrap_or(f64::MAX)));
    Ok(out)
}

enum Compared {
    Same,
    Reshaped,
    Sums(Sums),
}

type Named<'a> = BTreeMap<String, TensorView<'a>>;

/// A file beside a folder: it is compared with the component whose names it has.
fn same_naming<'a>(ours: Named<'a>, theirs: Named<'a>) -> (Named<'a>, Named<'a>) {
    let is_folder = |named: &Named<'_>| !named.is_empty() && named.keys().all(|name| name.contains('/'));
    match (is_folder(&ours), is_folder(&theirs)) {
        (false, true) => {
            let theirs = component(theirs, &ours);
            (ours, theirs)
        }
        (true, false) => {
            let ours = component(ours, &theirs);
            (ours, theirs)
        }
        _ => (ours, theirs),
    }
}

fn component<'a>(folder: Named<'a>, file: &Named<'_>) -> Named<'a> {
    let mut parts: BTreeMap<String, Named<'a>> = BTreeMap::new();
    for (name, view) in folder {
        let (part, rest) = name.split_once('/').unwrap_or(("", &name));
        parts.entry(part.to_string()).or_default().insert(rest.to_string(), view);
    }
    let common = |part: &Named<'_>| part.keys().filter(|name| file.contains_key(*name)).count();
    parts.into_values().max_by_key(common).unwrap_or_default()
}

fn sums(new: &TensorView<'_>, base: &TensorView<'_>) -> Sums {
    let width = |view: &TensorView<'_>| PIECE * view.dtype().bitsize() / 8;
    let pieces = new.data().chunks(width(new).max(1)).zip(base.data().chunks(width(base).max(1)));
    pieces.fold(Sums::default(), |sums, (a, b)| sums.and(piece((new, a), (base, b))))
}

fn piece((new, a): (&TensorView<'_>, &[u8]), (base, b): (&TensorView<'_>, &[u8])) -> Sums {
    let (Decoded::Floats(a), Decoded::Floats(b)) = (decode(new.dtype(), a), decode(base.dtype(), b)) else {
        // integers, or not all finite: only whether the bytes differ can be said
        let same = new.dtype() == base.dtype() && a == b;
        return Sums { changed: usize::from(!same), not_finite: true, ..Sums::default() };
    };
    let mut sums = Sums::default();
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        let d = a - b;
        sums.changed += usize::from(d != 0.0);
        sums.squares += d * d;
        sums.base_squares += b * b;
        sums.largest = sums.largest.max(d.abs());
    }
    sums
}

/// A name up to its first number (`unet/down_blocks.0`), or without its last part.
fn block(name: &str) -> String {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return name[..end].to_string();
        }
        end += 1;
    }
    name.rsplit_once('.').map_or(name, |(front, _)| front).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    #[test]
    fn a_block_ends_with_its_number() {
        let cases = [
            ("unet/down_blocks.0.attentions.1.x.weight", "unet/down_blocks.0"),
            ("model.diffusion_model.input_blocks.11.0.bias", "model.diffusion_model.input_blocks.11"),
            ("conv_in.weight", "conv_in"),
            ("time_embedding.linear_1.bias", "time_embedding.linear_1"),
            ("x", "x"),
        ];
        for (name, expected) in cases {
            assert_eq!(block(name), expected);
        }
    }

    #[test]
    fn sums_are_over_all_pieces_and_types_may_differ() {
        let n = PIECE + 3;
        let (mut a, b) = (vec![1f32; n], vec![half::f16::ONE; n]);
        (a[0], a[n - 1]) = (3.0, 0.5);
        let a: Vec<u8> = a.iter().flat_map(|x| x.to_le_bytes()).collect();
        let b: Vec<u8> = b.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (a, b) = (TensorView::new(Dtype::F32, vec![n], &a), TensorView::new(Dtype::F16, vec![n], &b));
        let found = sums(&a.unwrap(), &b.unwrap());
        assert_eq!((found.changed, found.largest, found.squares), (2, 2.0, 4.25));
        assert_eq!(found.relative(), Some((4.25 / n as f64).sqrt()));
        let nan = f32::NAN.to_le_bytes();
        let (nan, one) = (TensorView::new(Dtype::F32, vec![1], &nan).unwrap(), 1f32.to_le_bytes());
        let found = sums(&nan, &TensorView::new(Dtype::F32, vec![1], &one).unwrap());
        assert_eq!((found.changed, found.relative()), (1, None));
    }
}
