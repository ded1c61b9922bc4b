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

/// Name, kind, first label, and words that name the concept or are its synonyms (of these, nothing may be kept).
const REAL: &[(&str, Kind, &str, &[&str])] = &[
    ("nudity", Kind::Content, "FEMALE_BREAST_EXPOSED", NUDITY),
    ("violence", Kind::Content, "inappropriate", VIOLENCE),
    ("Caravaggio", Kind::Style, "", &["Caravaggio"]),
    ("Cezanne", Kind::Style, "", &["Cezanne", "Cézanne"]),
    ("Hokusai", Kind::Style, "", &["Hokusai"]),
    ("Klimt", Kind::Style, "", &["Klimt"]),
    ("Monet", Kind::Style, "", &["Monet"]),
    ("Munch", Kind::Style, "", &["Munch"]),
    ("Picasso", Kind::Style, "", &["Picasso"]),
    ("Rembrandt", Kind::Style, "", &["Rembrandt"]),
    ("Van Gogh", Kind::Style, "", &["Van Gogh", "Vincent"]),
    ("Warhol", Kind::Style, "", &["Warhol"]),
    ("cassette player", Kind::Object, "cassette player", &["cassette", "tape", "Walkman", "boombox"]),
    ("chain saw", Kind::Object, "chain saw", &["chain saw", "chainsaw", "motor saw", "petrol saw"]),
    ("church", Kind::Object, "church", &["church", "cathedral", "chapel", "basilica", "abbey", "minster", "kirk"]),
    ("English springer", Kind::Object, "English springer", &["springer", "spaniel", "gun dog"]),
    ("French horn", Kind::Object, "French horn", &["horn", "Waldhorn", "coiled brass"]),
    ("garbage truck", Kind::Object, "garbage truck", &["garbage", "dustcart", "refuse", "bin lorry", "rubbish"]),
    ("gas pump", Kind::Object, "gas pump", &["gas pump", "petrol pump", "fuel", "gasoline", "gas station"]),
    ("golf ball", Kind::Object, "golf ball", &["golf ball", "dimpled", "golfer"]),
    ("parachute", Kind::Object, "parachute", &["parachute", "skydiver", "paratrooper", "parasail", "chute"]),
    ("tench", Kind::Object, "tench", &["tench", "Tinca", "doctor fish"]),
];
const NUDITY: &[&str] = &[
    "nude",
    "nudity",
    "naked",
    "erotic",
    "sexual",
    "bare",
    "unclothed",
    "undressed",
    "undressing",
    "topless",
    "without clothes",
    "explicit",
];
const VIOLENCE: &[&str] = &[
    "violence",
    "violent",
    "blood",
    "bloody",
    "bleeding",
    "gore",
    "gory",
    "fight",
    "fighting",
    "brawl",
    "attack",
    "attacking",
    "shooting",
    "gun",
    "war",
    "battle",
    "battlefield",
    "riot",
    "assault",
    "robbery",
    "wound",
    "wounded",
    "injure",
    "injured",
    "beaten",
    "duel",
    "bombed",
];

/// The words of a text in lower case, joined by single spaces.
fn plain(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

fn slug(text: &str) -> String {
    plain(text).replace(' ', "-")
}

/// Whether a prompt holds one of these words, in the singular or the plural.
fn mentions(prompt: &str, words: &[&str]) -> bool {
    let prompt = format!(" {} ", plain(prompt));
    words.iter().any(|word| ["", "s", "es"].iter().any(|end| prompt.contains(&format!(" {}{end} ", plain(word)))))
}

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
    let names = Concept::names();
    assert!(names.is_sorted());
    let demo: Vec<&str> = DEMO.iter().map(|demo| demo.0).collect();
    let real = REAL.iter().map(|(name, ..)| slug(name));
    let expected: BTreeSet<String> = demo.iter().map(ToString::to_string).chain(real).collect();
    assert_eq!(names.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), expected);
    for name in names {
        let concept = shipped(name);
        assert_eq!((concept.slug().as_str(), slug(&concept.name).as_str()), (name, name));
        assert_eq!(shipped(&concept.name), concept, "{name} is also found by its name in words");
        assert!(concept.retain.len() >= 100, "{name}: {} retain prompts", concept.retain.len());
        assert!(concept.forget.len() >= 20, "{name}: {} forget prompts", concept.forget.len());
        assert!(concept.verify.forget.len() >= 10 && concept.verify.retain.len() >= 48, "{name}");
        assert_eq!(concept.anchors.len(), concept.forget.len());
        assert!(training(&concept).is_disjoint(&verification(&concept)), "{name}");
        assert!(concept.retain.iter().any(String::is_empty), "{name}: the empty prompt is part of guidance");
        for prompt in training(&concept).into_iter().chain(verification(&concept)) {
            // a byte-level tokenizer makes at most one token of a byte; 77 less the first and the last
            assert!(prompt.len() <= 75, "{name}: {prompt:?} may have more than 77 tokens");
            assert_eq!(prompt.trim(), prompt, "{name}");
        }
        // the concept's name stands in most prompts, so that the search for other words finds it there
        let named = concept.forget.iter().filter(|prompt| mentions(prompt, &[&concept.name])).count();
        assert!(4 * named >= 3 * concept.forget.len() || concept.kind == Kind::Content, "{name}: {named}");
    }
}

#[test]
fn real_concepts_are_forgotten_kept_and_verified_by_the_right_words() {
    for (name, kind, label, words) in REAL {
        let concept = shipped(name);
        assert_eq!((concept.name.as_str(), concept.kind), (*name, *kind));
        assert_eq!(concept.detect.labels.first().map_or("", String::as_str), *label, "{name}");
        let named = |prompt: &str| mentions(prompt, words);
        for prompt in concept.forget.iter().chain(&concept.verify.forget) {
            assert!(named(prompt), "{name}: {prompt:?} does not name it");
        }
        let kept = concept.verify.retain.iter().map(|retain| &retain.prompt);
        for prompt in concept.anchors.iter().chain(&concept.retain).chain(kept) {
            assert!(!named(prompt), "{name}: {prompt:?} is not for keeping");
        }
        assert!((4..=8).contains(&concept.verify.synonyms.len()), "{name}");
        if *kind != Kind::Content {
            for prompt in &concept.verify.synonyms {
                assert!(!mentions(prompt, &[name]), "{name}: {prompt:?} names it");
            }
        }
        let known: BTreeSet<&str> = concept.verify.retain.iter().flat_map(|r| &r.labels).map(String::as_str).collect();
        let others: BTreeSet<&str> = match kind {
            Kind::Object => classes().filter(|class| class != name).collect(),
            _ => BTreeSet::new(),
        };
        assert_eq!(known, others, "{name}: the other classes are counted, and nothing that no detector knows");
    }
}

fn classes() -> impl Iterator<Item = &'static str> {
    REAL.iter().filter(|real| real.1 == Kind::Object).map(|real| real.0)
}

#[test]
fn each_class_keeps_the_nine_others_and_each_style_the_other_artists() {
    assert_eq!((classes().count(), REAL.iter().filter(|real| real.1 == Kind::Style).count()), (10, 10));
    for (name, kind, ..) in REAL.iter().filter(|real| real.1 != Kind::Content) {
        let concept = shipped(name);
        for (other, ..) in REAL.iter().filter(|real| real.1 == *kind && real.0 != *name) {
            let training = concept.retain.iter().filter(|prompt| mentions(prompt, &[other])).count();
            let verify: Vec<_> = concept.verify.retain.iter().filter(|r| mentions(&r.prompt, &[other])).collect();
            assert!(training >= 3 && !verify.is_empty(), "{name} keeps {other} by {training} and {}", verify.len());
            for retain in verify.into_iter().filter(|_| *kind == Kind::Object) {
                assert!(retain.labels.contains(&other.to_string()), "{name}: {retain:?}");
            }
        }
    }
}

#[test]
fn what_is_kept_for_verification_is_the_same_in_all_real_files() {
    let concepts: Vec<Concept> = REAL.iter().map(|real| shipped(real.0)).collect();
    let retain: BTreeSet<&str> = concepts.iter().flat_map(|c| &c.retain).map(String::as_str).collect();
    let verify = concepts.iter().flat_map(|c| &c.verify.retain).map(|r| r.prompt.as_str());
    assert_eq!(verify.filter(|prompt| retain.contains(prompt)).collect::<Vec<_>>(), [""; 0]);
    // and varied: people, animals, scenes, things
    for word in
        ["woman", "man", "cat", "horse", "mountain", "kitchen", "bicycle", "coffee", "castle", "sketch", "mosaic"]
    {
        assert!(retain.iter().any(|prompt| mentions(prompt, &[word])), "{word}");
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
            let mut seen = BTreeSet::new();
            let lists = [&concept.forget, &concept.retain];
            let twice = lists.iter().flat_map(|list| list.iter()).find(|prompt| !seen.insert(plain(prompt)));
            assert_eq!(twice, None, "{kind} {text}");
            assert!(!concept.retain.iter().any(|prompt| format!(" {prompt} ").contains(&format!(" {text} "))));
        }
    }
    assert_eq!(Concept::from_text("Van  Gogh's (late)", Kind::Style).slug(), "van-gogh-s-late");
}

#[test]
fn an_identity_gives_way_to_a_person_and_all_sorts_of_people_stay() {
    let concept = Concept::from_text("Taylor Example", Kind::Identity);
    assert!(concept.anchors.iter().all(|anchor| mentions(anchor, &["person"])), "{:?}", concept.anchors);
    for word in ["woman", "man", "old", "young", "African", "Asian", "Indian", "actor", "politician", "dog", "mountain"]
    {
        let held_out = concept.verify.retain.iter().filter(|retain| mentions(&retain.prompt, &[word])).count();
        let trained = concept.retain.iter().filter(|prompt| mentions(prompt, &[word])).count();
        assert!(trained >= 3 && held_out >= 1, "{word}: {trained} and {held_out}");
    }
    let style = Concept::from_text("Monet", Kind::Style);
    assert!(style.retain.iter().any(|prompt| prompt.contains("Rembrandt")));
    assert!(!training(&style).union(&verification(&style)).any(|prompt| prompt.contains("Claude")), "not to be kept");
}

#[test]
fn an_unknown_name_lists_the_known_ones_and_suggests_the_nearest() {
    let message = Concept::resolve("stra", None).unwrap_err().to_string();
    let message = message + &Concept::resolve("sstar", None).unwrap_err().to_string();
    for part in [
        "did you mean 'star'?",
        "\n    for the demo model: circle, dotted, red",
        "content: nudity, violence\n",
        "--kind object",
        "FILE.toml",
    ] {
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
    let copy = |script: &str| {
        let copy = folder.path().join(script);
        std::fs::copy(root.join(script), &copy).unwrap();
        copy
    };
    copy("pools.py");
    for script in ["generate_demo.py", "generate_real.py"] {
        let copy = copy(script);
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

#[test]
fn a_file_may_be_written_in_every_way_that_toml_has() {
    let expected = Concept::parse(SMALL, Path::new("mine.toml")).unwrap();
    let tables = SMALL.replace("retain = [{ prompt = \"the y\", labels = [\"shape: y\"] }]\n", "")
        + "[[verify.retain]]\nprompt = 'the y'\nlabels = ['shape: y']\n";
    let without = changed("[detect]\nlabels = [\"shape: x\"]\n", "");
    let detect = |line: &str| format!("{line}\n{without}");
    let ways = [
        ("lines end as on Windows", SMALL.replace('\n', "\r\n")),
        ("a byte order mark", format!("\u{feff}{SMALL}")),
        ("comments", SMALL.replace('\n', " # a comment, [with] 'this'\n#\n")),
        ("lists over lines", changed("[\"an x\", \"a big x\"]", "[ # two\n\t'an x'\n,\"a big x\",\n# done\n]")),
        ("quoted keys", changed("kind = ", "'kind'=").replacen("forget = ", "\"for\\u0067et\" = ", 1)),
        ("escapes", changed("\"an x\"", "\"a\\u006e\\U00000020\\x78\"")),
        ("long strings", changed("\"an x\"", "\"\"\"\nan \\\n   x\"\"\"").replace("\"the x\"", "'''the x'''")),
        ("a table in a line", detect("detect = { labels = ['shape: x'] }")),
        ("a table over lines", detect("detect = { # on purpose\n labels = ['shape: x'],\n}")),
        ("dotted keys", detect("detect . labels=['shape: x']")),
        ("tables of prompts", tables.clone()),
        ("tables in another order", {
            let (front, back) = tables.split_at(tables.find("[verify]").unwrap());
            let (verify, rest) = back.split_at(back.find("[detect]").unwrap());
            let (detect, kept) = rest.split_at(rest.find("[[").unwrap());
            format!("{front}{detect}{kept}{verify}")
        }),
    ];
    for (way, text) in ways {
        assert_ne!(text, SMALL, "{way}");
        let read = Concept::parse(&text, Path::new("mine.toml"));
        assert_eq!(read.unwrap_or_else(|e| panic!("{way}: {e}")), expected, "{way}");
        assert!(text.parse::<toml::Table>().is_ok(), "{way}: another reader takes it too");
    }
}

#[test]
fn what_is_no_toml_or_says_a_thing_twice_is_refused_with_its_line() {
    let cases = [
        ("a name twice", changed("kind", "name = 'y'\nkind"), "line 2: duplicate key `name`"),
        ("a table twice", format!("{SMALL}[detect]\n"), "line 12: duplicate key `detect`"),
        (
            "a table in two ways",
            changed("[verify]", "verify.forget = ['z']\n[verify]"),
            "line 7: duplicate key `verify`",
        ),
        ("prompts in two ways", format!("{SMALL}[[verify.retain]]\nprompt='z'\n"), "line 12: duplicate key `retain`"),
        ("two on a line", changed("kind =", "'x' kind ="), "line 2: "),
        ("no value", changed("\"object\"", ""), "line 2: "),
        ("no equals sign", changed("kind = ", "kind "), "line 2: key with no value, expected `=`"),
        ("no quotes", changed("\"object\"", "object"), "line 2: "),
        ("a list without an end", changed("[\"shape: x\"]\n", "[\"shape: x\""), "line 11: unclosed array"),
        ("no comma", changed("\"an x\", ", "\"an x\" "), "line 3: unclosed array, expected `,`, `]`"),
        ("two commas", changed("\"an x\", ", "\"an x\",, "), "line 3: a value is missing"),
        ("a header without an end", changed("[detect]", "[detect"), "line 10: unclosed table"),
        ("half a header", changed("[detect]", "[[detect]"), "line 10: unclosed array table"),
        ("a table for a list", changed("[detect]", "[[detect]]"), "line 10: invalid type: sequence, expected a table"),
        ("a list for a table", changed("[detect]", "[verify.retain]"), "line 10: invalid type: map, expected a list"),
        ("a number", changed("\"an x\"", "7"), "line 3: invalid type: integer, expected a string"),
        ("a list in a list", changed("\"an x\"", "[]"), "line 3: invalid type: sequence, expected a string"),
        (
            "a text for a prompt",
            changed("{ prompt = \"the y\"", "'the y', { prompt = \"z\""),
            "line 9: invalid type: string",
        ),
        ("a prompt without words", changed("prompt = \"the y\", ", ""), "line 9: missing field `prompt`"),
        ("a wrong escape", changed("\"an x\"", "\"\\q\""), "line 3: "),
        ("a character that is none", changed("\"an x\"", "\"\u{1}\""), "line 3: "),
        (
            "a table where none is",
            changed("[detect]", "[detector]"),
            "line 10: unknown field `detector`, expected one of",
        ),
        ("half a line's end", changed("\n", "\r"), "line 1: "),
    ];
    for (case, text, expected) in cases {
        let message = error(&text);
        assert!(message.starts_with("mine.toml: ") && message.contains(expected), "{case}: {message}");
        let broken = text.parse::<toml::Table>().is_err();
        assert!(broken || message.contains("type") || message.contains("field"), "{case}: another reader takes it");
    }
    let many: String = (0..4100).map(|i| format!("'{i}',")).collect();
    let message = error(&changed("retain = [\"a y\", \"\"]", &format!("retain = [{many}]")));
    assert!(message.contains("line 5: more than 4096 prompts and labels"), "{message}");
}

#[test]
fn shipped_files_are_what_another_reader_reads_in_them() {
    for name in Concept::names() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("prompts/{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let concept = Concept::parse(&text, &path).unwrap();
        let read: toml::Table = text.parse().unwrap();
        let strings = |value: Option<&toml::Value>| -> Vec<String> {
            let list = value.and_then(toml::Value::as_array).into_iter().flatten();
            list.map(|text| text.as_str().unwrap().to_string()).collect()
        };
        let (verify, detect) = (&read["verify"], &read["detect"]);
        assert_eq!(read["name"].as_str(), Some(concept.name.as_str()));
        assert_eq!(read["kind"].as_str(), Some(concept.kind.to_string().as_str()));
        assert_eq!(read.get("model").and_then(toml::Value::as_str), concept.model.as_deref());
        assert_eq!(strings(read.get("forget")), concept.forget, "{name}");
        assert_eq!(strings(read.get("anchors")), concept.anchors, "{name}");
        assert_eq!(strings(read.get("retain")), concept.retain, "{name}");
        assert_eq!(strings(verify.get("forget")), concept.verify.forget, "{name}");
        assert_eq!(strings(verify.get("synonyms")), concept.verify.synonyms, "{name}");
        assert_eq!(strings(detect.get("labels")), concept.detect.labels, "{name}");
        let kept = verify["retain"].as_array().unwrap();
        assert_eq!(kept.len(), concept.verify.retain.len());
        for (read, kept) in kept.iter().zip(&concept.verify.retain) {
            assert_eq!(read["prompt"].as_str(), Some(kept.prompt.as_str()));
            assert_eq!(strings(read.get("labels")), kept.labels, "{name}");
        }
    }
}
