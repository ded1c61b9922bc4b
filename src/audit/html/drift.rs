//! How far pictures of everything else moved.

use super::EraseReport;
use super::page::Section;
use super::pictures::{BEFORE_AFTER, Pair, Side, gallery};
use super::plots::{Axis, Mark, figure, histogram};
use super::tables::{Table, cell, more};
use super::words::{count, number, thousands};
use crate::Result;
use crate::audit::{Move, PromptDrift};
use maud::{Markup, html};

/// Prompts named at either end.
const NAMED: usize = 5;
/// Pictures shown that moved most.
const SHOWN: usize = 4;
const BINS: usize = 30;

pub fn section(r: &EraseReport<'_>) -> Result<Section> {
    let drift = &r.report.drift;
    let prompts = &drift.prompts;
    let body = html! {
        p { "For every picture of everything else: how far the picture of the same prompt and seed moved. Difference is the mean "
            "absolute difference of its pixels' values, from 0 (nothing changed) to 255 (black became white). SSIM is structural "
            "similarity, 1 for equal pictures. Drift says that a picture is another one, not that it is a worse one." }
        @if prompts.is_empty() {
            p.notice { "There are no verification pictures of anything else." }
        } @else {
            (figure(&plot(r), &html! {
                "Prompts by their mean difference" @if let Some(m) = &drift.retain { "; over all " (count(m.n, "picture")) ", SSIM is "
                (number(m.ssim, 3)) " on average" } "."
            }))
            @if prompts.len() > 2 * NAMED {
                div.two {
                    (table("Most drifted prompts", &prompts[..NAMED], prompts).html())
                    (table("Least drifted prompts", &least(prompts), prompts).html())
                }
                (more(&format!("All {}", count(prompts.len(), "prompt")), &table("Drift of every prompt", prompts, prompts).html()))
            } @else {
                (table("Drift of every prompt", prompts, prompts).html())
            }
            h3 { "The pictures that moved most" }
            (farthest(r.moves)?)
        }
        p.note { "Definition: " (drift.definition) "." }
    };
    Ok(Section { id: "drift", title: "How far pictures moved".into(), nav: "Drift", body })
}

fn least(prompts: &[PromptDrift]) -> Vec<PromptDrift> {
    prompts.iter().rev().take(NAMED).cloned().collect()
}

fn plot(r: &EraseReport<'_>) -> Markup {
    let drift = &r.report.drift;
    let values: Vec<f64> = drift.prompts.iter().map(|p| p.mean.difference).collect();
    let mark = |label: &str, mean: &Option<crate::audit::DriftMean>, class| {
        mean.as_ref().map(|m| Mark {
            label: format!("{label} {}", number(m.difference, 1)),
            value: m.difference,
            class,
        })
    };
    let marks: Vec<Mark> =
        [mark("everything else, mean", &drift.retain, "before"), mark("the concept, mean", &drift.concept, "after")]
            .into_iter()
            .flatten()
            .collect();
    let max = values.iter().copied().chain(marks.iter().map(|m| m.value)).fold(1.0, f64::max);
    let axis = Axis { min: 0.0, max: 1.02 * max, unit: "", title: "mean absolute difference, 0 to 255".into() };
    histogram("Drift of the prompts for everything else", &axis, &values, BINS, "prompt", &marks)
}

/// `rows` of `all`, which are sorted, the most drifted first.
pub(super) fn table(caption: &str, rows: &[PromptDrift], all: &[PromptDrift]) -> Table {
    let most = all.first().map_or(1.0, |p| p.mean.difference).max(1e-9);
    let bar = |value: f64| html! { span.bar style={ "--share:" (number(100.0 * value / most, 1)) "%" } { (number(value, 1)) } };
    let row = |p: &PromptDrift| {
        vec![cell(&p.prompt), cell(thousands(p.mean.n)), bar(p.mean.difference), cell(number(p.mean.ssim, 3))]
    };
    Table {
        caption: caption.into(),
        head: vec!["prompt", "pictures", "difference", "SSIM"],
        rows: rows.iter().map(row).collect(),
        total: false,
    }
}

fn farthest(moves: &[Move<'_>]) -> Result<Markup> {
    let mut moves: Vec<&Move<'_>> = moves.iter().filter(|m| m.group == "retain").collect();
    moves.sort_by(|a, b| b.difference.total_cmp(&a.difference));
    let pair = |m: &&Move<'_>| {
        Ok(Pair {
            prompt: m.prompt.to_string(),
            seed: m.seed,
            sides: [Side::new(m.before, None, false)?, Side::new(m.after, None, false)?],
            note: Some(format!("difference {}, SSIM {}", number(m.difference, 1), number(m.ssim, 3))),
        })
    };
    let pairs = moves.iter().take(SHOWN).map(pair).collect::<Result<Vec<_>>>()?;
    Ok(gallery("pairs that moved most", &pairs, BEFORE_AFTER))
}
