//! Two models side by side on the same prompts and seeds.

use super::drift::table;
use super::numbers::paired;
use super::page::{Page, Section};
use super::pictures::{Pair, Side, gallery};
use super::tables::{cell, facts};
use super::words::{NBSP, count, number};
use crate::Result;
use crate::audit::run::{PAIRED_DEFINITION, PairedLabel, UsedDetector};
use crate::audit::{DRIFT_DEFINITION, DriftMean, Move, PromptDrift};
use image::RgbImage;
use maud::html;

/// Pairs that are part of the page.
const SHOWN: usize = 24;

/// Everything that the comparison's page shows.
pub struct CompareReport<'a> {
    /// What the models are called.
    pub names: [&'a str; 2],
    /// SHA-256 of their files.
    pub hashes: [&'a str; 2],
    /// Their pictures, in order.
    pub images: [&'a [RgbImage]; 2],
    /// How far each picture of the second lies from that of the first.
    pub moves: &'a [Move<'a>],
    /// The mean of all.
    pub mean: &'a DriftMean,
    /// The mean of each prompt, the most drifted first.
    pub prompts: &'a [PromptDrift],
    /// How the pictures were made.
    pub settings: &'a [(&'static str, String)],
    /// What looked at the pictures.
    pub detectors: &'a [UsedDetector],
    /// Each label that was found.
    pub paired: &'a [PairedLabel],
}

impl CompareReport<'_> {
    /// The page.
    ///
    /// # Errors
    /// If a picture cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let [a, b] = self.names;
        let page = Page {
            title: format!("{a} and {b}"),
            kicker: "Comparison".into(),
            facts: vec![count(self.moves.len(), "pair"), format!("erase-concept {}", env!("CARGO_PKG_VERSION"))],
            sections: [
                Some(self.summary()),
                self.found(),
                Some(self.pictures()?),
                Some(self.drift()),
                Some(self.settings()),
            ]
            .into_iter()
            .flatten()
            .collect(),
            numbers: "compare.json",
            gallery: false,
        };
        Ok(page.html().into_string())
    }

    fn summary(&self) -> Section {
        let [a, b] = self.names;
        let same = self.moves.iter().filter(|m| m.difference == 0.0).count();
        let body = html! {
            p.lead { (count(self.moves.len(), "picture")) " by each: the same prompts and seeds, drawn by " (a) " and by " (b) "." }
            div.cards {
                div.card {
                    h3 { "Drift" }
                    p.large { (number(self.mean.difference, 1)) span.unit { (NBSP) "of 255" } }
                    p { "Mean difference of a pixel’s value between the two pictures of a pair; SSIM is " (number(self.mean.ssim, 3))
                        " on average." }
                }
                div.card {
                    h3 { "Equal pictures" }
                    p.large { (same) span.unit { (NBSP) "of " (self.moves.len()) } }
                    p { "Pairs in which no pixel differs." }
                }
            }
        };
        Section { id: "summary", title: "Summary".into(), nav: "Summary", body }
    }

    fn pictures(&self) -> Result<Section> {
        let [a, b] = self.names;
        let pair = |((m, left), right): ((&Move<'_>, &RgbImage), &RgbImage)| -> Result<Pair> {
            Ok(Pair {
                prompt: m.prompt.to_string(),
                seed: m.seed,
                sides: [Side::new(left, None, false)?, Side::new(right, None, false)?],
                note: Some(format!("difference {}, SSIM {}", number(m.difference, 1), number(m.ssim, 3))),
            })
        };
        let all = self.moves.iter().zip(self.images[0]).zip(self.images[1]);
        let pairs: Vec<Pair> = all.take(SHOWN).map(pair).collect::<Result<_>>()?;
        let body = html! {
            p { "Each pair shares prompt and seed. "
                span.with-script { "Drag a slider: " b.before-text { (a) } " lies left of the line, " b.after-text { (b) } " right of it." }
                @if self.moves.len() > SHOWN { " These are the first " (SHOWN) "; all lie in the folder " code { "images" } "." }
            }
            (gallery("pairs", &pairs, self.names))
        };
        Ok(Section { id: "pictures", title: "Side by side".into(), nav: "Pictures", body })
    }

    fn drift(&self) -> Section {
        let body = html! {
            (table("Drift of each prompt", self.prompts, self.prompts).html())
            p.note { "Definition: " (DRIFT_DEFINITION) "." }
        };
        Section { id: "drift", title: "How far pictures lie apart".into(), nav: "Drift", body }
    }

    /// What detectors found; `None` if none was named.
    fn found(&self) -> Option<Section> {
        let body = html! {
            @for detector in self.detectors {
                p { "By " (detector.name) ", SHA-256 of its weights " code.hash { (detector.sha256) } ". " (detector.rule) "." }
            }
            @if self.paired.is_empty() { p { "No label was found in any picture." } } @else { (paired(self.paired).html()) }
            p.note { "Definition: " (PAIRED_DEFINITION) "." }
        };
        let section = Section { id: "found", title: "What was found".into(), nav: "Found", body };
        (!self.detectors.is_empty()).then_some(section)
    }

    fn settings(&self) -> Section {
        let mut rows: Vec<_> = self.settings.iter().map(|(name, value)| (*name, cell(value))).collect();
        for (name, hash) in self.names.iter().zip(self.hashes) {
            rows.push(("model", html! { (name) ", SHA-256 of its files " code.hash { (hash) } }));
        }
        Section {
            id: "settings",
            title: "Settings and hashes".into(),
            nav: "Settings",
            body: facts("How the pictures were made", &rows),
        }
    }
}
