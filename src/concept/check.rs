//! What a concept must be beyond its types: lists that are not empty, prompts that stand on one side alone.

use super::{Concept, Kind, RetainPrompt, folded};
use std::cmp::Ordering;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Characters of a prompt that a message shows.
const SHOWN: usize = 80;

/// Checks lengths, empty lists and prompts on both sides.
///
/// # Errors
/// In words, with the line in `text`.
pub(super) fn check(concept: &Concept, text: &str) -> Result<(), String> {
    if concept.name.trim().is_empty() {
        return Err("name is empty".into());
    }
    let [forget, anchors, retain] = [&concept.forget, &concept.anchors, &concept.retain].map(|list| List::Plain(list));
    let named = [List::Plain(&concept.verify.forget), List::Plain(&concept.verify.synonyms)];
    let kept = List::Retain(&concept.verify.retain);
    let lists = [
        ("forget", forget),
        ("retain", retain),
        ("verify.forget", named[0]),
        ("verify.synonyms", named[1]),
        ("verify.retain", kept),
    ];
    if let Some((name, _)) = lists.iter().find(|(name, list)| list.len() == 0 && *name != "verify.synonyms") {
        return Err(format!("{name} is empty; it needs at least one prompt"));
    }
    if forget.len() != anchors.len() {
        let (forget, anchors) = (forget.len(), anchors.len());
        return Err(format!("forget has {forget} prompts but anchors has {anchors}; anchors[i] replaces forget[i]"));
    }
    for (name, list) in lists {
        if let Some(prompt) = Sorted::new(list).twice() {
            return Err(format!("{}{name} has the prompt {} twice", line(text, prompt), shown(prompt)));
        }
        if name != "retain" && list.iter().any(|prompt| prompt.trim().is_empty()) {
            return Err(format!("{name} has an empty prompt; only retain may have one"));
        }
    }
    let sorted = Sorted::new(forget);
    for (name, list) in [("anchors", anchors), ("retain", retain)] {
        if let Some(prompt) = sorted.first_of(list) {
            let (line, prompt) = (line(text, prompt), shown(prompt));
            return Err(format!("{line}the prompt {prompt} is both in forget and in {name}"));
        }
    }
    drop(sorted);
    for (name, list) in &lists[2..] {
        let held_out = Sorted::new(*list);
        for (other, prompts) in [("forget", forget), ("anchors", anchors), ("retain", retain)] {
            if let Some(prompt) = held_out.first_of(prompts) {
                let (line, prompt) = (line(text, prompt), shown(prompt));
                let what = "verification prompts must not be trained on";
                return Err(format!("{line}the prompt {prompt} is both in {name} and in {other}; {what}"));
            }
        }
    }
    for list in named {
        if let Some(prompt) = Sorted::new(list).first_of(kept) {
            let (line, prompt) = (line(text, prompt), shown(prompt));
            return Err(format!("{line}the prompt {prompt} is to be both forgotten and kept"));
        }
    }
    if concept.detect.labels.is_empty() && matches!(concept.kind, Kind::Object | Kind::Content) {
        return Err(format!("detect.labels is empty; kind {} needs a label to count", concept.kind));
    }
    Ok(())
}

/// The line on which a prompt last stands, for messages; nothing if it stands there in other words.
fn line(text: &str, prompt: &str) -> String {
    if prompt.chars().nth(SHOWN).is_some() {
        return String::new();
    }
    let quoted = format!("{prompt:?}");
    let last = text.lines().enumerate().filter(|(_, line)| line.contains(&quoted)).last();
    last.map_or_else(String::new, |(i, _)| format!("line {}: ", i + 1))
}

fn shown(prompt: &str) -> String {
    match prompt.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &prompt[..end]),
        None => format!("{prompt:?}"),
    }
}

/// Prompts, wherever they lie.
#[derive(Clone, Copy)]
enum List<'a> {
    Plain(&'a [String]),
    Retain(&'a [RetainPrompt]),
}

impl<'a> List<'a> {
    fn len(self) -> usize {
        match self {
            Self::Plain(list) => list.len(),
            Self::Retain(list) => list.len(),
        }
    }

    fn get(self, i: usize) -> &'a str {
        match self {
            Self::Plain(list) => &list[i],
            Self::Retain(list) => &list[i].prompt,
        }
    }

    fn iter(self) -> impl Iterator<Item = &'a str> {
        (0..self.len()).map(move |i| self.get(i))
    }
}

/// The prompts of a list in an order in which they are found, in eight bytes each: hashes and places.
struct Sorted<'a> {
    list: List<'a>,
    places: Vec<(u32, u32)>,
}

impl<'a> Sorted<'a> {
    fn new(list: List<'a>) -> Self {
        let mut places: Vec<(u32, u32)> = Vec::with_capacity(list.len());
        places.extend(list.iter().zip(0..).map(|(prompt, place)| (hash(prompt), place)));
        let text = |place: u32| folded(list.get(place as usize));
        places
            .sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| text(a.1).cmp(text(b.1))).then_with(|| a.1.cmp(&b.1)));
        Self { list, places }
    }

    /// The first prompt that was there before.
    fn twice(&self) -> Option<&'a str> {
        let text = |place: u32| folded(self.list.get(place as usize));
        let pairs = self.places.windows(2).filter(|pair| pair[0].0 == pair[1].0 && text(pair[0].1).eq(text(pair[1].1)));
        pairs.map(|pair| pair[1].1).min().map(|place| self.list.get(place as usize))
    }

    /// The first prompt of another list that is in this one too.
    fn first_of<'b>(&self, other: List<'b>) -> Option<&'b str> {
        other.iter().find(|prompt| {
            let hash = hash(prompt);
            let order = |place: &(u32, u32)| -> Ordering {
                place.0.cmp(&hash).then_with(|| folded(self.list.get(place.1 as usize)).cmp(folded(prompt)))
            };
            self.places.binary_search_by(order).is_ok()
        })
    }
}

fn hash(prompt: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    folded(prompt).for_each(|c| c.hash(&mut hasher));
    hasher.finish() as u32
}
