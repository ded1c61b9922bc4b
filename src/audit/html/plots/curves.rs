//! A quantity over steps: every step, its moving mean, and marks below.

use super::super::words::figure;
use super::{Axis, ticks};
use maud::{Markup, html};

const HEIGHT: u32 = 170;
/// Above the plot, for the highest tick's number.
const TOP: u32 = 16;
/// Below the plot, for the marks.
const RUG: u32 = 14;

/// A curve.
pub struct Curve<'a> {
    /// What it is.
    pub name: String,
    /// A value a step; what is not finite is left out.
    pub values: &'a [f64],
    /// Steps that are marked below.
    pub marked: &'a [usize],
    /// `before`, `after` or `plain`: which colour.
    pub class: &'static str,
}

/// The figure, from 0 up (or from the least value, if one is negative).
pub fn curve(c: &Curve<'_>) -> Markup {
    let finite: Vec<f64> = c.values.iter().copied().filter(|v| v.is_finite()).collect();
    let low = finite.iter().copied().fold(0.0, f64::min);
    let high = finite.iter().copied().fold(low, f64::max);
    let high = if high > low { low + (high - low) * 1.02 } else { low + 1.0 };
    let last = c.values.len().saturating_sub(1).max(1) as f64;
    let axis = Axis { min: 1.0, max: last + 1.0, unit: "", title: "repair step".into() };
    let up = |value: f64| 100.0 * (1.0 - (value - low) / (high - low));
    let line = |values: &[f64]| -> String {
        let point =
            |(i, v): (usize, &f64)| v.is_finite().then(|| format!("{:.2},{:.3}", 1000.0 * i as f64 / last, up(*v)));
        values.iter().enumerate().filter_map(point).collect::<Vec<_>>().join(" ")
    };
    let y = |value: f64| format!("{:.1}", f64::from(TOP) + f64::from(HEIGHT) * up(value) / 100.0);
    let bottom = TOP + HEIGHT + RUG;
    let said = match (finite.first(), finite.last()) {
        (Some(first), Some(last)) => {
            format!("{}: {} at the first step, {} at the last", c.name, figure(*first), figure(*last))
        }
        _ => c.name.clone(),
    };
    html! {
        svg.curve role="img" aria-label={ (said) "; " (c.marked.len()) " of " (c.values.len()) " steps projected" }
            width="100%" height=(bottom + 44) {
            (axis.html(TOP, bottom))
            @for tick in ticks(low, high, 4) {
                line.grid x1="0" x2="100%" y1=(y(tick)) y2=(y(tick)) {}
            }
            svg x="2%" y=(TOP) width="96%" height=(HEIGHT) viewBox="0 0 1000 100" preserveAspectRatio="none" overflow="visible" {
                polyline.raw.(c.class) points=(line(c.values)) {}
                polyline.mean.(c.class) points=(line(&moving_mean(c.values))) {}
            }
            // over the curves, so that the numbers can be read
            @for tick in ticks(low, high, 4) { text.tick x="0" y=(y(tick)) dy="-4" { (short(tick)) } }
            @for step in c.marked {
                @let x = axis.x(*step as f64 + 1.0);
                line.rug x1=(x) x2=(x) y1=(TOP + HEIGHT + 3) y2=(bottom - 1) {}
            }
        }
    }
}

/// Without zeros at its end.
fn short(value: f64) -> String {
    let text = figure(value);
    if text.contains('.') && !text.contains('e') {
        return text.trim_end_matches('0').trim_end_matches('.').to_string();
    }
    text
}

/// Mean over a twentieth of the steps around each, of what is finite.
fn moving_mean(values: &[f64]) -> Vec<f64> {
    let reach = (values.len() / 40).max(1);
    let around = |i: usize| {
        let near = &values[i.saturating_sub(reach)..(i + reach + 1).min(values.len())];
        let near: Vec<f64> = near.iter().copied().filter(|v| v.is_finite()).collect();
        near.iter().sum::<f64>() / near.len() as f64
    };
    (0..values.len()).map(around).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_every_finite_step_and_marks_what_is_marked() {
        let values = [1.0, f64::NAN, 0.5, 0.0];
        let svg =
            curve(&Curve { name: "retain".into(), values: &values, marked: &[0, 3], class: "before" }).into_string();
        assert!(svg.contains("points=\"0.00,1.961 666.67,50.980 1000.00,100.000\""), "{svg}");
        assert_eq!(svg.matches("class=\"rug\"").count(), 2);
        assert!(svg.contains("retain: 1.00 at the first step, 0 at the last; 2 of 4 steps projected"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!([short(0.0005), short(20.0), short(0.0), short(2e-8)], ["0.0005", "20", "0", "2.0e−8"]);
        assert_eq!(moving_mean(&[f64::INFINITY, 2.0, 4.0])[0], 2.0);
        // nothing at all is drawn as nothing
        assert!(
            !curve(&Curve { name: "x".into(), values: &[], marked: &[], class: "before" })
                .into_string()
                .contains("NaN")
        );
    }
}
