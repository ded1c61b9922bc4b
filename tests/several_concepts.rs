//! Several concepts erased at once, and `--preserve`.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use erase_concept::concept::Concept;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// A job of a few seconds: the figures mean nothing, the files do.
#[rustfmt::skip]
const SMALL: [&str; 20] = [
    "--forget-latents", "4", "--retain-latents", "4", "--data-steps", "2", "--score-batches", "1", "--repair-steps", "2", "--batch-size", "2",
    "--verify-images", "3", "--synonym-images", "2", "--retain-images", "4", "--verify-steps", "2",
];

fn program(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("erase-concept").unwrap();
    command.current_dir(folder);
    command
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

fn metadata(folder: &Path) -> std::collections::HashMap<String, String> {
    let unet = std::fs::read(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&unet).unwrap();
    header.metadata().clone().unwrap()
}

#[test]
fn each_concept_and_what_is_preserved_are_counted_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("erased/star-ring-demo-s0");
    std::fs::write(folder.path().join("keep.txt"), "\u{feff}pink\n\n  a teal background \n").unwrap();
    let asked = ["--concept", "star", "--concept", "ring", "--preserve", "keep.txt", "--preserve", "pink"];
    program(folder.path())
        .args(asked)
        .args(SMALL)
        .args(["--keep-images", "--other-words", "2"])
        .assert()
        .code(0)
        .stdout(
            contains("«star»: found in")
                .and(contains("«ring»: found in"))
                .and(contains("to be preserved, «pink»: found in"))
                .and(contains("of 2 pictures before")),
        );
    let found = report(&out);
    assert_eq!(found["concept"], "star + ring");
    let names = |list: &Value| list.as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&found["concepts"]), ["star", "ring"]);
    let number = |path: &str| found.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {found}"));
    for (what, n) in [("rate", 3), ("synonyms", 2)] {
        for side in ["before", "after"] {
            let each: Vec<u64> = (0..2).map(|i| number(&format!("/concepts/{i}/{what}/{side}/hits"))).collect();
            assert_eq!(each.iter().sum::<u64>(), number(&format!("/{what}/{side}/hits")), "{what} {side}");
            assert_eq!(number(&format!("/concepts/1/{what}/{side}/n")), n);
            assert_eq!(number(&format!("/{what}/{side}/n")), 2 * n);
        }
    }
    assert_eq!(names(&found["preserve"]), ["pink", "a teal background"]);
    assert_eq!(found["preserve"][0]["labels"], serde_json::json!(["color: pink"]));
    assert_eq!(found["preserve"][1]["labels"], serde_json::json!(["background: teal"]));
    // 16 a name, --retain-images at most
    assert_eq!((number("/preserve/0/rate/before/n"), number("/preserve/1/drift/n")), (2, 2));
    let of: BTreeSet<&str> = found["other_words"].as_array().unwrap().iter().filter_map(|w| w["of"].as_str()).collect();
    assert_eq!(of, ["ring", "star"].into());
    let command = found["command"].as_str().unwrap();
    assert!(command.contains("--concept star --concept ring --preserve keep.txt --preserve pink "), "{command}");

    let metadata = metadata(&out);
    assert_eq!(metadata["erase.concepts"], "[\"star\",\"ring\"]");
    assert_eq!(metadata["erase.preserve"], "[\"pink\",\"a teal background\"]");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["prompts that name “ring”", "synonyms of “star”", "What was asked to be preserved", "background: teal"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    let pictures = std::fs::read_dir(out.join("images/before")).unwrap();
    let pictures: Vec<String> = pictures.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let count = |group: &str| pictures.iter().filter(|name| name.starts_with(group)).count();
    let counts = ["concept-", "synonym-", "retain-", "preserve-"].map(count);
    assert_eq!(counts, [6, 4, 4, 4], "{pictures:?}");
    // pictures of one concept do not depend on how many concepts there are
    assert!(pictures.contains(&"concept-00000_1000000000.png".to_string()));
    assert!(pictures.contains(&"concept-00003_1004000000.png".to_string()));

    // the same again
    program(folder.path())
        .args(asked)
        .args(SMALL)
        .args(["--other-words", "2", "--output", "again", "-q"])
        .assert()
        .code(0);
    let again = folder.path().join("again");
    for file in ["unet/diffusion_pytorch_model.safetensors", "grid.png"] {
        assert!(std::fs::read(out.join(file)).unwrap() == std::fs::read(again.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn one_concept_alone_is_reported_as_before_and_limits_hold_for_each() {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path()).args(["--concept", "red", "-q", "--output", "one"]).args(SMALL).assert().code(0);
    let one = report(&folder.path().join("one"));
    assert!(
        one.get("concepts").is_none() && one.get("preserve").is_none() && one["other_words"][0].get("of").is_none()
    );
    assert!(!metadata(&folder.path().join("one")).contains_key("erase.concepts"));

    // labels that every picture has, so that the limit is missed for one and kept for the other
    let red = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/prompts/red.toml")).unwrap();
    let all: Vec<String> =
        ["white", "black", "gray", "teal"].iter().map(|value| format!("\"background: {value}\"")).collect();
    let all = red.replace("labels = [\"color: red\"]\n", &format!("labels = [{}]\n", all.join(", ")));
    assert_ne!(all, red);
    std::fs::write(folder.path().join("all.toml"), all.replace("name = \"red\"", "name = \"all\"")).unwrap();
    let two = ["--concept", "ring", "--concept", "all.toml", "--max-rate", "0.99", "--output", "two"];
    let message = contains("missed: --max-rate 0.99: the rate of «all» is 1.000").and(contains("of «ring»").not());
    program(folder.path()).args(two).args(SMALL).assert().code(1).stdout(message);
}

#[test]
fn what_makes_no_sense_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty.txt"), "\n \n").unwrap();
    std::fs::write(folder.path().join("binary.txt"), [0xff, 0xfe, 0]).unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["--concept", "star", "--concept", "star"], "--concept star is given twice"),
        (&["--concept", "star", "--concept", "gnome"], "no concept 'gnome' comes with the program"),
        (
            &["--concept", "star", "--concept", "ring", "--kind", "style"],
            "'star' is a concept of kind object, not style",
        ),
        (&["--concept", "star", "--preserve", "a red Star"], "«star» is to be erased, so it cannot be preserved too"),
        (&["--concept", "star", "--preserve", " "], "--preserve is empty"),
        (&["--concept", "star", "--preserve", "no.txt"], "no.txt: no such file; --preserve takes a text, or a file"),
        (&["--concept", "star", "--preserve", "empty.txt"], "empty.txt: has no line"),
        (&["--concept", "star", "--preserve", "binary.txt"], "binary.txt: not a text file"),
        (
            &["--concept", "star", "--concept", "Monet", "--max-rate", "0.1"],
            "'Monet' in a picture, but the concept has no",
        ),
    ];
    for (args, expected) in cases {
        program(folder.path()).args(args).assert().code(2).stdout("").stderr(contains(expected));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // a kind is for those that need one
    let both = ["--concept", "star", "--concept", "gnome", "--kind", "identity", "--preserve", "cross"];
    let output = program(folder.path())
        .args(both)
        .args(["--model", "demo", "--dry-run", "--json"])
        .assert()
        .code(0)
        .get_output()
        .stdout
        .clone();
    let last: Value = serde_json::from_str(String::from_utf8(output).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(last["result"]["concepts"], serde_json::json!(["star", "gnome"]));
    assert_eq!(last["result"]["preserve"], serde_json::json!(["cross"]));
    let text = contains("192 + 128 + 272 verification pictures");
    let two = ["--concept", "star", "--concept", "ring", "--preserve", "cross", "--dry-run"];
    program(folder.path()).args(two).assert().code(0).stdout(text);
}

/// Whether a prompt holds a name as words of its own.
fn holds(prompt: &str, name: &str) -> bool {
    let plain = |text: &str| {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
    };
    format!(" {} ", plain(prompt)).contains(&format!(" {} ", plain(name)))
}

#[test]
fn any_two_shipped_concepts_can_be_erased_together_and_no_prompt_works_against_another() {
    let names = Concept::names();
    let shipped = |name: &str| Concept::resolve(name, None).unwrap();
    for (i, a) in names.iter().enumerate() {
        for b in &names[i + 1..] {
            let (a, b) = (shipped(a), shipped(b));
            let what = format!("{} and {}", a.name, b.name);
            let joint = Concept::together(vec![a.clone(), b.clone()], &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
            let kept: Vec<&String> = joint.verify.retain.iter().map(|retain| &retain.prompt).collect();
            let stays = joint.anchors.iter().chain(&joint.retain).chain(kept.iter().copied());
            for prompt in stays {
                assert!(!holds(prompt, &a.name) && !holds(prompt, &b.name), "{what}: {prompt:?} is not for keeping");
            }
            let training: BTreeSet<&String> = joint.forget.iter().chain(&joint.anchors).chain(&joint.retain).collect();
            let verified = joint.each().iter().flat_map(|part| part.verify.forget.iter().chain(&part.verify.synonyms));
            let both: Vec<&String> = verified.chain(kept.iter().copied()).filter(|p| training.contains(p)).collect();
            assert!(both.is_empty(), "{what}: {both:?}");
            assert!(joint.retain.len() >= 90 && kept.len() >= 32, "{what}: {} and {}", joint.retain.len(), kept.len());
            // each has half of the forget prompts
            assert_eq!(joint.forget.len(), joint.anchors.len());
            let own = joint.forget.iter().filter(|prompt| a.forget.contains(prompt)).count();
            let others = joint.forget.iter().filter(|prompt| b.forget.contains(prompt)).count();
            assert!(own.abs_diff(others) <= 1 && own >= 20, "{what}: {own} and {others}");
            for (forget, anchor) in joint.forget.iter().zip(&joint.anchors) {
                let of = |c: &Concept| c.forget.iter().zip(&c.anchors).any(|pair| pair == (forget, anchor));
                assert!(of(&a) || of(&b), "{what}: {forget:?} lost its anchor");
            }
        }
    }
}
