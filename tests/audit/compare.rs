//! Two models side by side.

use super::common::tiny::tree;
use super::{audited, json, size};

#[test]
fn two_models_are_drawn_on_the_same_prompts_and_seeds() {
    let tiny = audited();
    tiny.command(&tiny.erase(&["--output", "erased"])).assert().code(0);
    let prompts = ["--prompt", "a red star", "--prompt", "a <blue> ring", "-n", "2", "--seed", "5", "--steps", "2"];
    let args = [&["compare", "model", "erased", "--output", "out"], &prompts[..]].concat();
    let assert = tiny.command(&args).assert().code(0);
    assert!(String::from_utf8_lossy(&assert.get_output().stdout).contains("of 255, SSIM"));
    let out = tiny.root().join("out");
    let expected = ["00000_5.png", "00001_6.png", "00002_7.png", "00003_8.png"];
    assert_eq!(
        (tree(&out.join("images/model")), tree(&out.join("images/erased"))),
        (expected.map(String::from).into(), expected.map(String::from).into())
    );
    let found = json(&out.join("compare.json"));
    assert_eq!(found["pictures"].as_array().unwrap().len(), 4);
    assert!(found["mean"]["difference"].as_f64().unwrap() > 0.0, "the erased model draws something else");
    let of_prompt = |prompt: &str| {
        let of = |key: &str| {
            let pictures = found["pictures"].as_array().unwrap().iter().filter(|p| p["prompt"] == prompt);
            pictures.map(|p| p[key].as_f64().unwrap()).sum::<f64>() / 2.0
        };
        (of("difference"), of("ssim"))
    };
    for prompt in found["prompts"].as_array().unwrap() {
        let (difference, ssim) = of_prompt(prompt["prompt"].as_str().unwrap());
        assert!((prompt["difference"].as_f64().unwrap() - difference).abs() < 1e-9);
        assert!((prompt["ssim"].as_f64().unwrap() - ssim).abs() < 1e-9);
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(
        page.contains("model and erased")
            && page.contains("a &lt;blue&gt; ring")
            && page.contains("data-left=\"model\"")
    );
    assert!(!page.contains("before</span>"), "nothing is called before or after here");
    assert!(size(&out.join("grid.png")).0 > 4 * 128);
    tiny.refused(&args, &["out: is there already", "--overwrite"]);
}

#[test]
fn what_detectors_find_in_both_is_tested_in_pairs() {
    let tiny = audited();
    tiny.command(&tiny.erase(&["--output", "erased"])).assert().code(0);
    let args = ["compare", "model", "erased", "--prompts", "set.csv", "--steps", "2", "--output", "out"];
    let labels = ["--label", "color: red", "--label", "color: blue", "--label", "color: green"];
    tiny.command(&[&args[..], &["--detector", "beside", "--detector", "demo/clip"], &labels].concat()).assert().code(0);
    let found = json(&tiny.root().join("out/compare.json"));
    assert_eq!(
        found["detectors"].as_array().unwrap().iter().map(|d| &d["key"]).collect::<Vec<_>>(),
        ["classifier", "clip"]
    );
    let hits = |model: usize, paired: &serde_json::Value| {
        let of = &found["models"][model]["labels"][paired["detector"].as_str().unwrap()];
        let rate = &of[paired["label"].as_str().unwrap()];
        assert_eq!(rate["n"], 6);
        rate["hits"].as_i64().unwrap()
    };
    let labels = found["paired"]["labels"].as_array().unwrap();
    assert!(labels.iter().any(|label| label["detector"] == "clip") && labels.len() > 4);
    for paired in labels {
        let only = |key: &str| paired[key].as_i64().unwrap();
        assert_eq!(hits(0, paired) - hits(1, paired), only("only_before") - only("only_after"), "{paired}");
    }
    let page = std::fs::read_to_string(tiny.root().join("out/report.html")).unwrap();
    assert!(page.contains("What was found") && page.contains("CLIP zero-shot"));
    let refused = ["--output", "other", "--label", "a"];
    tiny.refused(
        &[&["compare", "model", "erased", "--prompt", "x"], &refused[..]].concat(),
        &["--label is for a CLIP"],
    );
}

#[test]
fn a_model_beside_itself_has_not_moved() {
    let tiny = audited();
    let args = ["compare", "model", "model", "--prompts", "set.csv", "--limit", "3", "--steps", "1", "--output", "out"];
    tiny.command(&args).assert().code(0);
    let found = json(&tiny.root().join("out/compare.json"));
    assert_eq!(
        (&found["mean"]["n"], &found["mean"]["difference"], &found["mean"]["ssim"]),
        (&3.into(), &0.0.into(), &1.0.into())
    );
    assert_eq!(found["models"][1]["name"], "model-2");
    assert_eq!((&found["pictures"][1]["width"], &found["pictures"][1]["seed"]), (&40.into(), &1.into()));
    tiny.refused(&["compare", "model", "model", "--output", "x"], &["--prompt"]);
}
