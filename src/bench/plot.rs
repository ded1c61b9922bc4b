//! The outcomes of a grid as a picture.

use super::results::Outcome;
use super::table::{Row, rows};
use crate::audit::Rate;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 540.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 410.0;
/// Height of a line of the legend.
const LINE: f64 = 16.0;

/// Where the axes have lines, in percent and points.
const TICKS: [f64; 12] = [-10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// Square roots, so that small differences show beside large ones.
fn root(value: f64) -> f64 {
    value.signum() * value.abs().sqrt()
}

/// Where numbers stand beside their points (from the point, at the start of the text): the first place that touches no other
/// point or number, or else the first.
fn beside(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut taken: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x - 3.0, y + 3.0)).collect();
    let free = |taken: &[(f64, f64)], own: usize, (x, y): (f64, f64)| {
        let far = |(i, (tx, ty)): (usize, &(f64, f64))| i == own || (tx - x).abs() > 13.0 || (ty - y).abs() > 9.0;
        taken.iter().enumerate().all(far)
    };
    let mut places = Vec::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let around = [5.0, 20.0, 35.0]
            .into_iter()
            .flat_map(|d| [(d, -3.0), (d, 10.0), (-d - 10.0, -3.0), (-d - 10.0, 10.0), (-4.0, -d), (-4.0, d + 6.0)]);
        let all: Vec<_> = around.map(|(dx, dy)| (x + dx, y + dy)).collect();
        let place = *all.iter().find(|place| free(&taken, i, **place)).unwrap_or(&all[0]);
        taken.push(place);
        places.push(place);
    }
    places
}

/// An SVG: each variant's concept rate (across) and mean drop of everything else (up), as a number that the legend at the right
/// explains; good is at the lower left. Both axes go by square roots.
pub fn plot(variants: &[String], outcomes: &[Outcome]) -> String {
    let rows = rows(variants, outcomes);
    let rate = |row: &Row<'_>| 100.0 * row.rate.as_ref().map_or(0.0, Rate::fraction);
    let drop = |row: &Row<'_>| 100.0 * row.drop;
    let top = |f: &dyn Fn(&Row<'_>) -> f64| root(rows.iter().map(f).fold(5.0, f64::max)) * 1.03;
    let (x_max, y_max) = (top(&rate), top(&drop));
    let y_min = root(rows.iter().map(drop).fold(0.0, f64::min)) * 1.1;
    let x = |value: f64| LEFT + root(value) / x_max * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - (root(value) - y_min) / (y_max - y_min) * (BOTTOM - TOP);
    let height = (BOTTOM + 50.0).max(TOP + LINE * (rows.len() as f64 + 1.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tick in TICKS.into_iter().filter(|tick| (0.0..=x_max).contains(&root(*tick))) {
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/><text x=\"{0:.1}\" y=\"{1}\" \
             text-anchor=\"middle\">{tick} %</text>",
            x(tick),
            BOTTOM + 16.0,
        );
    }
    for tick in TICKS.into_iter().filter(|tick| (y_min..=y_max).contains(&root(*tick))) {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{2:.1}\" \
             text-anchor=\"end\">{tick}</text>",
            y(tick),
            LEFT - 6.0,
            y(tick) + 4.0,
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">pictures that still show the concept</text><text x=\"10\" \
         y=\"18\">mean drop of everything else, points</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 38.0
    );
    let points: Vec<_> = rows.iter().map(|row| (x(rate(row)), y(drop(row)))).collect();
    for (i, ((row, (cx, cy)), (tx, ty))) in rows.iter().zip(&points).zip(beside(&points)).enumerate() {
        let (number, name) = (i + 1, row.name.replace('&', "&amp;").replace('<', "&lt;"));
        let line = TOP + 4.0 + LINE * i as f64;
        let colour = if i == 0 { "#c2410c" } else { "#2563eb" };
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/><text x=\"{tx:.1}\" y=\"{ty:.1}\" \
             fill=\"{colour}\">{number}</text><text x=\"{}\" y=\"{line}\" fill=\"{colour}\">{number} {name}</text>",
            RIGHT + 20.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{BeforeAfter, Comparison, MeanDrop};
    use std::collections::BTreeMap;

    #[test]
    fn every_variant_has_a_point_and_a_line_of_the_legend() {
        let outcome = |variant: &str, hits, drop| {
            let rate = Rate::counted(hits, 100);
            let counts = Comparison {
                rate: Some(BeforeAfter { before: rate.clone(), after: rate }),
                synonyms: None,
                retain: BTreeMap::new(),
                mean_drop: Some(MeanDrop { drop, low: 0.0, high: 0.1 }),
            };
            let (key, concept) = (String::new(), String::new());
            Outcome {
                key,
                variant: variant.into(),
                concept,
                seed: 0,
                counts,
                projected: 0.,
                retain_loss: 0.,
                seconds: 1.,
            }
        };
        let svg = plot(&["a<b".into(), "c".into()], &[outcome("a<b", 50, 0.1), outcome("c", 0, -0.1)]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains(">1 a&lt;b</text>") && svg.contains(">2 c</text>"));
        // more of the concept lies further right, a larger drop further up
        let place = |attribute: &str| -> Vec<f64> {
            svg.split(&format!("{attribute}=\""))
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
                .collect()
        };
        let (across, down) = (place(" cx"), place(" cy"));
        assert!(across[0] > across[1] && down[0] < down[1], "{across:?} {down:?}");
    }

    #[test]
    fn numbers_of_points_in_one_place_do_not_lie_on_each_other() {
        let places = beside(&[(100.0, 100.0), (101.0, 100.0), (100.0, 102.0), (300.0, 100.0)]);
        for (i, a) in places.iter().enumerate() {
            for b in &places[..i] {
                assert!((a.0 - b.0).abs() > 13.0 || (a.1 - b.1).abs() > 9.0, "{a:?} {b:?}");
            }
        }
    }
}
