//! Two models to the LoRA that makes the one of the other.

use super::super::dtype::encode;
use super::super::files::ModelFiles;
use super::super::modelspec::Kind;
use super::super::single_file::TensorFile;
use super::super::write::{TensorBytes, write_tensors};
use super::factor::{Factors, Wanted, factor};
use super::metadata::metadata as own_metadata;
use super::names::unet_names;
use super::tensors::{UnetFiles, Views};
use super::{Layer, NotHeld, Options, Summary};
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// The most elements of matrices that are worked on at a time: each takes some 40 bytes, so about 1.3 GB. (A larger matrix is
/// worked on alone.)
const AT_A_TIME: usize = 1 << 25;

/// What the rounding of weights to `f32` changes them by, relative to their norm: half a unit in the last place for those in the
/// middle of their binade.
const ROUNDING: f64 = 1.0 / (1 << 25) as f64;

/// A changed parameter.
struct Changed<'a> {
    parameter: &'a str,
    /// Its layer's name and its size as a matrix, if a LoRA can hold it.
    held: Option<(&'a str, usize, usize)>,
    shape: &'a [usize],
}

/// What became of it.
enum Outcome {
    /// Its values are the same after all.
    Same,
    NotHeld(f64),
    Held(Factors),
}

/// Writes the LoRA that turns `base` into `edited`, whose UNets differ, to `path`. Beside the metadata that says what it is,
/// the file has `metadata`. The same models and options give the same bytes, for any number of threads.
///
/// Only the UNets are compared: this program edits nothing else.
///
/// # Errors
/// If an option makes no sense, a model cannot be read, they are not of one kind, they do not differ in anything that a LoRA can
/// hold, or the file cannot be written; then nothing is at `path` that was not there.
pub fn create(
    base: &ModelFiles,
    edited: &ModelFiles,
    path: &Path,
    options: &Options,
    metadata: &BTreeMap<String, String>,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    options.check()?;
    let about = Kind::of(base)?;
    let names = unet_names(about.networks.architecture, &about.networks.unet);
    let (before, after) = (UnetFiles::open(base)?, UnetFiles::open(edited)?);
    let (old, new) = (before.views()?, after.views()?);
    let changed = changed(&names, (&before, &old), (&after, &new))?;
    let limit = |c: &Changed<'_>| c.held.map(|(_, rows, columns)| options.rank.limit(rows, columns));
    let alpha = changed.iter().filter_map(limit).max().unwrap_or(1);

    progress.event(Event::Stage { name: "finding the LoRA's factors", steps: changed.len() });
    let mut outcomes: Vec<Option<Outcome>> = changed.iter().map(|_| None).collect();
    for wave in waves(&changed) {
        let found = wave.par_iter().with_max_len(1).map(|i| {
            check_interrupted()?;
            let c = &changed[*i];
            let values =
                (after.floats(c.parameter, &new[c.parameter])?, before.floats(c.parameter, &old[c.parameter])?);
            outcome(c, values, options, alpha).map_err(|what| Error::Numeric(format!("{}: {what}", c.parameter)))
        });
        for (i, outcome) in wave.iter().zip(found.collect::<Result<Vec<_>>>()?) {
            outcomes[*i] = Some(outcome);
            progress.event(Event::Step { loss: None });
        }
    }

    let mut summary = Summary { layers: Vec::new(), not_held: Vec::new(), residual: 0.0, alpha, parameters: 0 };
    let mut tensors = Vec::new();
    for (c, outcome) in changed.iter().zip(outcomes) {
        let parameter = c.parameter.to_string();
        match (c.held, outcome) {
            (Some((name, ..)), Some(Outcome::Held(factors))) => {
                let (change, residual) = (factors.squares.sqrt(), (factors.left / factors.squares).sqrt());
                summary.layers.push(Layer { parameter, name: name.into(), rank: factors.rank, change, residual });
                summary.parameters += factors.up.len() + factors.down.len() + 1;
                tensors.extend(encoded(name, c.shape, factors, alpha, options)?);
            }
            (_, Some(Outcome::NotHeld(change))) => summary.not_held.push(NotHeld { parameter, change }),
            _ => {}
        }
    }
    if summary.layers.is_empty() {
        return Err(Error::file(after.described(), nothing(&summary.not_held)));
    }
    summary.residual = Summary::residual(&summary.layers, &summary.not_held);
    let convolutions = changed.iter().any(|c| c.held.is_some() && c.shape[2..].iter().any(|side| *side > 1));
    let mut all = own_metadata(&about, path, options, &summary, convolutions);
    all.extend(metadata.clone());
    let tensors = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let bytes = Cow::Borrowed(bytes.as_slice());
        TensorBytes { name, dtype: *dtype, shape, bytes }
    });
    write_tensors(path, tensors.collect(), &all)?;
    Ok(summary)
}

/// The parameters whose bytes or types differ, by name.
fn changed<'a>(
    names: &'a BTreeMap<String, String>,
    (before, old): (&UnetFiles, &'a Views<'a>),
    (after, new): (&UnetFiles, &'a Views<'a>),
) -> Result<Vec<Changed<'a>>> {
    let other = |what: String| {
        let remedy = format!("it is no edited version of {}, name the model that it was made from", before.described());
        Error::file(after.described(), format!("{what}; {remedy}"))
    };
    if let Some(name) = old.keys().find(|name| !new.contains_key(*name)) {
        return Err(other(format!("has no tensor named {name}")));
    }
    if let Some(name) = new.keys().find(|name| !old.contains_key(*name)) {
        return Err(other(format!("has a tensor {name}, which the base has not")));
    }
    let compare = |(parameter, (was, was_in)): (&'a String, &'a (TensorView<'a>, &'a TensorFile))| {
        check_interrupted()?;
        let (is, is_in) = &new[parameter];
        let shape = was.shape();
        if shape != is.shape() {
            return Err(other(format!("{parameter} is {:?}, but {shape:?} in the base", is.shape())));
        }
        let same = was.dtype() == is.dtype() && was.data() == is.data();
        was_in.release(was.data());
        is_in.release(is.data());
        Ok((!same).then(|| Changed { parameter, held: held(names, parameter, shape), shape }))
    };
    let found: Vec<_> = old.par_iter().map(compare).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// The name of the layer whose matrix or convolution this parameter is, and its size as a matrix.
fn held<'a>(names: &'a BTreeMap<String, String>, parameter: &str, shape: &[usize]) -> Option<(&'a str, usize, usize)> {
    let name = names.get(parameter.strip_suffix(".weight")?)?;
    match shape {
        [rows, inputs @ ..] if inputs.len() == 1 || inputs.len() == 3 => Some((name, *rows, inputs.iter().product())),
        _ => None,
    }
}

/// Which parameters are worked on together, the largest first.
fn waves(changed: &[Changed<'_>]) -> Vec<Vec<usize>> {
    let size = |i: &usize| changed[*i].shape.iter().product::<usize>();
    let mut order: Vec<usize> = (0..changed.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(size(i)));
    let mut waves: Vec<(usize, Vec<usize>)> = Vec::new();
    for i in order {
        match waves.last_mut() {
            Some((sum, wave)) if *sum + size(&i) <= AT_A_TIME => {
                *sum += size(&i);
                wave.push(i);
            }
            _ => waves.push((size(&i), vec![i])),
        }
    }
    waves.into_iter().map(|(_, wave)| wave).collect()
}

fn outcome(
    c: &Changed<'_>,
    (after, before): (Vec<f32>, Vec<f32>),
    options: &Options,
    alpha: usize,
) -> std::result::Result<Outcome, String> {
    let wide = |x: &f32| f64::from(*x);
    let norm = after.iter().map(|x| wide(x) * wide(x)).sum::<f64>().sqrt();
    let mut change: Vec<f64> = after.iter().zip(&before).map(|(a, b)| (wide(a) - wide(b)) * options.strength).collect();
    drop((after, before));
    if change.iter().all(|x| *x == 0.0) {
        return Ok(Outcome::Same);
    }
    let Some((_, rows, columns)) = c.held else {
        return Ok(Outcome::NotHeld(change.iter().map(|x| x * x).sum::<f64>().sqrt()));
    };
    let rank = options.rank.limit(rows, columns);
    let tolerance = ROUNDING * norm * options.strength.abs();
    let wanted = Wanted { rank, tolerance, alpha: alpha as f64, half: options.half };
    Ok(Outcome::Held(factor(&mut change, (rows, columns), &wanted)?))
}

/// A tensor to be written.
type Encoded = (String, Dtype, Vec<usize>, Vec<u8>);

/// The three tensors of a layer. Of a convolution, `down` has the kernel and `up` is 1x1.
fn encoded(name: &str, shape: &[usize], factors: Factors, alpha: usize, options: &Options) -> Result<[Encoded; 3]> {
    let Factors { rank, up, down, .. } = factors;
    let dtype = if options.half { Dtype::F16 } else { Dtype::F32 };
    let ones = vec![1; shape.len() - 2];
    let up_shape = [&[shape[0], rank], &ones[..]].concat();
    let down_shape = [&[rank], &shape[1..]].concat();
    let tensor = |suffix: &str, values: Vec<f32>, shape: Vec<usize>, dtype: Dtype| -> Result<Encoded> {
        let name = format!("{name}.{suffix}");
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
        let bytes = encode(&tensor, dtype).map_err(|what| Error::Numeric(format!("{name} {what}")))?;
        Ok((name, dtype, shape, bytes))
    };
    Ok([
        tensor("lora_up.weight", up, up_shape, dtype)?,
        tensor("lora_down.weight", down, down_shape, dtype)?,
        tensor("alpha", vec![alpha as f32], Vec::new(), Dtype::F32)?,
    ])
}

/// Why there is no LoRA.
fn nothing(not_held: &[NotHeld]) -> String {
    match not_held {
        [] => "has the same UNet as the base: there is nothing for a LoRA to hold".into(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let what = "no matrix changed, only parameters that no LoRA can hold";
            format!("{what} ({}{more}); save the model whole, or as a patch", first.parameter)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_worked_on_at_a_time_and_the_largest_first() {
        let shapes = [[1000, 100], [8000, 4000], [4000, 4000], [2000, 100]];
        let changed: Vec<_> = shapes.iter().map(|shape| Changed { parameter: "", held: None, shape }).collect();
        assert_eq!(waves(&changed), [vec![1], vec![2, 3, 0]]);
        assert_eq!(waves(&[]), Vec::<Vec<usize>>::new());
    }
}
