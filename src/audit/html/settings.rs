//! Every setting, seed and hash, and the command that repeats it.

use super::EraseReport;
use super::page::Section;
use super::tables::{Table, cell, facts, more};
use super::words::{count, number, thousands};
use crate::audit::Report;
use crate::erase::other_words::THRESHOLD;
use crate::erase::{OtherWord, Settings};
use maud::{Markup, html};
use serde_json::Value;

pub fn section(r: &EraseReport<'_>) -> Section {
    let report = r.report;
    let body = html! {
        p { "The same command with the same version on the same kind of device gives the same bytes, whatever the number of "
            "threads. " code { "--output" } " says where they go." }
        pre tabindex="0" aria-label="Command line" { code { (flags(&report.command)) } }
        (run(r))
        (verification(r))
        (method(&report.settings))
        (more("Prompts", &prompts(r)))
        @if !report.other_words.is_empty() { (more("Other words that were tried", &other_words(report))) }
    };
    Section { id: "settings", title: "Settings, seeds and hashes".into(), nav: "Settings", body }
}

/// A command whose lines break before a flag, not within one.
fn flags(command: &str) -> Markup {
    let mut parts = command.split(" --");
    let program = parts.next().unwrap_or_default();
    html! { (program) @for part in parts { " " span.flag { "--" (part) } } }
}

/// What computed, in words.
pub fn device(name: &str, tf32: bool) -> String {
    format!("{name}{}", if tf32 { ", f32 matrices multiplied in TF32" } else { "" })
}

fn hash(text: &str) -> Markup {
    html! { code.hash { (text) } }
}

fn run(r: &EraseReport<'_>) -> Markup {
    let report = r.report;
    let model = match &report.hub {
        Some(hub) => format!("{} on the Hugging Face Hub, commit {}", hub.repo, hub.commit),
        None => r.model.to_string(),
    };
    let rows = [
        ("concept", cell(format!("{} ({})", report.concept, r.concept.kind))),
        ("model", cell(model)),
        ("base, SHA-256 of its files", hash(&report.base_sha256)),
        ("method", cell(report.method)),
        ("preset", cell(&report.preset)),
        ("seed", cell(report.seed.to_string())),
        ("weights in memory", cell(report.dtype)),
        ("device", cell(device(&report.device, report.tf32))),
        ("program", cell(format!("erase-concept {}", report.version))),
        ("report's layout", cell(report.schema)),
    ];
    facts("The run", &rows)
}

fn verification(r: &EraseReport<'_>) -> Markup {
    let (v, d) = (&r.report.verification, &r.report.drift);
    let n = |mean: &Option<crate::audit::DriftMean>| thousands(mean.as_ref().map_or(0, |m| m.n));
    let mut rows = vec![
        ("pictures of the concept", cell(n(&d.concept))),
        ("pictures of its synonyms", cell(n(&d.synonyms))),
        ("pictures of everything else", cell(n(&d.retain))),
        ("seed of the first picture", cell(v.seed.to_string())),
        ("scheduler", cell(&v.scheduler)),
        ("steps", cell(v.steps.to_string())),
        ("guidance scale", cell(v.guidance_scale.to_string())),
    ];
    match &r.report.detector {
        Some(d) => {
            rows.extend([("detector", cell(&d.name)), ("detector, SHA-256", hash(&d.sha256)), ("rule", cell(&d.rule))])
        }
        None => rows.push(("detector", cell("none that knows the concept"))),
    }
    facts("Verification, before and after", &rows)
}

/// Every setting by the name that report.json gives it, with what it means.
fn method(settings: &Settings) -> Markup {
    let rows = flat(settings);
    html! {
        div.scroll role="region" aria-label="Settings of the method" tabindex="0" {
            table.figures.settings {
                caption { "Settings of the method" }
                thead { tr { th scope="col" { "setting" } th scope="col" { "value" } th scope="col" { "what it is" } } }
                tbody {
                    @for (name, value) in &rows {
                        tr { th scope="row" { code { (name) } } td { (value) } td.what { (meaning(name)) } }
                    }
                }
            }
        }
    }
}

fn flat(settings: &Settings) -> Vec<(String, String)> {
    fn add(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    add(&name, value, rows);
                }
            }
            Value::String(text) => rows.push((prefix.to_string(), text.clone())),
            Value::Bool(yes) => rows.push((prefix.to_string(), if *yes { "yes" } else { "no" }.to_string())),
            other => rows.push((prefix.to_string(), other.to_string())),
        }
    }
    let mut rows = Vec::new();
    add("", &serde_json::to_value(settings).unwrap_or(Value::Null), &mut rows);
    rows
}

fn meaning(name: &str) -> &'static str {
    match name {
        "kept" => "fraction of the scored weights that is kept",
        "score_batches" => "batches over which weights are scored",
        "score_loss" => "loss whose gradient gives the score",
        "contrast" => "score beyond what everything else depends on",
        "other_words" => "words of the vocabulary that are tried for meaning the concept too (0: none)",
        "edit" => "weight of the forget prompts in the closed-form edit that the repair starts from (0: none)",
        "init" => "what trimmed weights become",
        "score_scope" => "weights that are scored",
        "trim_scope" => "weights that may be trimmed",
        "train_scope" => "weights that the repair trains",
        "project_scope" => "weights over which gradients are projected",
        "forget_term" => "how the concept is pushed away",
        "teacher" => "who predicts the anchor",
        "push" => "how far beyond the anchor the target lies, in ways from the concept to the anchor",
        "lambda" => "weight of the forget term",
        "retain_target" => "what the retain batch is compared with",
        "learning_rate" => "Adam's learning rate",
        "cosine" => "whether it falls to zero along a half cosine",
        "repair_steps" => "repair steps",
        "forget_batch" => "rows of a forget batch",
        "retain_batch" => "rows of a retain batch",
        "batches" => "which data a step sees",
        "timesteps" => "how timesteps are drawn",
        "noise_weight" => "power of the noise level that losses are weighted by",
        "context" => "weight of keeping the keys and values of all retain prompts",
        "unconditional" => "fraction of retain rows with an empty prompt",
        "mixed" => "fraction of forget rows on retain latents",
        "projection.memories" => "gradient memories; 0 is no projection",
        "projection.every" => "steps between their refreshes; 0 is once",
        "projection.batches" => "forget batches that each is the mean of",
        "projection.margin" => "least multiplier of a violated memory",
        "projection.eps" => "added to the Gram matrix's diagonal",
        "projection.relative_eps" => "whether that is relative to its mean",
        "data.forget" => "training latents of the concept",
        "data.retain" => "training latents of everything else",
        "data.sampler" => "sampler that made them",
        "data.steps" => "its steps",
        "data.guidance_scale" => "its guidance scale",
        "data.one_retain_caption" => "whether they share a single caption",
        _ => "",
    }
}

/// Each word with how far it is from the concept.
fn other_words(report: &Report) -> Markup {
    let row = |word: &OtherWord| {
        let found = if word.means_the_concept() { "yes" } else { "no" };
        let of = word.of.as_ref().map_or_else(String::new, |of| format!(" (for “{of}”)"));
        vec![cell(format!("{}{of}", word.word)), cell(format!("{:.2}", word.distance)), cell(found)]
    };
    let table = Table {
        caption: "Words of the model’s vocabulary in the concept’s place".into(),
        head: vec!["word", "distance", "erased too"],
        rows: report.other_words.iter().map(row).collect(),
        total: false,
    };
    html! {
        p {
            "How far the base’s predictions for pictures of the concept move when a word takes the name’s place: 0 if not at "
            "all, 1 if as far as with the anchor or without the name. Up to " (number(THRESHOLD, 1)) " a word counts as another word for the concept. "
            "Words of the prompts that stay are not tried."
        }
        (table.html())
    }
}

fn prompts(r: &EraseReport<'_>) -> Markup {
    let c = r.concept;
    let kept = || c.verify.retain.iter().map(|retain| &retain.prompt).collect::<Vec<_>>();
    let preserved = c.verify.preserve.iter().map(|preserve| &preserve.prompt).collect();
    let lists: [(&str, Vec<&String>); 7] = [
        ("Training: the concept", c.forget.iter().collect()),
        ("Training: its anchors, in the same order", c.anchors.iter().collect()),
        ("Training: everything else", c.retain.iter().collect()),
        ("Verification: the concept", c.verify.forget.iter().collect()),
        ("Verification: synonyms", c.verify.synonyms.iter().collect()),
        ("Verification: everything else", kept()),
        ("Verification: what is to be preserved", preserved),
    ];
    html! {
        @for (name, prompts) in lists.iter().filter(|(_, prompts)| !prompts.is_empty()) {
            h3 { (name) " (" (count(prompts.len(), "prompt")) ")" }
            ol.prompts { @for prompt in prompts { li { (prompt) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_meaning() {
        let rows = flat(&Settings::preset("balanced").unwrap());
        assert!(rows.len() > 30);
        for (name, _) in rows {
            assert!(!meaning(&name).is_empty(), "{name} has no explanation in the report");
        }
    }
}
