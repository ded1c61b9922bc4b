//! Values with their 95 % intervals, one below the other on one axis.

use super::Axis;
use maud::{Markup, html};

/// A row's height.
const ROW: u32 = 44;

/// One value.
pub struct Interval {
    /// What it is.
    pub label: String,
    /// The value in words.
    pub text: String,
    /// The value on the axis.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// `before`, `after` or `plain`: which colour.
    pub class: &'static str,
}

/// The figure. `name` is what a screen reader says; the numbers of each row follow it.
pub fn intervals(name: &str, axis: &Axis, rows: &[Interval], zero: bool) -> Markup {
    let bottom = rows.len() as u32 * ROW + 4;
    let spoken = rows.iter().map(|row| format!("{}: {}", row.label, row.text)).collect::<Vec<_>>().join("; ");
    html! {
        svg.intervals role="img" aria-label={ (name) ". " (spoken) } width="100%" height=(bottom + 44) {
            (axis.html(0, bottom))
            @if zero { line.zero x1=(axis.x(0.0)) x2=(axis.x(0.0)) y1="0" y2=(bottom) {} }
            @for (i, row) in rows.iter().enumerate() {
                @let top = i as u32 * ROW;
                g.row {
                    text.label x="2%" y=(top + 16) { (row.label) }
                    text.value x="98%" y=(top + 16) text-anchor="end" { (row.text) }
                    line.whisker.(row.class) x1=(axis.x(row.low)) x2=(axis.x(row.high)) y1=(top + 31) y2=(top + 31) {}
                    @for end in [row.low, row.high] {
                        line.whisker.(row.class) x1=(axis.x(end)) x2=(axis.x(end)) y1=(top + 26) y2=(top + 36) {}
                    }
                    circle.dot.(row.class) cx=(axis.x(row.value)) cy=(top + 31) r="5.5" {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_drawn_where_it_lies_and_said_in_words() {
        let axis = Axis { min: 0.0, max: 100.0, unit: " %", title: "rate".into() };
        let row =
            Interval { label: "a <b>".into(), text: "50 %".into(), value: 50.0, low: 25.0, high: 75.0, class: "after" };
        let svg = intervals("Rates", &axis, &[row], false).into_string();
        assert!(svg.contains("aria-label=\"Rates. a &lt;b&gt;: 50 %\""), "{svg}");
        assert!(svg.contains("class=\"whisker after\" x1=\"26.000%\" x2=\"74.000%\""), "{svg}");
        assert!(svg.contains("cx=\"50.000%\"") && !svg.contains("class=\"zero\""), "{svg}");
    }
}
