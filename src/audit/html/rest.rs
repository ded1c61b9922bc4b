//! What everything else lost: accuracy by axis and by label.

use super::EraseReport;
use super::page::Section;
use super::plots::{Axis, Interval, figure, intervals};
use super::tables::{Table, cell, more};
use super::words::{number, percent, points, thousands};
use crate::audit::{BeforeAfter, DriftMean, PreservedCounts, Rate, RetainAxis};
use maud::html;

pub fn section(r: &EraseReport<'_>) -> Section {
    let counts = &r.report.counts;
    let body = html! {
        @if counts.retain.is_empty() {
            p.notice { "Nothing was counted: no detector beside this model recognises what the other prompts ask for. The drift "
                "below says how far those pictures moved, though not whether they became worse." }
        } @else {
            p { "Prompts for other things state what should be seen: a shape, a colour, a background. Accuracy is the fraction of "
                "pictures in which the detector sees what was asked for. Before and after are compared picture by picture, with "
                "the same prompt and seed, so that luck of the draw cancels out. An interval that includes zero means that the "
                "change cannot be told from chance." }
            (figure(
                &intervals("Change in accuracy", &axis(&rows(r)), &rows(r), true),
                &html! { "Change in accuracy, after minus before, with paired 95 % intervals; left of zero is lost." },
            ))
            (table(r).html())
            (more("Every label, counted", &labels(r).html()))
        }
        @if !r.report.preserve.is_empty() {
            h3 { "What was asked to be preserved" }
            p { "Each name or prompt, drawn by prompts that were not trained on. “Found” counts the pictures in which the detector "
                "sees all labels that the words state; it is empty where it knows none of them." }
            (preserved(r).html())
        }
    };
    Section { id: "rest", title: "What the rest lost".into(), nav: "The rest", body }
}

fn change(low: f64, high: f64) -> String {
    // a drop of low to high is a change of -high to -low
    format!("{} to {}", points(-high), points(-low))
}

fn rows(r: &EraseReport<'_>) -> Vec<Interval> {
    let row = |label: &str, drop: f64, low: f64, high: f64, class| Interval {
        label: label.to_string(),
        text: format!("{} ({})", points(-drop), change(low, high)),
        value: -100.0 * drop,
        low: -100.0 * high,
        high: -100.0 * low,
        class,
    };
    let mut rows: Vec<Interval> =
        r.report.counts.retain.iter().map(|(name, a)| row(name, a.drop, a.drop_low, a.drop_high, "after")).collect();
    if let Some(m) = &r.report.counts.mean_drop {
        rows.push(row("mean", m.drop, m.low, m.high, "plain"));
    }
    rows
}

/// At least five points to either side.
fn axis(rows: &[Interval]) -> Axis {
    let min = rows.iter().map(|row| row.low).fold(-5.0, f64::min);
    let max = rows.iter().map(|row| row.high).fold(5.0, f64::max);
    Axis { min, max, unit: "", title: "change in accuracy, percentage points".into() }
}

fn table(r: &EraseReport<'_>) -> Table {
    let verdict = |low: f64, high: f64| match (low > 0.0, high < 0.0) {
        (true, _) => "lost",
        (_, true) => "gained",
        _ => "within noise",
    };
    let row = |(name, a): (&String, &RetainAxis)| {
        vec![
            cell(name),
            cell(thousands(a.n)),
            cell(percent(a.before)),
            cell(percent(a.after)),
            cell(points(-a.drop)),
            cell(change(a.drop_low, a.drop_high)),
            cell(verdict(a.drop_low, a.drop_high)),
        ]
    };
    let counts = &r.report.counts;
    let mut rows: Vec<_> = counts.retain.iter().map(row).collect();
    if let Some(m) = &counts.mean_drop {
        let mean = |f: fn(&RetainAxis) -> f64| counts.retain.values().map(f).sum::<f64>() / counts.retain.len() as f64;
        rows.push(vec![
            cell("mean"),
            cell(""),
            cell(percent(mean(|a| a.before))),
            cell(percent(mean(|a| a.after))),
            cell(points(-m.drop)),
            cell(change(m.low, m.high)),
            cell(verdict(m.low, m.high)),
        ]);
    }
    Table {
        caption: "Accuracy on everything else".into(),
        head: vec!["what is asked for", "pictures", "before", "after", "change, points", "95 % interval", "verdict"],
        rows,
        total: counts.mean_drop.is_some(),
    }
}

fn preserved(r: &EraseReport<'_>) -> Table {
    let row = |kept: &PreservedCounts| {
        let found = |of: fn(&BeforeAfter) -> &Rate| {
            let rate = kept.rate.as_ref().map(of);
            cell(rate.map_or_else(String::new, |rate| format!("{} of {}", rate.hits, rate.n)))
        };
        let moved = |of: fn(&DriftMean) -> String| cell(kept.drift.as_ref().map_or_else(String::new, of));
        vec![
            cell(&kept.name),
            cell(kept.labels.join(", ")),
            found(|rate| &rate.before),
            found(|rate| &rate.after),
            moved(|drift| thousands(drift.n)),
            moved(|drift| number(drift.difference, 1)),
            moved(|drift| number(drift.ssim, 3)),
        ]
    };
    Table {
        caption: "What was asked to be preserved".into(),
        head: vec!["name or prompt", "labels", "found before", "after", "pictures", "difference", "SSIM"],
        rows: r.report.preserve.iter().map(row).collect(),
        total: false,
    }
}

fn labels(r: &EraseReport<'_>) -> Table {
    let counts = &r.report.counts;
    let rows = counts.retain.values().flat_map(|axis| &axis.labels).map(|(label, c)| {
        let change = (c.after as f64 - c.before as f64) / c.n.max(1) as f64;
        vec![
            cell(label),
            cell(thousands(c.n)),
            cell(thousands(c.before)),
            cell(thousands(c.after)),
            cell(points(change)),
        ]
    });
    Table {
        caption: "Pictures in which each label was found".into(),
        head: vec!["label", "pictures", "before", "after", "change, points"],
        rows: rows.collect(),
        total: false,
    }
}
