//! The labels in a file's metadata: a Python dictionary as text, `{0: 'person', 1: "driver's seat"}`.

/// The labels in order, or `None` if this is no such text.
pub fn parse(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':')?;
        if key.trim().parse() != Ok(labels.len()) {
            return None;
        }
        let (label, after) = quoted(after.trim_start())?;
        labels.push(label);
        rest = match after.trim_start() {
            "" => "",
            after => after.strip_prefix(',')?.trim_start(),
        };
    }
    let twice = |i: usize| labels[..i].contains(&labels[i]);
    (!labels.is_empty() && !(0..labels.len()).any(twice)).then_some(labels)
}

/// A text in quotes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| "'\"".contains(*c))?;
    let (mut label, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => {
                label.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some((label, &text[at + c.len_utf8()..])),
            c => label.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_dictionaries_are_read() {
        let found = parse(r#"{0: 'a', 1: "it's", 2: 'b, c', 3: 'say "d"', 4: 'e\'f'}"#).unwrap();
        assert_eq!(found, ["a", "it's", "b, c", "say \"d\"", "e'f"]);
        assert_eq!(parse("{0:'ä',}").unwrap(), ["ä"]);
    }

    #[test]
    fn anything_else_is_not() {
        for text in [
            "",
            "{",
            "{}",
            "['a']",
            "{1: 'a'}",
            "{0: 'a', 0: 'b'}",
            "{0: 'a' 1: 'b'}",
            "{0: a}",
            "{0: 'a}",
            "{0: 'é",
            "{0: 'a', 1: 'a'}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
