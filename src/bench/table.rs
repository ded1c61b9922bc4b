//! The outcomes of a grid as a Markdown table and a picture.

use super::results::Outcome;
use crate::audit::{BeforeAfter, Rate};
use std::fmt::Write;

/// Sums over concepts and seeds of one variant.
struct Row<'a> {
    name: &'a str,
    runs: usize,
    rate: Option<Rate>,
    worst: f64,
    synonyms: Option<Rate>,
    drop: f64,
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

fn rows<'a>(variants: &'a [String], outcomes: &[Outcome]) -> Vec<Row<'a>> {
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

/// A picture (SVG): each variant's concept rate (across) and mean drop of everything else (up); good is at the lower left.
pub fn plot(variants: &[String], outcomes: &[Outcome]) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 460.0;
    const LEFT: f64 = 60.0;
    const BOTTOM: f64 = 410.0;
    let rows = rows(variants, outcomes);
    let rate = |row: &Row<'_>| row.rate.as_ref().map_or(0.0, Rate::fraction);
    let top = |f: &dyn Fn(&Row<'_>) -> f64, least: f64| rows.iter().map(f).fold(least, f64::max) * 1.05;
    let (x_max, y_max) = (top(&rate, 0.05), top(&|row| row.drop, 0.05));
    let y_min = rows.iter().map(|row| row.drop).fold(0.0, f64::min) * 1.2;
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - 170.0);
    let y = |value: f64| BOTTOM - (value - y_min) / (y_max - y_min) * (BOTTOM - 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for i in 0..=5 {
        let (vx, vy) = (x_max * f64::from(i) / 5.0, y_min + (y_max - y_min) * f64::from(i) / 5.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} 30V{BOTTOM}M{LEFT} {1:.1}H{2}\" stroke=\"#ddd\"/><text x=\"{0:.1}\" y=\"{3}\" \
             text-anchor=\"middle\">{4:.0} %</text><text x=\"{5}\" y=\"{6:.1}\" text-anchor=\"end\">{7:.0}</text>",
            x(vx),
            y(vy),
            WIDTH - 170.0,
            BOTTOM + 16.0,
            100.0 * vx,
            LEFT - 6.0,
            y(vy) + 4.0,
            100.0 * vy,
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">pictures that still show the concept</text><text x=\"10\" \
         y=\"18\">mean drop of everything else, points</text>",
        (LEFT + WIDTH - 170.0) / 2.0,
        BOTTOM + 38.0
    );
    for row in &rows {
        let _ = writeln!(
            svg,
            "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"4\" fill=\"#2563eb\"/><text x=\"{2:.1}\" y=\"{3:.1}\">{4}</text>",
            x(rate(row)),
            y(row.drop),
            x(rate(row)) + 7.0,
            y(row.drop) + 4.0,
            row.name.replace('&', "&amp;").replace('<', "&lt;"),
        );
    }
    svg.push_str("</svg>\n");
    svg
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
        let svg = plot(&names, &outcomes);
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
