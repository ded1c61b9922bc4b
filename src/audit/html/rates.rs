//! How often the concept and its synonyms appear.

use super::EraseReport;
use super::page::Section;
use super::plots::{Axis, Interval, figure, intervals};
use super::tables::{Table, cell};
use super::words::{percent, thousands};
use crate::audit::{BeforeAfter, Rate};
use maud::html;

pub fn section(r: &EraseReport<'_>) -> Section {
    let (name, counts) = (&r.report.concept, &r.report.counts);
    let rates = [(format!("prompts that name “{name}”"), &counts.rate), ("synonyms".to_string(), &counts.synonyms)];
    let each = r.report.concepts.iter().flat_map(|one| {
        [
            (format!("prompts that name “{}”", one.name), &one.rate),
            (format!("synonyms of “{}”", one.name), &one.synonyms),
        ]
    });
    let rates: Vec<_> = if r.report.concepts.is_empty() { rates.into() } else { each.chain(rates).collect() };
    let known: Vec<(&String, &BeforeAfter)> =
        rates.iter().filter_map(|(what, rate)| Some((what, rate.as_ref()?))).collect();
    let body = html! {
        @match (&r.report.detector, known.is_empty()) {
            (Some(d), false) => {
                p { "Each picture was looked at by the " (d.name) ": " (d.rule) ". The interval is Wilson's, at 95 %: if the job "
                    "were repeated with ever new seeds, about 19 of 20 such intervals would hold the true rate." }
                (figure(
                    &intervals("Concept rate before and after", &axis(), &rows(&known), false),
                    &html! { "Concept rate with 95 % Wilson intervals." },
                ))
                (table(&known).html())
                @if counts.synonyms.is_none() {
                    p.notice { "The concept has no synonym prompts, so that words that mean the same were not tested." }
                }
            }
            _ => {
                p.notice { "Nothing was counted: no detector that knows “" (name) "” lies beside this model. Whether the concept "
                    "is gone can only be judged by eye, from the pictures above." }
            }
        }
    };
    Section { id: "rate", title: format!("How often “{name}” appears"), nav: "Concept rate", body }
}

fn axis() -> Axis {
    Axis { min: 0.0, max: 100.0, unit: " %", title: "pictures in which it is found".into() }
}

fn rows(known: &[(&String, &BeforeAfter)]) -> Vec<Interval> {
    let row = |what: &str, when: &'static str, rate: &Rate| Interval {
        label: format!("{what}, {when}"),
        text: percent(rate.fraction()),
        value: 100.0 * rate.fraction(),
        low: 100.0 * rate.low,
        high: 100.0 * rate.high,
        class: when,
    };
    let both = |(what, r): &(&String, &BeforeAfter)| [row(what, "before", &r.before), row(what, "after", &r.after)];
    known.iter().flat_map(both).collect()
}

fn table(known: &[(&String, &BeforeAfter)]) -> Table {
    let row = |what: &str, when: &str, rate: &Rate| {
        vec![
            cell(format!("{what}, {when}")),
            cell(thousands(rate.n)),
            cell(thousands(rate.hits)),
            cell(percent(rate.fraction())),
            cell(format!("{} – {}", percent(rate.low), percent(rate.high))),
        ]
    };
    let both = |(what, r): &(&String, &BeforeAfter)| [row(what, "before", &r.before), row(what, "after", &r.after)];
    Table {
        caption: "Concept rate".into(),
        head: vec!["prompts", "pictures", "found", "rate", "95 % interval"],
        rows: known.iter().flat_map(both).collect(),
        total: false,
    }
}
