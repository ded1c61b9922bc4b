//! Tables: figures in columns, facts in rows.

use maud::{Markup, html};

/// A table whose first column names its rows; everything else is numbers, aligned right.
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<&'static str>,
    /// The rows.
    pub rows: Vec<Vec<Markup>>,
    /// Whether the last row is a sum or mean of the others.
    pub total: bool,
}

impl Table {
    /// The table; where the page is narrow it scrolls by itself.
    pub fn html(&self) -> Markup {
        html! {
            div.scroll role="region" aria-label=(self.caption) tabindex="0" {
                table.figures .total[self.total] {
                    caption { (self.caption) }
                    thead { tr { @for name in &self.head { th scope="col" { (name) } } } }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (i, cell) in row.iter().enumerate() {
                                    @if i == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Names and values.
pub fn facts(caption: &str, rows: &[(&str, Markup)]) -> Markup {
    html! {
        table.facts {
            caption { (caption) }
            tbody { @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } } }
        }
    }
}

/// Something long that is opened when wanted (and in print).
pub fn more(summary: &str, body: &Markup) -> Markup {
    html! { details { summary { (summary) } (body) } }
}

/// Text as a cell.
pub fn cell(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_headers_have_a_scope() {
        let table = Table {
            caption: "a<b".into(),
            head: vec!["x", "y"],
            rows: vec![vec![cell("<i>"), cell("1")]],
            total: true,
        };
        let text = table.html().into_string();
        assert!(
            text.contains("<th scope=\"col\">x</th>") && text.contains("<th scope=\"row\">&lt;i&gt;</th><td>1</td>"),
            "{text}"
        );
        assert!(text.contains("a&lt;b") && text.contains("class=\"figures total\""), "{text}");
    }
}
