//! Words that the model draws a concept for although no prompt names them: found in the demo model's vocabulary.

#![allow(clippy::unwrap_used)]

use erase_concept::concept::Concept;
use erase_concept::diffusion::Generator;
use erase_concept::erase::other_words::{OtherWord, search};
use erase_concept::erase::{Data, Settings};
use erase_concept::progress::Silent;
use erase_concept::sd::StableDiffusion;

fn demo() -> StableDiffusion {
    let files = erase_concept::hub::resolve("demo").unwrap();
    erase_concept::checkpoint::load_model(&files).unwrap().model
}

fn tried(model: &StableDiffusion, concept: &Concept, seed: u64) -> Vec<OtherWord> {
    let mut settings = Settings::preset("balanced").unwrap();
    settings.data.forget = 12;
    let forget = Data::sample_forget(model, concept, &settings, seed, &mut Silent).unwrap();
    search(model, concept, &forget, &settings, &mut Generator::new(seed), &mut Silent).unwrap()
}

/// The reference's list of synonyms, of which no training prompt of the concept has one.
#[test]
fn synonyms_are_found_and_nothing_else() {
    let model = demo();
    for (name, seed, synonyms) in [
        ("circle", 0, &["disc", "dot"][..]),
        ("star", 1, &["asterisk"]),
        ("ring", 0, &["donut", "hoop"]),
        ("striped", 0, &[]),
        ("red", 0, &[]),
    ] {
        let concept = Concept::resolve(name, None).unwrap();
        let words = tried(&model, &concept, seed);
        println!("{name}: {words:?}");
        let mut found: Vec<&str> =
            words.iter().filter(|word| word.means_the_concept()).map(|word| word.word.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, synonyms, "{name}: {words:?}");
        assert!(words.len() > found.len(), "{name}: nothing else was tried");
        assert!(words.is_sorted_by(|a, b| a.distance <= b.distance));
    }
}

#[test]
fn a_word_that_must_stay_is_not_tried_and_a_name_that_no_prompt_holds_finds_nothing() {
    let model = demo();
    let mut concept = Concept::resolve("circle", None).unwrap();
    concept.retain.push("a disc on a table".into());
    let words = tried(&model, &concept, 0);
    assert!(words.iter().all(|word| word.word != "disc") && words[0].word == "dot", "{words:?}");
    concept.name = "roundness".into();
    assert_eq!(tried(&model, &concept, 0), []);
}
