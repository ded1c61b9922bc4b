//! The frame of a report: head, contents, sections, foot. Styles and script are part of the file.

use super::pictures::base64;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
const GALLERY_STYLE: &str = include_str!("gallery/gallery.css");
const GALLERY_SCRIPT: &str = include_str!("gallery/gallery.js");
/// What stands before the data of a gallery. No text of a report can hold it, because quotation marks are escaped.
const DATA: &str = "<script type=\"application/json\" id=\"gallery-data\">";

/// A part of a report.
pub struct Section {
    /// Its anchor.
    pub id: &'static str,
    /// Its heading.
    pub title: String,
    /// Its name among the contents.
    pub nav: &'static str,
    /// What it says.
    pub body: Markup,
}

/// A report.
pub struct Page {
    /// What it is about.
    pub title: String,
    /// What sort of report it is.
    pub kicker: String,
    /// A few words about how it came about.
    pub facts: Vec<String>,
    /// Its parts.
    pub sections: Vec<Section>,
    /// The file beside it that has the same numbers for programs.
    pub numbers: &'static str,
    /// Whether one of its parts is a gallery, whose pictures may lie beside the file.
    pub gallery: bool,
}

impl Page {
    /// The whole file.
    pub fn html(&self) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="Content-Security-Policy" content=(self.policy());
                    meta name="referrer" content="no-referrer";
                    title { (self.title) }
                    link rel="icon" href="data:,";
                    style { (PreEscaped(STYLE)) @if self.gallery { (PreEscaped(GALLERY_STYLE)) } }
                }
                body {
                    a.skip href="#summary" { "Skip to the summary" }
                    header.top {
                        p.kicker { (self.kicker) }
                        h1 { (self.title) }
                        ul.facts { @for fact in &self.facts { li { (fact) } } }
                        nav aria-label="Contents" {
                            ul { @for s in &self.sections { li { a href={ "#" (s.id) } { (s.nav) } } } }
                        }
                    }
                    main {
                        @for s in &self.sections {
                            section id=(s.id) aria-labelledby={ (s.id) "-title" } {
                                h2 id={ (s.id) "-title" } { (s.title) }
                                (s.body)
                            }
                        }
                    }
                    footer { p { "Written by erase-concept. "
                        @if self.gallery { "This file loads nothing but pictures that lie beside it, and " }
                        @else { "This file is complete in itself: it loads nothing from anywhere and " }
                        "holds no date, so that equal runs give equal bytes. The same numbers for programs stand in "
                        code { (self.numbers) } "; times and memory in " code { "run.json" } "." } }
                    script { (PreEscaped(SCRIPT)) }
                    @if self.gallery {
                        (PreEscaped(DATA)) (PreEscaped("</script>"))
                        script { (PreEscaped(GALLERY_SCRIPT)) }
                    }
                }
            }
        }
    }

    /// The whole file with the data of its gallery, in JSON in which every `<` is escaped.
    pub fn with_data(&self, data: &str) -> String {
        let text = self.html().into_string();
        let (before, after) = text.split_once(DATA).unwrap_or((&text, ""));
        [before, DATA, data, after].concat()
    }

    /// Forbids everything that is not in the file: other scripts, styles, pictures (but those beside a gallery), connections.
    fn policy(&self) -> String {
        let hash = |script: &str| format!("'sha256-{}'", base64(&Sha256::digest(script)));
        let (mut pictures, mut scripts) = ("data:".to_string(), hash(SCRIPT));
        if self.gallery {
            pictures.push_str(" 'self' file:");
            scripts.push_str(&format!(" {}", hash(GALLERY_SCRIPT)));
        }
        format!(
            "default-src 'none'; img-src {pictures}; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; \
             form-action 'none'"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_nothing_is_loaded() {
        let page = Page {
            title: "<script>alert(1)</script>".into(),
            kicker: "\"k\"".into(),
            facts: vec!["a & b".into()],
            sections: vec![Section { id: "one", title: "<b>".into(), nav: "One", body: html! { p { "x" } } }],
            numbers: "report.json",
            gallery: false,
        };
        let text = page.html().into_string();
        assert_eq!(text.matches("<script>").count(), 1, "only its own script");
        assert!(text.contains("&lt;script&gt;alert(1)") && text.contains("a &amp; b") && text.contains("&lt;b&gt;"));
        for outside in ["http:", "https:", "url(", "@import"] {
            assert!(!text.contains(outside), "{outside}");
        }
    }
}
