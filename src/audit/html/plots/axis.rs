//! A horizontal axis: from values to percentages of the width, with ticks.

use super::super::words::number;
use maud::{Markup, html};

/// Percent of the width that is left free at either end.
const INSET: f64 = 2.0;

/// A horizontal axis.
pub struct Axis {
    /// Value at the left.
    pub min: f64,
    /// Value at the right.
    pub max: f64,
    /// Put after each tick's number.
    pub unit: &'static str,
    /// What is measured.
    pub title: String,
}

impl Axis {
    /// Where a value lies: `12.5%`.
    pub fn x(&self, value: f64) -> String {
        format!("{:.3}%", self.percent(value))
    }

    /// How much of the width lies between two values.
    pub fn width(&self, from: f64, to: f64) -> String {
        format!("{:.3}%", (self.percent(to) - self.percent(from)).max(0.0))
    }

    fn percent(&self, value: f64) -> f64 {
        let span = self.max - self.min;
        let share = if span > 0.0 { ((value - self.min) / span).clamp(0.0, 1.0) } else { 0.0 };
        INSET + (100.0 - 2.0 * INSET) * share
    }

    /// Grid lines from `top` to `bottom`, numbers and the title below.
    pub fn html(&self, top: u32, bottom: u32) -> Markup {
        let ticks = ticks(self.min, self.max, 5);
        let step = ticks.windows(2).map(|w| w[1] - w[0]).next().unwrap_or(1.0);
        let digits = if step < 0.1 { 2 } else { usize::from(step < 1.0) };
        html! {
            @for tick in &ticks {
                line.grid x1=(self.x(*tick)) x2=(self.x(*tick)) y1=(top) y2=(bottom) {}
                text.tick x=(self.x(*tick)) y=(bottom + 16) text-anchor=(self.anchor(*tick)) { (number(*tick, digits)) (self.unit) }
            }
            text.title x="50%" y=(bottom + 36) text-anchor="middle" { (self.title) }
        }
    }

    /// Letters at the ends stay inside.
    fn anchor(&self, value: f64) -> &'static str {
        match self.percent(value) {
            p if p < 6.0 => "start",
            p if p > 94.0 => "end",
            _ => "middle",
        }
    }
}

/// About `about` round numbers from `min` to `max`: multiples of 1, 2 or 5 times a power of ten.
pub fn ticks(min: f64, max: f64, about: usize) -> Vec<f64> {
    let span = max - min;
    if !(span > 0.0 && span.is_finite()) {
        return vec![min];
    }
    let rough = span / about.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|step| *step >= 0.999 * rough).unwrap_or(rough);
    let (first, last) = ((min / step - 1e-9).ceil() as i64, (max / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-3.0, 4.0, 5), [-2.0, 0.0, 2.0, 4.0]);
        assert_eq!(ticks(0.0, 0.0, 5), [0.0]);
        assert_eq!(ticks(0.0, f64::NAN, 5), [0.0]);
    }

    #[test]
    fn values_outside_stay_inside() {
        let axis = Axis { min: 0.0, max: 10.0, unit: "", title: String::new() };
        assert_eq!([axis.x(-5.0), axis.x(5.0), axis.x(99.0)], ["2.000%", "50.000%", "98.000%"]);
        assert_eq!(axis.width(0.0, 5.0), "48.000%");
    }
}
