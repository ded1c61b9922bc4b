//! `report.html`: one file that needs nothing from elsewhere, the same for equal runs.
//!
//! [`page`] is the frame, [`words`] numbers and sentences, [`pictures`] pairs with a slider, [`plots`] figures, [`tables`]
//! tables, [`gallery`] an audit's pictures; every other file is a section of the erase job's report and is made of these.

mod audit;
mod compare;
mod drift;
pub mod gallery;
mod losses;
mod numbers;
pub mod page;
pub mod pictures;
pub mod plots;
mod rates;
mod rest;
mod settings;
mod summary;
pub mod tables;
mod weights;
pub mod words;

pub use audit::AuditReport;
pub use compare::CompareReport;
pub use settings::device;
pub use weights::changes;

use super::{Move, Report, Shown, Verification};
use crate::Result;
use crate::concept::{Concept, Kind};
use maud::html;
use page::{Page, Section};
use std::collections::BTreeMap;

/// Everything that the erase job's report shows.
pub struct EraseReport<'a> {
    /// What was found.
    pub report: &'a Report,
    /// The concept.
    pub concept: &'a Concept,
    /// Name of the model.
    pub model: &'a str,
    /// The pictures before.
    pub before: &'a Verification,
    /// The pictures after.
    pub after: &'a Verification,
    /// Every picture's drift.
    pub moves: &'a [Move<'a>],
    /// Entries of each tensor that was scored.
    pub scored: &'a BTreeMap<String, usize>,
    /// Limits that were asked for and are missed, in words.
    pub missed: &'a [String],
    /// Whether pictures of a concept of kind content are shown as they are.
    pub show: bool,
}

impl EraseReport<'_> {
    /// The page.
    ///
    /// # Errors
    /// If a picture cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let name = &self.report.concept;
        let sections = vec![
            summary::section(self),
            self.pictures()?,
            rates::section(self),
            rest::section(self),
            drift::section(self)?,
            losses::section(&self.report.losses, &self.report.settings),
            weights::section(self),
            settings::section(self),
        ];
        let page = Page {
            title: format!("“{name}” erased from {}", self.model),
            kicker: "Erasure report".into(),
            facts: vec![
                format!("method {}", self.report.method),
                format!("preset {}", self.report.preset),
                format!("seed {}", self.report.seed),
                format!("erase-concept {}", self.report.version),
            ],
            sections,
            numbers: "report.json",
            gallery: false,
        };
        Ok(page.html().into_string())
    }

    /// Whether pictures that may show the concept are made unrecognisable.
    fn blurs(&self) -> bool {
        self.concept.kind == Kind::Content && !self.show
    }

    fn pictures(&self) -> Result<Section> {
        let (blur, counted) = (self.blurs(), self.before.forget.is_some());
        let pairs = |before: &[Shown], after: &[Shown], concept: bool| -> Result<maud::Markup> {
            let pair = |(b, a): (&Shown, &Shown)| {
                let found = |hit: bool| (concept && counted).then_some(hit);
                let side = |shown: &Shown, blurred: bool| pictures::Side::new(&shown.image, found(shown.hit), blurred);
                // after the erasure only what is still recognised is hidden
                let sides = [side(b, concept && blur)?, side(a, concept && blur && counted && a.hit)?];
                Ok(pictures::Pair { prompt: b.prompt.clone(), seed: b.seed, sides, note: None })
            };
            let pairs: Vec<pictures::Pair> = before.iter().zip(after).map(pair).collect::<Result<_>>()?;
            let name = if concept { "pairs that should change" } else { "pairs that should stay" };
            Ok(pictures::gallery(name, &pairs, pictures::BEFORE_AFTER))
        };
        let name = &self.report.concept;
        let body = html! {
            p { "Each pair shares prompt and seed, so that the only difference is the erasure. They are the first of the "
                "verification pictures, not chosen ones, and nothing was trained on their prompts. "
                span.with-script {
                    "Drag a slider, or focus it and use the arrow keys: " b.before-text { "before" } " lies left of the line, "
                    b.after-text { "after" } " right of it."
                }
            }
            @if blur {
                p.notice { "The pictures from before are unrecognisable in this file, because “" (name) "” is a concept of "
                    "kind content: only six by six blurred patches of each are stored here, and no click brings the picture "
                    "back. "
                    @if counted { "A picture from after in which it is still recognised is treated likewise. " }
                    @else { "Nothing here recognises the concept, so the pictures from after are shown as they are. " }
                    "Run the job with " code { "--show" } " to have them as they are." }
            }
            h3 { "Prompts that name “" (name) "”" }
            (pairs(&self.before.shown_forget, &self.after.shown_forget, true)?)
            h3 { "Everything else" }
            (pairs(&self.before.shown_retain, &self.after.shown_retain, false)?)
        };
        Ok(Section { id: "pictures", title: "Before and after".into(), nav: "Pictures", body })
    }
}
