//! Several concepts erased at once, and what the user asks to preserve: one [`Concept`] made of them.

use super::{Concept, Kind, RetainPrompt, Verify, normal};
use crate::{Error, Result};
use std::collections::HashSet;

/// Words that say nothing about what a prompt shows.
#[rustfmt::skip]
const FUNCTION_WORDS: [&str; 30] = [
    "a", "an", "the", "of", "in", "on", "at", "with", "without", "by", "for", "and", "or", "to", "from", "as", "its", "his",
    "her", "is", "are", "who", "that", "this", "no", "not", "each", "other", "under", "over",
];

/// Frames that what is preserved is trained in; a name that already has one keeps it.
const TRAINED: [&str; 4] = ["{}", "a photo of {}", "a picture of {}", "a drawing of {}"];
/// Frames that it is verified in.
const VERIFIED: [&str; 2] = ["an image of {}", "a painting of {}"];
/// Forget prompts (and as many verification prompts) in which a name that is preserved takes the concept's place.
const IN_PLACE: usize = 24;
/// A name has at most so many words; what has more is a prompt.
const NAME_WORDS: usize = 3;

/// A verification prompt for something that the user asked to preserve.
#[derive(Debug, Clone, PartialEq)]
pub struct PreservePrompt {
    /// Index of what it is for in [`Concept::preserve`].
    pub entry: usize,
    /// The prompt.
    pub prompt: String,
}

impl Concept {
    /// One concept made of several, and of names or prompts that must stay.
    ///
    /// Forget prompts take turns, each with its anchor, and shorter lists start again, so that each concept has the same
    /// share of the data. A prompt that must stay for one concept, or stands in the place of one, but mentions another, is
    /// left out; a prompt mentions a concept if it holds its name, or a word that the concept's prompts hold and none of those
    /// that it keeps. Verification prompts that anything is trained on are left out too. Each concept is counted by its own
    /// prompts and labels ([`Concept::each`]).
    ///
    /// A name that is preserved (up to three words, no article) also takes the concept's place in some of its own prompts: there
    /// its neighbours suffer most.
    ///
    /// # Errors
    /// If a concept is given twice, two stand in each other's way, or something is to be both erased and preserved.
    pub fn together(concepts: Vec<Concept>, preserve: &[String]) -> Result<Concept> {
        let Some(first) = concepts.first() else { return Err(Error::usage("there is no concept to erase")) };
        for (i, concept) in concepts.iter().enumerate() {
            if concepts[..i].iter().any(|other| other.slug() == concept.slug()) {
                return Err(Error::usage(format!("--concept {} is given twice", concept.name)));
            }
        }
        let mut whole = if concepts.len() == 1 { first.clone() } else { join(concepts)? };
        if !preserve.is_empty() {
            whole.keep(preserve)?;
        }
        Ok(whole)
    }

    /// The concepts that this one is made of: itself, or several.
    pub fn each(&self) -> &[Concept] {
        if self.parts.is_empty() { std::slice::from_ref(self) } else { &self.parts }
    }

    /// Adds prompts for names or prompts that must stay.
    fn keep(&mut self, preserve: &[String]) -> Result<()> {
        let mut retain: HashSet<String> = self.retain.iter().map(|p| normal(p)).collect();
        let mut trained: HashSet<String> =
            self.forget.iter().chain(&self.anchors).chain(&self.retain).map(|p| normal(p)).collect();
        let forgotten: HashSet<String> = self.forgotten().map(|p| normal(p)).collect();
        let held_out: HashSet<String> = self.verify.retain.iter().map(|r| normal(&r.prompt)).collect();
        let mut verify = Vec::new();
        for entry in preserve {
            if let Some(concept) = self.each().iter().find(|concept| holds(&words(entry), &words(&concept.name))) {
                return Err(Error::usage(format!(
                    "--preserve {entry:?}: «{}» is to be erased, so it cannot be preserved too; leave one of them out",
                    concept.name
                )));
            }
            for prompt in training_prompts(self, entry) {
                let text = normal(&prompt);
                if !forgotten.contains(&text) && !held_out.contains(&text) && retain.insert(text.clone()) {
                    trained.insert(text);
                    self.retain.push(prompt);
                }
            }
        }
        for (entry, text) in preserve.iter().enumerate() {
            let before = verify.len();
            for prompt in verification_prompts(self, text) {
                let normal = normal(&prompt);
                if !trained.contains(&normal) && !forgotten.contains(&normal) {
                    verify.push(PreservePrompt { entry, prompt });
                }
            }
            if verify.len() == before {
                return Err(Error::usage(format!("--preserve {text:?}: the concept's own prompts already say this")));
            }
        }
        // names in turn, so that any number of pictures is a fair sample
        let mut counts = vec![0; preserve.len()];
        let mut turns: Vec<(usize, PreservePrompt)> = Vec::with_capacity(verify.len());
        for prompt in verify {
            turns.push((counts[prompt.entry], prompt.clone()));
            counts[prompt.entry] += 1;
        }
        turns.sort_by_key(|(turn, prompt)| (*turn, prompt.entry));
        self.verify.preserve = turns.into_iter().map(|(_, prompt)| prompt).collect();
        self.preserve = preserve.to_vec();
        Ok(())
    }

    /// Every prompt that shows the concept.
    fn forgotten(&self) -> impl Iterator<Item = &String> {
        self.forget.iter().chain(&self.verify.forget).chain(&self.verify.synonyms)
    }
}

fn join(mut parts: Vec<Concept>) -> Result<Concept> {
    let mentions: Vec<Mention> = parts.iter().map(Mention::new).collect();
    let forgotten: HashSet<String> = parts.iter().flat_map(Concept::forgotten).map(|p| normal(p)).collect();
    // whether a prompt of one concept is about another
    let of_another = |own: usize, prompt: &str| {
        let mut others = mentions.iter().enumerate().filter(|(other, _)| *other != own);
        others.find(|(_, mention)| mention.is_in(prompt)).map(|(other, _)| other)
    };
    let mut pairs = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let all = part.forget.iter().zip(&part.anchors);
        let kept: Vec<(&String, &String)> =
            all.filter(|(_, anchor)| of_another(i, anchor).is_none() && !forgotten.contains(&normal(anchor))).collect();
        if kept.is_empty() {
            let other = part.anchors.iter().find_map(|anchor| of_another(i, anchor)).unwrap_or(i);
            return Err(Error::usage(format!(
                "all that stands in the place of «{}» shows «{}», which is to be erased too; erase one after the other, or write a \
                 concept file with other anchors",
                part.name, parts[other].name
            )));
        }
        pairs.push(kept);
    }
    let turns = pairs.iter().map(Vec::len).max().unwrap_or(0);
    let pairs: Vec<(&String, &String)> =
        (0..turns).flat_map(|turn| pairs.iter().map(move |kept| kept[turn % kept.len()])).collect();
    let forget: Vec<String> = pairs.iter().map(|pair| pair.0.clone()).collect();
    let anchors: Vec<String> = pairs.iter().map(|pair| pair.1.clone()).collect();

    let mut retain = Vec::new();
    let mut trained: HashSet<String> = forget.iter().chain(&anchors).map(|p| normal(p)).collect();
    let mut seen = HashSet::new();
    for (i, prompt) in in_turn(&parts, |part| &part.retain) {
        let text = normal(prompt);
        if of_another(i, prompt).is_none() && !forgotten.contains(&text) && seen.insert(text.clone()) {
            trained.insert(text);
            retain.push(prompt.clone());
        }
    }
    let labels: Vec<String> = parts.iter().flat_map(|part| &part.detect.labels).cloned().collect();
    let mut verify_retain: Vec<RetainPrompt> = Vec::new();
    for (i, kept) in in_turn(&parts, |part| &part.verify.retain) {
        let text = normal(&kept.prompt);
        let stated = kept.labels.iter().any(|label| labels.contains(label) && !parts[i].detect.labels.contains(label));
        let free = of_another(i, &kept.prompt).is_none() && !forgotten.contains(&text) && !stated;
        if free && !trained.contains(&text) && seen.insert(text) {
            verify_retain.push(kept.clone());
        }
    }
    if verify_retain.is_empty() {
        return Err(Error::usage(
            "no verification prompt for everything else is left: each is trained on for another concept",
        ));
    }
    for part in &mut parts {
        part.verify.forget.retain(|prompt| !trained.contains(&normal(prompt)));
        part.verify.synonyms.retain(|prompt| !trained.contains(&normal(prompt)));
        if part.verify.forget.is_empty() {
            let what = "every verification prompt of it is trained on for another concept; erase one after the other";
            return Err(Error::usage(format!("«{}»: {what}", part.name)));
        }
    }
    let all = |of: fn(&Concept) -> &Vec<String>| in_turn(&parts, of).into_iter().map(|(_, p)| p.clone()).collect();
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let content = parts.iter().any(|part| part.kind == Kind::Content);
    Ok(Concept {
        name: names.join(" + "),
        kind: if content { Kind::Content } else { parts[0].kind },
        model: None,
        verify: Verify {
            forget: all(|part| &part.verify.forget),
            synonyms: all(|part| &part.verify.synonyms),
            retain: verify_retain,
            preserve: Vec::new(),
        },
        detect: super::Detect { labels },
        forget,
        anchors,
        retain,
        preserve: Vec::new(),
        parts,
    })
}

/// The first of each list, then the second of each, and so on, with the number of the list.
fn in_turn<T>(parts: &[Concept], of: impl Fn(&Concept) -> &Vec<T>) -> Vec<(usize, &T)> {
    let longest = parts.iter().map(|part| of(part).len()).max().unwrap_or(0);
    let of = &of;
    let turn = |turn: usize| parts.iter().enumerate().filter_map(move |(i, part)| Some((i, of(part).get(turn)?)));
    (0..longest).flat_map(turn).collect()
}

/// By what a prompt is seen to be about a concept.
struct Mention {
    name: Vec<String>,
    words: HashSet<String>,
}

impl Mention {
    fn new(concept: &Concept) -> Self {
        let kept = concept.verify.retain.iter().map(|retain| &retain.prompt);
        let kept = concept.anchors.iter().chain(&concept.retain).chain(kept);
        let kept: HashSet<String> = kept.flat_map(|prompt| words(prompt)).collect();
        let own = concept.forgotten().flat_map(|prompt| words(prompt));
        let own = own.filter(|word| !kept.contains(word) && !FUNCTION_WORDS.contains(&word.as_str()));
        Self { name: words(&concept.name), words: own.collect() }
    }

    fn is_in(&self, prompt: &str) -> bool {
        let prompt = words(prompt);
        prompt.iter().any(|word| self.words.contains(word)) || holds(&prompt, &self.name)
    }
}

/// Whether these words stand there in this order.
fn holds(text: &[String], phrase: &[String]) -> bool {
    !phrase.is_empty() && text.windows(phrase.len()).any(|part| part == phrase)
}

/// The words of a text in lower case.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn is_name(entry: &str) -> bool {
    let words = words(entry);
    words.len() <= NAME_WORDS && words.first().is_some_and(|first| !["a", "an", "the"].contains(&first.as_str()))
}

/// `entry` without the frame that it may have already.
fn unframed(entry: &str) -> &str {
    let frames = TRAINED.iter().chain(&VERIFIED).filter_map(|frame| frame.strip_suffix("{}"));
    frames.filter(|frame| !frame.is_empty()).find_map(|frame| entry.strip_prefix(frame)).unwrap_or(entry)
}

fn training_prompts(concept: &Concept, entry: &str) -> Vec<String> {
    let framed = TRAINED[1..].iter().map(|frame| frame.replace("{}", unframed(entry)));
    let in_place = in_place(concept, entry, |part| &part.forget);
    std::iter::once(entry.to_string()).chain(framed).chain(in_place).collect()
}

fn verification_prompts(concept: &Concept, entry: &str) -> Vec<String> {
    let framed = VERIFIED.iter().map(|frame| frame.replace("{}", unframed(entry)));
    let in_place = in_place(concept, entry, |part| &part.verify.forget);
    in_place.into_iter().chain(framed.filter(|prompt| prompt != entry)).collect()
}

/// A name that is preserved, in the place of each concept in its own prompts.
fn in_place(concept: &Concept, entry: &str, of: impl Fn(&Concept) -> &Vec<String>) -> Vec<String> {
    if !is_name(entry) {
        return Vec::new();
    }
    let parts = concept.each();
    let share = IN_PLACE.div_ceil(parts.len());
    let replaced = |part: &Concept| -> Vec<String> {
        let all = of(part).iter().filter_map(|prompt| crate::concept::replaced(prompt, &part.name, entry));
        all.take(share).collect()
    };
    parts.iter().flat_map(replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const CAR: &str = "name = 'old car'\nkind = 'style'\nforget = ['a old car', 'old car, red', 'an old car by night']\n\
        anchors = ['a tree', 'a red ship', 'a tree by night']\nretain = ['', 'a house', 'a blue ship', 'a bus']\n\
        [verify]\nforget = ['my old car']\nsynonyms = ['a banger']\n\
        retain = [{ prompt = 'a road' }, { prompt = 'the ship' }, { prompt = 'a boat' }, { prompt = 'a lake', labels = ['is: ship'] }]\n\
        [detect]\nlabels = ['is: car']";
    const SHIP: &str = "name = 'ship'\nkind = 'content'\nforget = ['a ship']\nanchors = ['a raft']\n\
        retain = ['', 'a house', 'a banger', 'a road', 'a river']\n[verify]\nforget = ['the ship']\nsynonyms = ['a boat']\n\
        retain = [{ prompt = 'an old car' }, { prompt = 'a hill' }]\n[detect]\nlabels = ['is: ship']";

    fn concept(text: &str) -> Concept {
        Concept::parse(text, Path::new("x.toml")).unwrap()
    }

    fn both() -> Concept {
        Concept::together(vec![concept(CAR), concept(SHIP)], &[]).unwrap()
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_alone_stays_as_it_is() {
        assert_eq!(Concept::together(vec![concept(CAR)], &[]).unwrap(), concept(CAR));
        assert_eq!(concept(CAR).each(), [concept(CAR)]);
        assert!(Concept::together(vec![], &[]).is_err());
    }

    #[test]
    fn prompts_take_turns_and_what_mentions_another_is_left_out() {
        let joint = both();
        assert_eq!(
            (joint.name.as_str(), joint.kind, joint.slug().as_str()),
            ("old car + ship", Kind::Content, "old-car-ship")
        );
        // «a red ship» cannot stand in the car's place; the ship's one prompt comes as often as the car's two
        assert_eq!(joint.forget, ["a old car", "a ship", "an old car by night", "a ship"]);
        assert_eq!(joint.anchors, ["a tree", "a raft", "a tree by night", "a raft"]);
        // «a blue ship» and «a banger» are to go
        assert_eq!(joint.retain, ["", "a house", "a bus", "a road", "a river"]);
        // «a road» is trained on, «the ship» and «a boat» are the ship, «a lake» should show one, «an old car» is the other
        let kept: Vec<&str> = joint.verify.retain.iter().map(|r| r.prompt.as_str()).collect();
        assert_eq!(kept, ["a hill"]);
        assert_eq!(joint.detect.labels, ["is: car", "is: ship"]);
        let names: Vec<&str> = joint.each().iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["old car", "ship"]);
        assert_eq!(joint.verify.forget, ["my old car", "the ship"]);
    }

    #[test]
    fn concepts_that_stand_in_each_others_way_are_refused() {
        let message = |concepts| Concept::together(concepts, &[]).unwrap_err().to_string();
        assert!(message(vec![concept(SHIP), concept(SHIP)]).contains("--concept ship is given twice"));
        let rival = CAR.replace("'a tree'", "'a ship'").replace("a tree by night", "a ship by night");
        let message = message(vec![concept(&rival), concept(SHIP)]);
        assert!(message.contains("in the place of «old car» shows «ship»"), "{message}");
    }

    #[test]
    fn what_is_preserved_is_trained_and_verified_by_different_prompts() {
        let preserve = strings(&["bike", "a photo of two dogs in a park"]);
        let kept = Concept::together(vec![concept(CAR)], &preserve).unwrap();
        let added = &kept.retain[concept(CAR).retain.len()..];
        let bike = [
            "bike",
            "a photo of bike",
            "a picture of bike",
            "a drawing of bike",
            "a bike",
            "bike, red",
            "an bike by night",
        ];
        assert_eq!(added[..7], bike);
        let dogs =
            ["a photo of two dogs in a park", "a picture of two dogs in a park", "a drawing of two dogs in a park"];
        assert_eq!(added[7..], dogs);
        let verify: Vec<(usize, &str)> = kept.verify.preserve.iter().map(|p| (p.entry, p.prompt.as_str())).collect();
        let expected = [
            (0, "my bike"),
            (1, "an image of two dogs in a park"),
            (0, "an image of bike"),
            (1, "a painting of two dogs in a park"),
            (0, "a painting of bike"),
        ];
        assert_eq!(verify, expected);
        assert_eq!(kept.preserve, preserve);
        let message = Concept::together(vec![concept(CAR)], &strings(&["my Old car"])).unwrap_err().to_string();
        assert!(message.contains("«old car» is to be erased"), "{message}");
    }
}
