//! «Did you mean»: the known name nearest to a mistyped one.

/// The name within an edit distance of a third of its length (at least one edit), if any; the first of equals.
pub fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    let text = text.to_lowercase();
    let distances = names.iter().map(|name| (distance(&text, name), *name));
    let (edits, name) = distances.min_by_key(|(edits, _)| *edits)?;
    (edits <= (name.chars().count() / 3).max(1)).then_some(name)
}

/// Levenshtein's distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("star", "star"), 0);
        assert_eq!(distance("sitting", "kitten"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("satr", &["circle", "star"]), None);
        assert_eq!(nearest("Strar", &["circle", "star"]), Some("star"));
        assert_eq!(nearest("vangogh", &["church", "van-gogh"]), Some("van-gogh"));
        assert_eq!(nearest("bicycle", &["circle", "star"]), None);
    }
}
