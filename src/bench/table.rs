//! The outcomes of a grid as Markdown tables.

use super::results::Outcome;
use crate::audit::{BeforeAfter, Rate};
use std::fmt::Write;

/// Sums over concepts and seeds of one variant.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    runs: usize,
    pub(super) rate: Option<Rate>,
    worst: f64,
    synonyms: Option<Rate>,
    pub(super) drop: f64,
    worst_drop: f64,
    projected: f64,
    seconds: f64,
}

fn pooled<'a>(counts: impl Iterator<Item = &'a BeforeAfter>) -> Option<Rate> {
    let answers = counts.map(|c| (c.after.hits, c.after.n)).reduce(|a, b| (a.0 + b.0, a.1 + b.1))?;
    Some(Rate::counted(answers.0, answers.1))
}

impl<'a> Row<'a> {
    fn new(name: &'a str, outcomes: &[&Outcome]) -> Self {
        let mean = |f: &dyn Fn(&Outcome) -> f64| {
            outcomes.iter().map(|outcome| f(outcome)).sum::<f64>() / outcomes.len().max(1) as f64
        };
        let worst = |f: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(|outcome| f(outcome)).fold(f64::MIN, f64::max);
        let rate = |o: &Outcome| o.counts.rate.as_ref().map_or(0.0, |rate| rate.after.fraction());
        let drop = |o: &Outcome| o.counts.mean_drop.as_ref().map_or(0.0, |mean| mean.drop);
        Self {
            name,
            runs: outcomes.len(),
            rate: pooled(outcomes.iter().filter_map(|o| o.counts.rate.as_ref())),
            worst: worst(&rate),
            synonyms: pooled(outcomes.iter().filter_map(|o| o.counts.synonyms.as_ref())),
            drop: mean(&drop),
            worst_drop: worst(&drop),
            projected: mean(&|o| o.projected),
            seconds: mean(&|o| o.seconds),
        }
    }
}

/// A row a variant, in the order of `variants`; those without an outcome are left out.
pub(super) fn rows<'a>(variants: &'a [String], outcomes: &[Outcome]) -> Vec<Row<'a>> {
    let of = |name: &String| outcomes.iter().filter(|outcome| outcome.variant == *name).collect::<Vec<_>>();
    let rows = variants.iter().map(|name| (name, of(name))).filter(|(_, outcomes)| !outcomes.is_empty());
    rows.map(|(name, outcomes)| Row::new(name, &outcomes)).collect()
}

fn percent(rate: &Option<Rate>) -> String {
    rate.as_ref().map_or("-".into(), |rate| format!("{:.1} %", 100.0 * rate.fraction()))
}

/// A Markdown table, a line a variant, in the order of `variants`.
pub fn table(variants: &[String], outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| variant | runs | concept | worst run | synonyms | mean drop, points | worst run | steps projected | seconds |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows(variants, outcomes) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} % | {} | {:.1} | {:.1} | {:.0} % | {:.0} |",
            row.name,
            row.runs,
            percent(&row.rate),
            100.0 * row.worst,
            percent(&row.synonyms),
            100.0 * row.drop,
            100.0 * row.worst_drop,
            100.0 * row.projected,
            row.seconds,
        );
    }
    text
}

/// A Markdown table, a line a run, in the order of `outcomes`.
pub fn runs(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| variant | concept | seed | shown before | after | synonyms before | after | mean drop, points (95 %) | worst axis |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let pair = |counts: &Option<BeforeAfter>| match counts {
        Some(BeforeAfter { before, after }) => {
            format!("{} of {} | {} ({:.1} %)", before.hits, before.n, after.hits, 100.0 * after.fraction())
        }
        None => "- | -".into(),
    };
    for o in outcomes {
        let c = &o.counts;
        let drop = c
            .mean_drop
            .as_ref()
            .map_or("-".into(), |m| format!("{:.1} ({:.1} to {:.1})", 100.0 * m.drop, 100.0 * m.low, 100.0 * m.high));
        let worst = c.retain.iter().max_by(|a, b| a.1.drop.total_cmp(&b.1.drop));
        let worst = worst.map_or("-".into(), |(name, axis)| format!("{name} {:.1}", 100.0 * axis.drop));
        let (rate, synonyms) = (pair(&c.rate), pair(&c.synonyms));
        let _ =
            writeln!(text, "| {} | {} | {} | {rate} | {synonyms} | {drop} | {worst} |", o.variant, o.concept, o.seed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Comparison, MeanDrop};
    use std::collections::BTreeMap;

    #[test]
    fn runs_are_pooled_and_the_worst_is_named() {
        let outcome = |variant: &str, hits, drop| {
            let rate = |hits| Rate::counted(hits, 100);
            let counts = Comparison {
                rate: Some(BeforeAfter { before: rate(95), after: rate(hits) }),
                synonyms: None,
                retain: BTreeMap::new(),
                mean_drop: Some(MeanDrop { drop, low: 0.0, high: 0.1 }),
            };
            let (key, variant, concept) = (String::new(), variant.to_string(), String::new());
            Outcome { key, variant, concept, seed: 0, counts, projected: 0.25, retain_loss: 0.0, seconds: 10.0 }
        };
        let outcomes = [outcome("a", 2, 0.01), outcome("b", 50, 0.2), outcome("a", 6, 0.03)];
        let names = ["b", "a", "c"].map(String::from);
        let text = table(&names, &outcomes);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[1], "| a | 2 | 4.0 % | 6.0 % | - | 2.0 | 3.0 | 25 % | 10 |");
        assert!(lines[0].starts_with("| b | 1 | 50.0 %") && lines.len() == 2);
        let text = runs(&outcomes);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[1], "| b |  | 0 | 95 of 100 | 50 (50.0 %) | - | - | 20.0 (0.0 to 10.0) | - |");
        assert_eq!(lines.len(), 3);
    }
}
