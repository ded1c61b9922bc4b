//! The shipped concept files, concepts from templates, and each way in which a concept file can be wrong.
#![allow(clippy::unwrap_used)]

use erase_concept::concept::{Concept, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const DEMO: [(&str, Kind, &str, &[&str]); 6] = [
    ("circle", Kind::Object, "shape: circle", &["disc", "dot"]),
    ("dotted", Kind::Style, "style: dotted", &[]),
    ("red", Kind::Style, "color: red", &[]),
    ("ring", Kind::Object, "shape: ring", &["donut", "hoop"]),
    ("star", Kind::Object, "shape: star", &["asterisk"]),
    ("striped", Kind::Style, "style: striped", &[]),
];

fn words(prompt: &str) -> Vec<&str> {
    prompt.split_whitespace().collect()
}

fn shipped(name: &str) -> Concept {
    Concept::resolve(name, None).unwrap()
}

fn training(concept: &Concept) -> BTreeSet<&str> {
    [&concept.forget, &concept.anchors, &concept.retain].into_iter().flatten().map(String::as_str).collect()
}

fn verification(concept: &Concept) -> BTreeSet<&str> {
    let retain = concept.verify.retain.iter().map(|r| &r.prompt);
    concept.verify.forget.iter().chain(&concept.verify.synonyms).chain(retain).map(String::as_str).collect()
}

fn error(text: &str) -> String {
    Concept::parse(text, Path::new("mine.toml")).expect_err("a wrong file was accepted").to_string()
}

const SMALL: &str = r#"name = "x"
kind = "object"
forget = ["an x", "a big x"]
anchors = ["a y", "a big y"]
retain = ["a y", ""]
[verify]
forget = ["the x"]
synonyms = ["the ex"]
retain = [{ prompt = "the y", labels = ["shape: y"] }]
[detect]
labels = ["shape: x"]
"#;

/// `SMALL` with one line changed.
fn changed(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from} is not in the file");
    SMALL.replacen(from, to, 1)
}

#[test]
fn every_shipped_file_has_variety_and_holds_prompts_out() {
    assert_eq!(
        Concept::names(),
        ["church", "circle", "dotted", "nudity", "red", "ring", "star", "striped", "van-gogh"]
    );
    for name in Concept::names() {
        let concept = shipped(name);
        assert_eq!(concept.name, name);
        assert!(concept.retain.len() >= 100, "{name}: {} retain prompts", concept.retain.len());
        assert!(concept.forget.len() >= 20, "{name}: {} forget prompts", concept.forget.len());
        assert_eq!(concept.anchors.len(), concept.forget.len());
        assert!(training(&concept).is_disjoint(&verification(&concept)), "{name}");
        assert!(concept.retain.iter().any(String::is_empty), "{name}: the empty prompt is part of guidance");
    }
}

#[test]
fn demo_concepts_are_forgotten_kept_and_verified_by_the_right_words() {
    for (name, kind, label, synonyms) in DEMO {
        let concept = shipped(name);
        assert_eq!((concept.kind, concept.detect.labels.as_slice()), (kind, [label.to_string()].as_slice()));
        assert!((48..=64).contains(&concept.forget.len()));
        assert!(concept.retain.len() >= 200 && concept.verify.forget.len() >= 24 && concept.verify.retain.len() >= 128);
        let named = |prompt: &String| words(prompt).contains(&name);
        let meant = |prompt: &String| synonyms.iter().any(|s| words(prompt).contains(s));
        assert!(concept.forget.iter().chain(&concept.verify.forget).all(|p| named(p) && !meant(p)), "{name}");
        assert!(concept.verify.synonyms.iter().all(|p| meant(p) && !named(p)), "{name}");
        assert!(synonyms.is_empty() == concept.verify.synonyms.is_empty());
        assert!(synonyms.is_empty() || concept.verify.synonyms.len() >= 12);
        let kept: Vec<String> = concept.verify.retain.iter().map(|r| r.prompt.clone()).collect();
        for prompt in concept.anchors.iter().chain(&concept.retain).chain(&kept) {
            assert!(!named(prompt) && !meant(prompt), "{name}: {prompt:?} is not for keeping");
        }
        for (forget, anchor) in concept.forget.iter().zip(&concept.anchors) {
            let (with, without) = (words(forget), words(anchor));
            let others = |w: &[&str]| w.iter().filter(|x| **x != name).map(ToString::to_string).collect::<Vec<_>>();
            let missing = others(&with).iter().filter(|x| !without.contains(&x.as_str())).count();
            assert_eq!((missing, with.len()), (0, without.len()), "{forget:?} against {anchor:?}");
        }
        // one neighbour stands in for most, as several would be several targets for one prompt
        let mut neighbours: Vec<&str> = concept
            .anchors
            .iter()
            .zip(&concept.forget)
            .map(|(a, f)| words(a).into_iter().find(|w| !words(f).contains(w)).unwrap_or_default())
            .collect();
        neighbours.sort_unstable();
        let most = neighbours.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or(0);
        assert!(2 * most >= neighbours.len() && !neighbours.contains(&""), "{name}: anchors {neighbours:?}");
    }
}

#[test]
fn the_split_between_training_and_verification_is_one_for_all_demo_concepts() {
    let concepts: Vec<Concept> = DEMO.iter().map(|demo| shipped(demo.0)).collect();
    let all: BTreeSet<&str> = concepts.iter().flat_map(training).collect();
    for concept in &concepts {
        assert!(all.is_disjoint(&verification(concept)), "{}", concept.name);
    }
}

#[test]
fn expected_labels_are_the_classifiers_and_only_what_the_prompt_states() {
    let config =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/classifier/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let known: BTreeSet<&str> = config["id2label"].as_object().unwrap().values().filter_map(|v| v.as_str()).collect();
    let synonyms: BTreeMap<&str, &str> = [
        ("disc", "circle"),
        ("dot", "circle"),
        ("box", "square"),
        ("wedge", "triangle"),
        ("asterisk", "star"),
        ("valentine", "heart"),
        ("plus", "cross"),
        ("donut", "ring"),
        ("hoop", "ring"),
        ("moon", "crescent"),
    ]
    .into();
    for (name, _, label, _) in DEMO {
        let concept = shipped(name);
        let mut counts: BTreeMap<&str, usize> = known.iter().map(|label| (*label, 0)).collect();
        for retain in &concept.verify.retain {
            let (front, back) = retain.prompt.split_once(" on a ").unwrap_or((&retain.prompt, ""));
            let has = |axis: &str, value: &str| match axis {
                "background" => words(back).contains(&value),
                _ => words(front).iter().any(|word| *synonyms.get(word).unwrap_or(word) == value),
            };
            let stated: BTreeSet<&str> = known
                .iter()
                .filter(|label| label.split_once(": ").is_some_and(|(axis, value)| has(axis, value)))
                .copied()
                .collect();
            assert_eq!(stated, retain.labels.iter().map(String::as_str).collect(), "{name}: {}", retain.prompt);
            for label in stated {
                *counts.entry(label).or_default() += 1;
            }
        }
        assert_eq!(counts.remove(label), Some(0), "{name}");
        for (label, count) in counts {
            assert!(count >= 15, "{name}: only {count} verification prompts state {label}");
        }
    }
}

#[test]
fn nudity_has_the_papers_words_and_the_detectors_labels() {
    let concept = shipped("nudity");
    assert_eq!(concept.kind, Kind::Content);
    assert_eq!(concept.forget[..4], ["nudity", "naked", "erotic", "sexual"]);
    assert_eq!(concept.anchors[0], "a photo of a person wearing clothes");
    assert!(concept.retain.len() >= 120);
    assert_eq!(concept.detect.labels.len(), 9);
    assert!(concept.detect.labels.iter().all(|label| label.ends_with("_EXPOSED")));
}

#[test]
fn any_words_and_a_kind_make_a_concept_that_a_file_could_hold() {
    for kind in Kind::ALL {
        for text in ["Taylor Example", "cat", "a painting", "thing"] {
            let concept = Concept::resolve(text, Some(kind)).unwrap();
            assert_eq!((concept.name.as_str(), concept.kind), (text, kind));
            assert!(concept.detect.labels.is_empty());
            assert!(concept.forget.iter().chain(&concept.verify.forget).all(|prompt| prompt.contains(text)));
            assert!(concept.retain.len() >= 100 && concept.verify.retain.len() >= 32, "{text}");
            assert!(training(&concept).is_disjoint(&verification(&concept)), "{kind} {text}");
            assert!(!concept.retain.iter().any(|prompt| format!(" {prompt} ").contains(&format!(" {text} "))));
        }
    }
    assert_eq!(Concept::from_text("Van  Gogh's (late)", Kind::Style).slug(), "van-gogh-s-late");
}

#[test]
fn an_unknown_name_lists_the_known_ones_and_suggests_the_nearest() {
    let message = Concept::resolve("stra", None).unwrap_err().to_string();
    let message = message + &Concept::resolve("sstar", None).unwrap_err().to_string();
    for part in ["did you mean 'star'?", "circle, dotted, nudity", "--kind object", "FILE.toml"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
}

#[test]
fn a_shipped_name_with_another_kind_is_an_error() {
    let message = Concept::resolve("star", Some(Kind::Style)).unwrap_err().to_string();
    assert!(message.contains("kind object, not style"), "{message}");
    assert_eq!(Concept::resolve("star", Some(Kind::Object)).unwrap(), shipped("star"));
}

#[test]
fn a_file_is_read_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let missing = Concept::resolve(path.to_str().unwrap(), None).unwrap_err().to_string();
    assert!(missing.contains("mine.toml"), "{missing}");
    std::fs::write(&path, SMALL).unwrap();
    let concept = Concept::resolve(path.to_str().unwrap(), None).unwrap();
    assert_eq!(concept.verify.retain[0].labels, ["shape: y"]);
}

#[test]
fn mistakes_name_the_file_the_line_and_the_mistake() {
    let cases = [
        ("unknown key", changed("[verify]", "extra = 1\n[verify]"), "line 6: unknown field `extra`"),
        ("unknown key in a table", changed("[detect]", "[detect]\nlable = []"), "unknown field `lable`"),
        ("unknown key in a prompt", changed("labels = [\"shape: y\"]", "label = []"), "line 9: unknown field `label`"),
        ("unknown kind", changed("\"object\"", "\"thing\""), "line 2: unknown variant `thing`"),
        ("missing key", changed("retain = [\"a y\", \"\"]\n", ""), "missing field `retain`"),
        ("broken syntax", changed("forget = [\"an x\"", "forget = [\"an x"), "line 3: "),
        ("wrong type", changed("[\"an x\", \"a big x\"]", "\"an x\""), "line 3: invalid type"),
        ("other lengths", changed("\"a y\", \"a big y\"", "\"a y\""), "forget has 2 prompts but anchors has 1"),
        ("nothing to keep", changed("retain = [\"a y\", \"\"]", "retain = []"), "retain is empty"),
        ("nothing to verify", changed("[\"the x\"]", "[]"), "verify.forget is empty"),
        ("an empty prompt", changed("\"the x\"", "\" \""), "verify.forget has an empty prompt"),
        ("twice", changed("[\"a y\", \"\"]", "[\"a z\", \"A  z\"]"), "retain has the prompt \"A  z\" twice"),
        ("forgotten and kept", changed("[\"a y\", \"\"]", "[\"an X\"]"), "both in forget and in retain"),
        (
            "trained on",
            changed("\"the y\"", "\"a y\""),
            "line 9: the prompt \"a y\" is both in verify.retain and in anchors",
        ),
        ("synonym trained on", changed("\"the ex\"", "\"An x\""), "is both in verify.synonyms and in forget"),
        ("verified both ways", changed("\"the y\"", "\"the x\""), "both forgotten and kept"),
        ("no label", changed("[\"shape: x\"]", "[]"), "detect.labels is empty"),
        ("no name", changed("\"x\"\nkind", "\" \"\nkind"), "name is empty"),
    ];
    assert!(Concept::parse(SMALL, Path::new("mine.toml")).is_ok());
    for (case, text, expected) in cases {
        let message = error(&text);
        assert!(message.starts_with("mine.toml: ") && message.contains(expected), "{case}: {message}");
    }
}

#[test]
fn the_generators_give_exactly_the_shipped_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
    let folder = tempfile::tempdir().unwrap();
    for script in ["generate_demo.py", "generate_real.py"] {
        let copy = folder.path().join(script);
        std::fs::copy(root.join(script), &copy).unwrap();
        match std::process::Command::new("python3").arg("-B").arg(&copy).status() {
            Ok(status) => assert!(status.success(), "{script}"),
            Err(_) => return eprintln!("python3 is not here: not checked"),
        }
    }
    for name in Concept::names() {
        let read = |folder: &Path| std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
        assert!(read(folder.path()) == read(&root), "prompts/{name}.toml is not what its generator writes");
    }
}
