//! What jobs that only look (`doctor`, `inspect`) print: text for people or one JSON document, on stdout.

use crate::{Error, Result};
use serde::Serialize;
use std::io::Write;

/// A text on stdout; a reader that went away (`| head`) is nobody's problem.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
}

/// One JSON document on stdout.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).map_err(Error::usage)?);
    Ok(())
}

/// A size in words: `1.5 GiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, "");
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit.is_empty() { format!("{n} bytes") } else { format!("{value:.1} {unit}") }
}

/// A number with its thousands apart: `859,520,964`.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let from_end = |i: usize| digits.len() - i;
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && from_end(i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Names and values in two columns.
pub(super) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_read_well() {
        let sizes =
            [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")];
        for (n, text) in sizes {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (859_520_964, "859,520,964")] {
            assert_eq!(thousands(n), text);
        }
        assert_eq!(table(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
