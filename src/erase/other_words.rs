//! Other words for the concept: which words of the vocabulary does the model itself draw the concept for?
//!
//! A list of forget prompts names the concept in the words that its author thought of. The model may know more («disc» and
//! «dot» for a circle), and what is trained on one word moves the others only part of the way. So each candidate is put in
//! the name's place, and the base predicts the noise of pictures of the concept under that prompt, under the concept's, under
//! the anchor's and without the name:
//!
//! ```text
//! d(word) = sum ||eps(x_t, word) - eps(x_t, concept)||^2,   distance(word) = d(word) / min(d(anchor), d(no word))
//! ```
//!
//! is near 0 for a word that means the same and near 1 (or beyond) for one that says nothing or something else: a diffusion
//! classifier (Li et al. 2023) asked about words. In the demo model it is below 0.05 for synonyms and above 0.5 for all others.
//! (What a noisy picture shows needs no word: the anchor alone as the unit made every word that says nothing a word for «red».) What is found joins the forget prompts. Words of the retain prompts and of the anchors
//! are never candidates, as the user says that these stay; verification prompts are never trained on, as everywhere.

use super::batch::Batch;
use super::data::Latents;
use super::gradient::{self, narrow};
use super::memory::Thrift;
use super::settings::Settings;
use crate::Result;
use crate::concept::{Concept, normal, replaced};
use crate::diffusion::{Generator, Schedule};
use crate::progress::{Event, Progress, check_interrupted};
use crate::sd::{StableDiffusion, Unet};
use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A candidate up to this distance is another word for the concept. Low, as a word that is taken for the concept by mistake is
/// lost to the model, and one that is missed still follows part of the way.
pub const THRESHOLD: f64 = 0.2;
/// Noisy latents that each candidate is tried on.
const PROBES: usize = 8;
/// Candidates that the text encoder reads; if the vocabulary has more words, those whose token is nearest are taken.
const READ: usize = 512;

/// A candidate and how far it is from the concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherWord {
    /// The word.
    pub word: String,
    /// 0: drawn as the concept is; 1: as far from it as the anchor or as no word, whichever is nearer.
    pub distance: f64,
    /// The concept that it was tried for, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

impl OtherWord {
    /// Whether the model draws the concept for it.
    pub fn means_the_concept(&self) -> bool {
        self.distance <= THRESHOLD
    }
}

/// Tries the `settings.other_words` words of the vocabulary that the text encoder finds most like the concept's name; nearest
/// first. Empty if no forget prompt holds the name. Of several concepts, one after the other.
pub fn search(
    model: &StableDiffusion,
    concept: &Concept,
    forget: &Latents,
    settings: &Settings,
    noise: &mut Generator,
    progress: &mut dyn Progress,
) -> Result<Vec<OtherWord>> {
    let mut found = Vec::new();
    for part in concept.each() {
        let of = (!concept.parts.is_empty()).then_some(&part.name);
        let words = search_one(model, concept, &part.name, forget, settings, noise, progress)?;
        found.extend(words.into_iter().map(|word| OtherWord { of: of.cloned(), ..word }));
    }
    Ok(found)
}

/// The search for one `name` among the prompts of `concept`.
fn search_one(
    model: &StableDiffusion,
    concept: &Concept,
    name: &str,
    forget: &Latents,
    settings: &Settings,
    noise: &mut Generator,
    progress: &mut dyn Progress,
) -> Result<Vec<OtherWord>> {
    let named: Vec<usize> =
        (0..concept.forget.len()).filter(|i| replaced(&concept.forget[*i], name, "").is_some()).collect();
    let Some(first) = named.iter().min_by_key(|i| concept.forget[**i].len()).map(|i| &concept.forget[*i]) else {
        return Ok(Vec::new());
    };
    let candidates = nearest(model, concept, name, first, settings.other_words)?;
    let rows: Vec<usize> =
        (0..forget.len()).filter(|row| named.contains(&forget.of_prompt[*row])).take(PROBES).collect();
    if candidates.is_empty() || rows.is_empty() {
        return Ok(Vec::new());
    }
    progress.event(Event::Stage { name: "looking for other words", steps: candidates.len() });
    let schedule = Schedule::new(&model.scheduler)?;
    let unet = model.unet()?;
    let batch = probes(forget, &rows, &schedule, noise)?;
    let of = |list: &[String]| batch.prompts.iter().map(|prompt| list[*prompt as usize].clone()).collect::<Vec<_>>();
    let prompts = of(&concept.forget);
    let with = |word: &str| prompts.iter().filter_map(|prompt| replaced(prompt, name, word)).collect::<Vec<_>>();
    let predict = |texts: &[String]| predict(model, &unet, &batch, texts);
    let own = predict(&prompts)?;
    let from_own = |texts: &[String]| distance(&predict(texts)?, &own);
    let unit = from_own(&of(&concept.anchors))?.min(from_own(&with(""))?);
    let mut found = Vec::with_capacity(candidates.len());
    for word in candidates {
        check_interrupted()?;
        let distance = from_own(&with(&word))? / unit.max(f64::MIN_POSITIVE);
        found.push(OtherWord { word, distance, of: None });
        progress.event(Event::Step { loss: None });
    }
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    Ok(found)
}

/// The forget latents a second time with other words in their prompts, in turn, and the anchor of each prompt. Prompts that
/// are verification prompts are left out.
pub fn widen(concept: &Concept, forget: &Latents, words: &[OtherWord]) -> Result<(Latents, Vec<String>)> {
    let mut wide = forget.clone();
    let mut anchors = concept.anchors.clone();
    let words: Vec<&OtherWord> = words.iter().filter(|word| word.means_the_concept()).collect();
    if words.is_empty() {
        return Ok((wide, anchors));
    }
    let held_out = concept.verify.forget.iter().chain(&concept.verify.synonyms);
    let held_out: HashSet<String> = held_out.map(|prompt| normal(prompt)).collect();
    let mut rows = Vec::new();
    let mut turn = 0;
    for row in 0..forget.len() {
        let of = forget.of_prompt[row];
        let prompt = |turn: usize| {
            let word = words[turn % words.len()];
            let text = replaced(&forget.prompts[of], word.of.as_ref().unwrap_or(&concept.name), &word.word)?;
            (!held_out.contains(&normal(&text))).then_some(text)
        };
        let Some((at, text)) = (turn..turn + words.len()).find_map(|turn| Some((turn, prompt(turn)?))) else {
            continue;
        };
        turn = at + 1;
        let known = wide.prompts.iter().position(|known| *known == text);
        wide.of_prompt.push(known.unwrap_or(wide.prompts.len()));
        if known.is_none() {
            wide.prompts.push(text);
            anchors.push(concept.anchors[of].clone());
        }
        rows.push(row as u32);
    }
    if !rows.is_empty() {
        let index = Tensor::new(rows.as_slice(), forget.latents.device())?;
        wide.latents = Tensor::cat(&[&forget.latents, &forget.latents.index_select(&index, 0)?], 0)?;
    }
    Ok((wide, anchors))
}

/// The candidates: whole words of the vocabulary that no training prompt holds, nearest to the name first. How near is how
/// little a prompt's embedding changes when the word takes the name's place.
fn nearest(model: &StableDiffusion, concept: &Concept, name: &str, prompt: &str, count: usize) -> Result<Vec<String>> {
    let training = concept.forget.iter().chain(&concept.anchors).chain(&concept.retain);
    let known: HashSet<String> = training.flat_map(|prompt| words(prompt)).chain(words(name)).collect();
    let mut candidates: Vec<String> =
        model.tokenizer.words().into_iter().filter(|word| !known.contains(word)).collect();
    candidates.sort();
    if candidates.len() > READ {
        let ids = candidates.iter().map(|word| model.tokenizer.content_ids(word)).collect::<Result<Vec<_>>>()?;
        let own = model.text_encoder.mean_tokens(&[model.tokenizer.content_ids(name)?])?;
        let from = distances(&model.text_encoder.mean_tokens(&ids)?, &own)?;
        candidates = least(candidates, &from, READ);
    }
    if candidates.is_empty() {
        return Ok(candidates);
    }
    let texts: Vec<String> = candidates.iter().filter_map(|word| replaced(prompt, name, word)).collect();
    let from = distances(&model.embed(&texts)?.context, &model.embed(&[prompt])?.context)?;
    Ok(least(candidates, &from, count))
}

/// For each entry of `a` `(N, ..)`, `||a_n - b||^2` with `b` `(1, ..)`.
fn distances(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    Ok(a.broadcast_sub(b)?.sqr()?.flatten_from(1)?.sum(D::Minus1)?.to_vec1()?)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(f64::from((a - b)?.sqr()?.mean_all()?.to_scalar::<f32>()?))
}

/// The `count` of `items` with the least `value`, in that order.
fn least<T>(items: Vec<T>, value: &[f32], count: usize) -> Vec<T> {
    let mut order: Vec<(T, f32)> = items.into_iter().zip(value.iter().copied()).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.into_iter().take(count).map(|(item, _)| item).collect()
}

/// Latents of the concept under noise of all the later steps, where the text decides what a picture shows.
fn probes(forget: &Latents, rows: &[usize], schedule: &Schedule, noise: &mut Generator) -> Result<Batch> {
    let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    let latents = forget.latents.index_select(&Tensor::new(index, forget.latents.device())?, 0)?;
    let n = schedule.alphas_cumprod.len();
    let t: Vec<usize> = (0..rows.len()).map(|i| (n * (2 * i + 1 + rows.len()) / (3 * rows.len())).min(n - 1)).collect();
    let eps = noise.randn_tensor(latents.dims(), latents.device())?;
    Batch::new(schedule, &latents, &t, &eps, rows.iter().map(|row| forget.of_prompt[*row] as u32).collect())
}

fn predict(model: &StableDiffusion, unet: &Unet, batch: &Batch, texts: &[String]) -> Result<Tensor> {
    let conditions = model.embed(texts)?;
    let (_, _, height, width) = batch.noisy.dims4()?;
    let shares = gradient::shares(&[texts.len()], height * width, Thrift::default(), !batch.noisy.device().is_cpu());
    let part = |i: usize| {
        let [rows] = shares.rows([texts.len()], i);
        unet.forward(&narrow(&batch.noisy, &rows)?, &batch.t[rows.clone()], &conditions.narrow(&rows)?)
    };
    let mut parts = Vec::with_capacity(shares.count);
    shares.each(part, |part| {
        parts.push(part);
        Ok(())
    })?;
    Ok(Tensor::cat(&parts, 0)?)
}

/// The words of a text in lower case, without what stands around them.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const CONCEPT: &str = "name = 'old car'\nkind = 'style'\nforget = ['a Old car', 'old car, red', 'cars']\n\
        anchors = ['a tree', 'tree, red', 'trees']\nretain = ['a house']\n\
        [verify]\nforget = ['my old car']\nsynonyms = ['A  banger']\nretain = [{ prompt = 'a bus' }]\n[detect]\nlabels = []";

    fn word(word: &str, distance: f64) -> OtherWord {
        OtherWord { word: word.into(), distance, of: None }
    }

    #[test]
    fn forget_latents_come_a_second_time_with_what_was_found() {
        let concept = Concept::parse(CONCEPT, std::path::Path::new("x.toml")).unwrap();
        let latents = Tensor::arange(0f32, 5., &Device::Cpu).unwrap().reshape((5, 1, 1, 1)).unwrap();
        let forget =
            Latents { prompts: concept.forget.clone(), of_prompt: vec![1, 0, 2, 0, 1], latents, first_seed: 0 };
        // nothing that is far, and no verification prompt: «a banger»
        let words = [word("wreck", 0.01), word("banger", 0.02), word("house", 0.9)];
        let (wide, anchors) = widen(&concept, &forget, &words).unwrap();
        assert_eq!(wide.prompts, ["a Old car", "old car, red", "cars", "wreck, red", "a wreck", "banger, red"]);
        assert_eq!(anchors, ["a tree", "tree, red", "trees", "tree, red", "a tree", "tree, red"]);
        assert_eq!(wide.of_prompt, [1, 0, 2, 0, 1, 3, 4, 4, 5]);
        let values = wide.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, [0., 1., 2., 3., 4., 0., 1., 3., 4.]);
        assert_eq!(wide.len(), 9);
        let (same, anchors) = widen(&concept, &forget, &words[2..]).unwrap();
        assert_eq!((same.len(), anchors), (5, concept.anchors.clone()));
    }

    #[test]
    fn the_least_come_first() {
        assert_eq!(least(vec!['a', 'b', 'c'], &[3., 1., 2.], 2), ['b', 'c']);
    }
}
