//! What was found, in words.

use super::EraseReport;
use super::page::Section;
use super::words::{NBSP, count, list, number, percent, points};
use crate::audit::{BeforeAfter, ConceptCounts, MeanDrop, Report};
use maud::{Markup, html};

pub fn section(r: &EraseReport<'_>) -> Section {
    let report = r.report;
    let body = html! {
        p.lead { (headline(report)) }
        @if !r.missed.is_empty() {
            div.notice.missed role="note" {
                p { strong { "A limit that was asked for is missed." } }
                ul { @for line in r.missed { li { code { (line) } } } }
            }
        }
        div.cards {
            (concept(report))
            @for one in &report.concepts { (one_of_several(one)) }
            @if let Some(synonyms) = &report.counts.synonyms { (other_words(synonyms)) }
            (rest(report))
            (drift(report))
        }
        p.note { (caveat(report)) }
    };
    Section { id: "summary", title: "Summary".into(), nav: "Summary", body }
}

fn card(title: &str, large: &Markup, text: &Markup) -> Markup {
    html! { div.card { h3 { (title) } p.large { (large) } p { (text) } } }
}

/// The two findings that matter, in one sentence each.
fn headline(report: &Report) -> String {
    let name = &report.concept;
    let gone = match &report.counts.rate {
        None => format!(
            "“{name}” was erased, but nothing here can recognise it: look at the pictures to see whether it is gone."
        ),
        Some(r) => match (r.after.fraction(), r.before.fraction()) {
            _ if r.before.hits == 0 => {
                format!("“{name}” was found in no picture even before, so that nothing can be said of its erasure.")
            }
            (0.0, _) => {
                format!("“{name}” no longer appears in any of {}.", count(r.after.n, "test picture"))
            }
            (after, before) if after <= 0.05 && after < before => {
                format!(
                    "“{name}” has almost vanished: it still appears in {} of {}.",
                    r.after.hits,
                    count(r.after.n, "test picture")
                )
            }
            (after, before) if after < 0.5 * before => {
                format!("“{name}” appears less often, but it is not gone: in {} of the pictures.", percent(after))
            }
            (after, _) => format!("“{name}” is not gone: it still appears in {} of the pictures.", percent(after)),
        },
    };
    let rest = match &report.counts.mean_drop {
        None => String::new(),
        Some(m) if m.low > 0.0 => format!(
            " Everything else lost {} points of accuracy, more than chance explains.",
            number(100.0 * m.drop, 1)
        ),
        Some(m) if m.high < 0.0 => " Everything else lost nothing; it is even recognised a little better.".to_string(),
        Some(m) if m.drop > 0.0 => " What everything else lost is within noise.".to_string(),
        Some(_) => " In everything else no loss can be told from chance.".to_string(),
    };
    gone + &rest
}

fn concept(report: &Report) -> Markup {
    let name = &report.concept;
    let title = format!("“{name}”");
    let found: Vec<String> = report.found_words().map(|word| format!("“{word}”")).collect();
    let Some(BeforeAfter { before, after }) = &report.counts.rate else {
        return card(
            &title,
            &html! { "not counted" },
            &html! { "No detector that knows “" (name) "” lies beside this model." },
        );
    };
    let text = html! {
        "Of " (count(after.n, "picture")) " from prompts that name it, " (before.hits) " showed it before and " strong { (after.hits) }
        @if after.hits == 1 { " still does" } @else { " still do" } ". With ever more pictures the rate would come out between "
        (percent(after.low)) " and " (percent(after.high)) " (95 % confidence)."
        @if !found.is_empty() {
            " For some other words the model draws it too: erased with it, " (list(&found)) "."
        }
    };
    card(&title, &change(before.fraction(), after.fraction()), &text)
}

/// One of several concepts.
fn one_of_several(counts: &ConceptCounts) -> Markup {
    let title = format!("“{}”", counts.name);
    let Some(BeforeAfter { before, after }) = &counts.rate else {
        return card(&title, &html! { "not counted" }, &html! { "No detector that knows it lies beside this model." });
    };
    let text = html! {
        "Shown by " (before.hits) " of its own " (count(before.n, "picture")) " before, by " strong { (after.hits) } " after ("
        (percent(after.low)) " to " (percent(after.high)) ")."
        @if let Some(BeforeAfter { before, after }) = &counts.synonyms {
            " Of its synonyms’, " (before.hits) " of " (before.n) " before, " strong { (after.hits) } " after."
        }
    };
    card(&title, &change(before.fraction(), after.fraction()), &text)
}

fn other_words(synonyms: &BeforeAfter) -> Markup {
    let BeforeAfter { before, after } = synonyms;
    let text = html! {
        "Words that mean the same without naming it: " (before.hits) " of " (count(before.n, "picture")) " before, "
        strong { (after.hits) } " after (" (percent(after.low)) " to " (percent(after.high)) ")."
    };
    card("Its synonyms", &change(before.fraction(), after.fraction()), &text)
}

fn change(before: f64, after: f64) -> Markup {
    html! { span.from { (percent(before)) } span.arrow aria-label="to" { " → " } (percent(after)) }
}

fn rest(report: &Report) -> Markup {
    let Some(MeanDrop { drop, low, high }) = &report.counts.mean_drop else {
        let text = html! { "No detector beside this model recognises what the other prompts ask for." };
        return card("Everything else", &html! { "not counted" }, &text);
    };
    let axes: Vec<String> = report.counts.retain.keys().cloned().collect();
    let verdict = if *low > 0.0 {
        "This is more than chance explains."
    } else if *high < 0.0 {
        "This is a gain, and more than chance explains."
    } else {
        "This is within noise: a change of this size can be chance."
    };
    let text = html! {
        "Mean change in how often " (list(&axes)) (if axes.len() == 1 { " is" } else { " are" }) " as asked for, with 95 % "
        "confidence between " (points(-high)) " and " (points(-low)) " points. " (verdict)
        @if *low <= 0.0 && *high > 0.05 { " With so few pictures, a loss of " (number(100.0 * high, 1)) " points is not ruled out." }
    };
    card("Everything else", &html! { (points(-drop)) span.unit { (NBSP) "points" } }, &text)
}

fn drift(report: &Report) -> Markup {
    let Some(retain) = &report.drift.retain else { return html! {} };
    let text = html! {
        "Mean change of a pixel's value (0 to 255) in pictures of everything else with the same seed"
        @if let Some(concept) = &report.drift.concept { "; pictures of the concept changed by " (number(concept.difference, 1)) }
        ". Small means that old prompts still give the old pictures."
    };
    card("Drift", &html! { (number(retain.difference, 1)) span.unit { (NBSP) "of 255" } }, &text)
}

fn caveat(report: &Report) -> String {
    let seen = match &report.detector {
        Some(d) => format!("“Shows” means that the {} says so; it can err. ", d.name),
        None => String::new(),
    };
    format!("{seen}A concept that is gone for prompts is not proven gone for an attacker who has the weights.")
}
