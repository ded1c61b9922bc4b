//! How often values occur, with marks at some of them.

use super::super::words::{count, number};
use super::{Axis, ticks};
use maud::{Markup, html};

const HEIGHT: f64 = 140.0;
/// Above the bars: the marks' names, one line each.
const LINE: u32 = 18;

/// A value to point at.
pub struct Mark {
    /// What it is.
    pub label: String,
    /// Where.
    pub value: f64,
    /// `before`, `after` or `plain`: which colour.
    pub class: &'static str,
}

/// Bars of equal width over the axis; `thing` is what is counted.
pub fn histogram(name: &str, axis: &Axis, values: &[f64], bins: usize, thing: &str, marks: &[Mark]) -> Markup {
    let mut counts = vec![0usize; bins.max(1)];
    let (last, span) = (counts.len() - 1, axis.max - axis.min);
    let edge = |i: usize| axis.min + span * i as f64 / (last + 1) as f64;
    for value in values {
        let share = if span > 0.0 { (value - axis.min) / span } else { 0.0 };
        counts[((share.max(0.0) * (last + 1) as f64) as usize).min(last)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let top = marks.len() as u32 * LINE + 8;
    let bottom = top + HEIGHT as u32;
    let high = |n: f64| HEIGHT * n / (1.08 * most as f64);
    let spoken = marks.iter().map(|m| format!("; {}: {}", m.label, number(m.value, 1))).collect::<String>();
    html! {
        svg.histogram role="img" aria-label={ (name) ". " (count(values.len(), thing)) (spoken) } width="100%" height=(bottom + 44) {
            (axis.html(top, bottom))
            @for n in ticks(0.0, most as f64, 3).into_iter().filter(|n| *n > 0.0 && n.fract() == 0.0) {
                line.grid x1="0" x2="100%" y1=(y(bottom, high(n))) y2=(y(bottom, high(n))) {}
                text.tick x="100%" y=(y(bottom, high(n) + 4.0)) text-anchor="end" { (count(n as usize, thing)) }
            }
            @for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                rect.bar x=(axis.x(edge(i))) width=(axis.width(edge(i), edge(i + 1))) y=(y(bottom, high(*n as f64)))
                    height=(format!("{:.1}", high(*n as f64))) {}
            }
            @for (i, mark) in marks.iter().enumerate() {
                line.mark.(mark.class) x1=(axis.x(mark.value)) x2=(axis.x(mark.value)) y1=(i as u32 * LINE + 2) y2=(bottom) {}
            }
            @for (i, mark) in marks.iter().enumerate() {
                @let right = mark.value > axis.min + 0.5 * span;
                text.label.(mark.class) x=(axis.x(mark.value)) dx=(if right { "-6" } else { "6" }) y=(i as u32 * LINE + 13)
                    text-anchor=(if right { "end" } else { "start" }) { (mark.label) }
            }
        }
    }
}

fn y(bottom: u32, up: f64) -> String {
    format!("{:.1}", f64::from(bottom) - up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_once_and_ends_are_inside() {
        let axis = Axis { min: 0.0, max: 10.0, unit: "", title: "x".into() };
        let values = [0.0, 0.1, 4.9, 10.0, 12.0];
        let svg = histogram("Drift", &axis, &values, 10, "prompt", &[]).into_string();
        // 2, 1 and 2 of at most 2
        assert_eq!(svg.matches("<rect").count(), 3);
        let (full, half) = (format!("height=\"{:.1}\"", HEIGHT / 1.08), format!("height=\"{:.1}\"", HEIGHT / 2.16));
        assert_eq!((svg.matches(&full).count(), svg.matches(&half).count()), (2, 1), "{svg}");
        assert!(svg.contains("aria-label=\"Drift. 5\u{a0}prompts\""), "{svg}");
    }
}
