//! Every picture of an audit in one page: filtered by model, label, seed and prompt, hidden until asked for where it is flagged.
//!
//! [`data`] is what the page's script reads, [`thumbnails`] are the small pictures in it. Both together keep to a size: first
//! pictures are listed, then thumbnails inlined, as many as fit. The script builds only what is near the window.

mod data;
mod thumbnails;

use super::page::Section;
use super::words::{count, list, thousands};
use crate::Result;
use crate::progress::Progress;
use data::Listing;
use image::RgbImage;
use maud::{Markup, html};
use std::borrow::Cow;
use thumbnails::Thumbnails;

/// Bytes of a report where nothing else is said.
pub const REPORT_SIZE: u64 = 20_000_000;
/// Pictures in the list for readers without script.
const PLAIN: usize = 100;
/// Bytes that are kept free for what the page says of the data.
const SLACK: usize = 1_000;

/// Something that a detector may find.
#[derive(Debug, Clone, PartialEq)]
pub struct GalleryLabel<'a> {
    /// What the detector is called in tables.
    pub detector: &'a str,
    /// What it finds.
    pub label: &'a str,
    /// Whether pictures that are given it are flagged.
    pub flagged: bool,
}

/// A label that was given to a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its place among the gallery's labels.
    pub label: usize,
    /// How sure the detector is, on its own scale, if that was written down.
    pub score: Option<f64>,
}

/// A picture of the gallery.
#[derive(Debug, Clone, PartialEq)]
pub struct GalleryPicture<'a> {
    /// Its model's place among the gallery's models.
    pub model: usize,
    /// What the row of the prompt set is called.
    pub case: &'a str,
    /// Number among the pictures of the row.
    pub sample: usize,
    /// What was to be drawn.
    pub prompt: &'a str,
    /// The noise's seed.
    pub seed: u64,
    /// Guidance.
    pub guidance_scale: f64,
    /// Width and height in pixels.
    pub size: (usize, usize),
    /// The file, relative to the report, with `/`; `None` if pictures are not kept.
    pub file: Option<&'a str>,
    /// What was found in it.
    pub labels: Vec<Found>,
}

/// Reads a picture by its number; called from several threads.
pub type ReadPicture<'a> = dyn Fn(usize) -> Result<RgbImage> + Sync + 'a;

/// All pictures of an audit.
#[derive(Debug, Clone)]
pub struct Gallery<'a> {
    /// The models' names.
    pub models: Vec<&'a str>,
    /// The labels.
    pub labels: Vec<GalleryLabel<'a>>,
    /// The pictures.
    pub pictures: Vec<GalleryPicture<'a>>,
    /// Whether flagged pictures are unrecognisable until they are asked for.
    pub hide: bool,
}

/// What of a gallery is in a page, and the page's data.
pub struct Contents {
    /// Pictures that are listed.
    pub listed: usize,
    /// Pictures whose thumbnails are in the page.
    pub inlined: usize,
    /// The data.
    pub json: String,
}

impl Gallery<'_> {
    /// The data of a page that has `bytes` left for it.
    ///
    /// # Errors
    /// If the user interrupts or a picture cannot be read.
    pub fn contents(&self, bytes: usize, read: &ReadPicture<'_>, progress: &mut dyn Progress) -> Result<Contents> {
        let bytes = bytes.saturating_sub(SLACK);
        let listing = Listing::new(self, bytes);
        let left = bytes.saturating_sub(listing.bytes());
        let thumbnails = Thumbnails::new(self, listing.listed(), left, read, progress)?;
        Ok(Contents { listed: listing.listed(), inlined: thumbnails.inlined(), json: listing.json(&thumbnails) })
    }

    /// Whether a picture is flagged.
    fn flagged(&self, picture: &GalleryPicture<'_>) -> bool {
        picture.labels.iter().any(|found| self.labels.get(found.label).is_some_and(|label| label.flagged))
    }

    /// Whether a picture is unrecognisable until it is asked for.
    fn hides(&self, picture: &GalleryPicture<'_>) -> bool {
        self.hide && self.flagged(picture)
    }

    fn kept(&self) -> bool {
        self.pictures.iter().any(|picture| picture.file.is_some())
    }

    /// The part of the page. `contents` is how many pictures are listed and inlined.
    pub fn section(&self, listed: usize, inlined: usize) -> Section {
        let body = html! {
            (self.about(listed, inlined))
            (self.filters())
            div #gallery.wall {
                p.count role="status" {}
                a.past href="#settings" { "Skip the pictures" }
                div.blocks .text[!self.kept()] {}
                ul.paper {}
                template #tile { (self.tile()) }
                @if self.kept() { (viewer()) }
            }
            noscript { (self.plain()) }
        };
        Section { id: "pictures", title: "Every picture".into(), nav: "Pictures", body }
    }

    fn about(&self, listed: usize, inlined: usize) -> Markup {
        let all = self.pictures.len();
        let flags: Vec<String> = self.labels.iter().filter(|l| l.flagged).map(|l| format!("“{}”", l.label)).collect();
        let flagged = self.pictures.iter().filter(|picture| self.flagged(picture)).count();
        html! {
            @if !flags.is_empty() {
                p { (count(flagged, "picture")) " of " (thousands(all)) (if flagged == 1 { " is" } else { " are" }) " flagged: given "
                    (list(&flags)) ". "
                    @if self.hide && self.kept() {
                        "Until they are clicked, they are unrecognisable: of each this file holds a blurred patch of six by six pixels. "
                        "A click shows the file that lies beside this page, so that without the folder " code { "images" }
                        " nothing brings them back."
                    }
                }
            }
            @if !self.kept() {
                p.notice { "The audit was run with " code { "--no-images" } ": no picture was kept, and this is a list of what was drawn "
                    "and found." }
            } @else if inlined < listed {
                p { "Thumbnails of " (if inlined == 0 { "none".into() } else { thousands(inlined) }) " of these pictures are in this file, "
                    "as many as " code { "--report-size" } " allows; the others are read from the folder " code { "images" }
                    " beside it, as they come into view." }
            }
            @if listed < all {
                p.notice { "To keep to " code { "--report-size" } " only the first " (thousands(listed)) " of " (thousands(all))
                    " pictures are listed. " code { "audit.csv" } " has all." }
            }
        }
    }

    /// Controls; the script counts, fills and wires them.
    fn filters(&self) -> Markup {
        let any_flags = self.labels.iter().any(|label| label.flagged);
        let scores = self.pictures.iter().flat_map(|picture| &picture.labels).any(|found| found.score.is_some());
        html! {
            form #filters.filters role="search" aria-label="Which pictures are shown" {
                label.wide { span { "Prompt holds" } input type="search" name="prompt" autocomplete="off" spellcheck="false"; }
                @if self.models.len() > 1 {
                    label { span { "Model" }
                        select name="model" autocomplete="off" {
                            option value="" { "all" }
                            @for (i, model) in self.models.iter().enumerate() { option value=(i) { (model) } }
                        }
                    }
                }
                @if !self.labels.is_empty() {
                    label { span { "Label" } select name="label" autocomplete="off" { option value="" { "any" } } }
                }
                @if scores {
                    label.narrow { span { "Score at least" } input type="number" name="score" step="0.05" autocomplete="off"; }
                }
                label.narrow { span { "Seed" } input type="text" name="seed" inputmode="numeric" autocomplete="off"; }
                @if any_flags {
                    label { span { "Flagged" }
                        select name="flagged" autocomplete="off" {
                            option value="" { "or not" }
                            option value="1" { "only flagged" }
                            option value="0" { "only not flagged" }
                        }
                    }
                }
                @if scores {
                    label { span { "Order" }
                        select name="order" autocomplete="off" {
                            option value="" { "as in the prompt set" }
                            option value="score" { "highest score first" }
                        }
                    }
                }
                @if any_flags && self.hide && self.kept() {
                    label.check { input type="checkbox" name="show" autocomplete="off"; span { "show flagged" } }
                }
                button type="reset" { "Reset" }
            }
        }
    }

    fn tile(&self) -> Markup {
        html! {
            li.tile {
                @if self.kept() {
                    button.view type="button" { img alt="" decoding="async"; span.veil {} }
                }
                div.about { p.prompt {} p.found {} p.seed {} }
            }
        }
    }

    /// The first pictures, for readers without script.
    fn plain(&self) -> Markup {
        let name = |picture: &GalleryPicture<'_>| {
            let labels: Vec<Cow<'_, str>> =
                picture.labels.iter().map(|found| self.labels[found.label].label.into()).collect();
            let labels = if labels.is_empty() { String::new() } else { format!(" — {}", labels.join(", ")) };
            format!("{}, seed {}: {}{labels}", picture.case, picture.seed, picture.prompt)
        };
        html! {
            p { "Without script there are no filters, and only the first " (self.pictures.len().min(PLAIN)) " pictures are listed. "
                code { "audit.csv" } " has all." }
            ul.plain {
                @for picture in self.pictures.iter().take(PLAIN) {
                    li {
                        @match picture.file {
                            Some(file) => a href=(address(file)) {
                                @if self.hides(picture) { "flagged, not shown: " }
                                @else { img src=(address(file)) alt="" loading="lazy"; }
                                (name(picture))
                            },
                            None => (name(picture)),
                        }
                    }
                }
            }
        }
    }
}

/// One picture, large, with everything that is known of it.
fn viewer() -> Markup {
    html! {
        dialog #viewer aria-labelledby="viewer-title" {
            div.stage { img alt=""; p.lost hidden { "The file is not beside this page." } }
            div.side {
                p.kicker {}
                h3 #viewer-title {}
                dl {}
                p.file { a target="_blank" { "Open the file" } }
                div.others {}
            }
            div.bar {
                button type="button" name="previous" { "← Previous" }
                button type="button" name="next" autofocus { "Next →" }
                button type="button" name="show" { "Show it" }
                button type="button" name="close" { "Close" }
            }
        }
    }
}

/// The address of a file beside the page: whatever it is called, a part of a path and no more.
fn address(file: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    format!("./{}", file.bytes().map(escaped).collect::<String>())
}
