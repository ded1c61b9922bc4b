//! Numbers and sentences for people.

/// A space that does not break.
pub const NBSP: char = '\u{a0}';

/// `0.042` as `4.2 %`.
pub fn percent(fraction: f64) -> String {
    format!("{}{NBSP}%", number(100.0 * fraction, 1))
}

/// A difference of fractions in points, with its sign: `-0.021` as `−2.1`.
pub fn points(fraction: f64) -> String {
    signed(100.0 * fraction, 1)
}

/// With a sign, `−` for negative numbers; none for what rounds to nothing.
pub fn signed(value: f64, digits: usize) -> String {
    let text = number(value, digits);
    let nothing = text.chars().all(|c| "−0.".contains(c));
    match (nothing, value > 0.0) {
        (true, _) => text.trim_start_matches('−').to_string(),
        (false, true) => format!("+{text}"),
        (false, false) => text,
    }
}

/// Rounded to some digits, with a real minus sign.
pub fn number(value: f64, digits: usize) -> String {
    format!("{value:.digits$}").replace('-', "−")
}

/// To three digits that matter: `0.000512`, `1.23`, `51.9`; very small and large ones as `1.2e-7`.
pub fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let power = value.abs().log10().floor() as i32;
    if !(-4..=5).contains(&power) {
        return format!("{value:.1e}").replace('-', "−");
    }
    number(value, usize::try_from(2 - power).unwrap_or(0))
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `a, b and c`.
pub fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `1 picture`, `2 pictures`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{}{NBSP}{thing}{}", thousands(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([percent(0.0), percent(0.0416), percent(1.0)], ["0.0\u{a0}%", "4.2\u{a0}%", "100.0\u{a0}%"]);
        assert_eq!([points(-0.0213), points(0.004), points(-0.0004), points(0.0)], ["−2.1", "+0.4", "0.0", "0.0"]);
        assert_eq!(
            [thousands(0), thousands(999), thousands(1000), thousands(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [figure(0.000_512_3), figure(1.234), figure(51.87), figure(1.2e-7), figure(0.0)],
            ["0.000512", "1.23", "51.9", "1.2e−7", "0"]
        );
        assert_eq!([figure(8e-4), figure(123_456.0)], ["0.000800", "123456"]);
        assert_eq!(list(&["a", "b", "c"].map(String::from)), "a, b and c");
        assert_eq!([count(1, "picture"), count(2000, "picture")], ["1\u{a0}picture", "2,000\u{a0}pictures"]);
    }
}
