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

/// An SVG: each variant's concept rate (across) and mean drop of everything else (up), as a number that the legend at the right
/// explains; good is at the lower left.
pub fn plot(variants: &[String], outcomes: &[Outcome]) -> String {
    let rows = rows(variants, outcomes);
    let rate = |row: &Row<'_>| row.rate.as_ref().map_or(0.0, Rate::fraction);
    let top = |f: &dyn Fn(&Row<'_>) -> f64| rows.iter().map(f).fold(0.05, f64::max) * 1.05;
    let (x_max, y_max) = (top(&rate), top(&|row| row.drop));
    let y_min = rows.iter().map(|row| row.drop).fold(0.0, f64::min) * 1.2;
    let x = |value: f64| LEFT + value / x_max * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - (value - y_min) / (y_max - y_min) * (BOTTOM - TOP);
    let height = (BOTTOM + 50.0).max(TOP + LINE * (rows.len() as f64 + 1.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for i in 0..=5 {
        let (vx, vy) = (x_max * f64::from(i) / 5.0, y_min + (y_max - y_min) * f64::from(i) / 5.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} {TOP}V{BOTTOM}M{LEFT} {1:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{0:.1}\" y=\"{2}\" \
             text-anchor=\"middle\">{3:.0} %</text><text x=\"{4}\" y=\"{5:.1}\" text-anchor=\"end\">{6:.1}</text>",
            x(vx),
            y(vy),
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
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 38.0
    );
    for (i, row) in rows.iter().enumerate() {
        let (number, name) = (i + 1, row.name.replace('&', "&amp;").replace('<', "&lt;"));
        let (cx, cy, line) = (x(rate(row)), y(row.drop), TOP + 4.0 + LINE * i as f64);
        let colour = if i == 0 { "#c2410c" } else { "#2563eb" };
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             fill=\"{colour}\">{number}</text><text x=\"{}\" y=\"{line}\" fill=\"{colour}\">{number} {name}</text>",
            cx + 4.0,
            cy - 3.0,
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
}
