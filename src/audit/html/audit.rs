//! The audit's report: counts, and a gallery of all pictures.

use super::gallery::{Gallery, ReadPicture};
use super::numbers;
use super::page::{Page, Section};
use super::plots::{Axis, Interval, figure, intervals};
use super::tables::{Table, cell, facts, more};
use super::words::{count, percent, thousands};
use crate::Result;
use crate::audit::Rate;
use crate::audit::run::{Against, Limit, ModelCounts, Summary, UsedDetector};
use crate::progress::Progress;
use maud::{Markup, html};

/// Labels that are drawn of each model; the table has all.
const DRAWN: usize = 12;

/// Everything that the audit's report shows.
pub struct AuditReport<'a> {
    /// What was counted.
    pub summary: &'a Summary,
    /// The pictures.
    pub gallery: Gallery<'a>,
    /// What must not be found more often.
    pub limits: &'a [Limit],
    /// Those of them that are missed, in words.
    pub missed: &'a [String],
}

impl AuditReport<'_> {
    /// The page, of about `size` bytes at most: what does not depend on the pictures is in it in any case.
    ///
    /// # Errors
    /// If the user interrupts or a picture cannot be read.
    pub fn html(&self, size: u64, read: &ReadPicture<'_>, progress: &mut dyn Progress) -> Result<String> {
        let frame = self.page(self.gallery.pictures.len(), 0).html().into_string().len();
        let left = usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(frame);
        let contents = self.gallery.contents(left, read, progress)?;
        Ok(self.page(contents.listed, contents.inlined).with_data(&contents.json))
    }

    /// The page without its data. `listed` and `inlined` is how many pictures are in them.
    fn page(&self, listed: usize, inlined: usize) -> Page {
        let summary = self.summary;
        let names: Vec<String> = summary.models.iter().map(|model| model.model.name.clone()).collect();
        Page {
            title: format!("Audit of {}", super::words::list(&names)),
            kicker: "Audit report".into(),
            facts: vec![
                count(summary.models.iter().map(|model| model.counts.pictures).sum(), "picture"),
                format!("{} steps", summary.settings.steps),
                format!("erase-concept {}", summary.version),
            ],
            sections: [Some(self.overview()), Some(self.rates())]
                .into_iter()
                .chain([numbers::rules(summary), numbers::numbers(summary), numbers::groups(summary)])
                .chain([Some(self.gallery.section(listed, inlined)), Some(self.settings())])
                .flatten()
                .collect(),
            numbers: "audit.json",
            gallery: true,
        }
    }

    fn overview(&self) -> Section {
        let summary = self.summary;
        let row = |model: &ModelCounts| {
            let found = summary.detectors.iter().flat_map(|detector| self.found(model, detector));
            let most = found.max_by_key(|(_, rate)| rate.hits);
            let most = most.map_or_else(|| "-".into(), |(label, r)| format!("{label} ({})", percent(r.fraction())));
            vec![cell(&model.model.name), cell(thousands(model.counts.pictures)), cell(most)]
        };
        let table = Table {
            caption: "Models".into(),
            head: vec!["model", "pictures", "most frequent label"],
            rows: summary.models.iter().map(row).collect(),
            total: false,
        };
        let skipped = &summary.prompts.skipped;
        let body = html! {
            p.lead { (count(summary.prompts.rows, "prompt")) ", "
                (count(summary.settings.selection.samples, "picture")) " of each, by " (count(summary.models.len(), "model")) "." }
            @if summary.shard != "1/1" {
                p.notice { "This is part " (summary.shard) " of an audit: only the pictures of its own prompts are counted." }
            }
            (table.html())
            @if summary.detectors.is_empty() {
                p.notice { "Nothing was counted: none of the models has a classifier beside it, and no detector was named." }
            }
            @for missed in self.missed { p.notice { "Missed: " (missed) "." } }
            @if !self.limits.is_empty() && self.missed.is_empty() {
                p { "Kept: " (super::words::list(&self.limits.iter().map(|limit| format!("--max-rate {}", limit.text)).collect::<Vec<_>>())) "." }
            }
            @if !skipped.is_empty() {
                p.notice { (count(skipped.len(), "row")) " of the prompt set could not be drawn, and " (if skipped.len() == 1 { "is" } else { "are" })
                    " in no number here." }
                (more("Rows that were skipped", &html! { ul { @for row in skipped { li { (row.to_string()) } } } }))
            }
        };
        Section { id: "summary", title: "Summary".into(), nav: "Summary", body }
    }

    /// Labels that were found at least once.
    fn found<'s>(&'s self, model: &'s ModelCounts, detector: &'s UsedDetector) -> Vec<(&'s str, &'s Rate)> {
        let rates = self.summary.rates(model, detector).into_iter();
        rates.filter(|(_, rate)| rate.hits > 0).collect()
    }

    fn rates(&self) -> Section {
        let body = html! {
            @for detector in &self.summary.detectors {
                p { "By " (detector.name) ". A picture counts once for each label that it is given; intervals are Wilson's, at 95 %." }
                @if !detector.rule.is_empty() { p { "Rule: " (detector.rule) "." } }
                @for model in &self.summary.models {
                    h3 { (model.model.name) }
                    (self.plot(model, detector))
                    (self.table(model, detector).html())
                }
            }
            @if self.summary.detectors.is_empty() { p.notice { "No detector looked at the pictures." } }
        };
        Section { id: "rates", title: "How often each label was found".into(), nav: "Rates", body }
    }

    fn plot(&self, model: &ModelCounts, detector: &UsedDetector) -> Markup {
        let mut found = self.found(model, detector);
        found.sort_by_key(|(_, rate)| std::cmp::Reverse(rate.hits));
        let row = |(label, rate): &(&str, &Rate)| Interval {
            label: (*label).to_string(),
            text: percent(rate.fraction()),
            value: 100.0 * rate.fraction(),
            low: 100.0 * rate.low,
            high: 100.0 * rate.high,
            class: "plain",
        };
        let rows: Vec<Interval> = found.iter().take(DRAWN).map(row).collect();
        let axis = Axis { min: 0.0, max: 100.0, unit: " %", title: "pictures that were given it".into() };
        let name = format!("Labels found in pictures of {}", model.model.name);
        figure(
            &intervals(&name, &axis, &rows, false),
            &html! { "The most frequent labels, with 95 % Wilson intervals." },
        )
    }

    fn table(&self, model: &ModelCounts, detector: &UsedDetector) -> Table {
        let row = |(label, rate): (&str, &Rate)| {
            vec![
                cell(label),
                cell(thousands(rate.n)),
                cell(thousands(rate.hits)),
                cell(percent(rate.fraction())),
                cell(format!("{} – {}", percent(rate.low), percent(rate.high))),
            ]
        };
        Table {
            caption: format!("Every label, {}", model.model.name),
            head: vec!["label", "pictures", "found", "rate", "95 % interval"],
            rows: self.summary.rates(model, detector).into_iter().map(row).collect(),
            total: false,
        }
    }

    fn settings(&self) -> Section {
        let (s, p) = (&self.summary.settings, &self.summary.prompts);
        let hash = |text: &str| html! { code.hash { (text) } };
        let size =
            |own: Option<usize>| own.map_or_else(|| "the model’s own".to_string(), |pixels| format!("{pixels} pixels"));
        let of_row =
            |column| if s.selection.ignore.contains(&column) { "for every row" } else { "where a row has none" };
        use crate::audit::run::Column;
        let mut rows = vec![
            ("prompt set, SHA-256", hash(&p.sha256)),
            ("steps", cell(s.steps.to_string())),
            ("guidance", cell(format!("{}, {}", s.selection.guidance_scale, of_row(Column::Guidance)))),
            ("seed", cell(format!("{} and the row’s number, {}", s.selection.seed, of_row(Column::Seed)))),
            ("width", cell(format!("{}, {}", size(s.selection.width), of_row(Column::Size)))),
            ("height", cell(format!("{}, {}", size(s.selection.height), of_row(Column::Size)))),
            ("weights in memory", cell(&s.dtype)),
            ("device", cell(super::settings::device(&s.device, s.tf32))),
            ("vector instructions", cell(&s.instructions)),
        ];
        for (model, sampler) in self.summary.models.iter().zip(&s.scheduler) {
            rows.push((
                "model",
                html! {
                    (model.model.name) ", " (sampler) ", SHA-256 of its files " (hash(&model.model.sha256))
                    @if let Some(hub) = &model.model.hub { ", " (hub.repo) " on the Hub at commit " (hash(&hub.commit)) }
                },
            ));
        }
        for detector in &self.summary.detectors {
            rows.push(("detector", html! { (detector.name) ", SHA-256 of its weights " (hash(&detector.sha256)) }));
        }
        let metrics = &self.summary.metrics;
        if let Some(clip) = &metrics.clip {
            rows.push(("CLIP of the metrics", html! { (clip.name) ", SHA-256 of its weights " (hash(&clip.sha256)) }));
        }
        match &metrics.against {
            Some(Against::Model(name)) => rows.push(("compared with", cell(name))),
            Some(Against::Folder { name, pictures, sha256 }) => rows.push((
                "compared with",
                html! { (count(*pictures, "picture")) " in the folder " (name) ", SHA-256 of their list " (hash(sha256)) },
            )),
            None => {}
        }
        if !metrics.targets.is_empty() {
            rows.push(("targets", cell(super::words::list(&metrics.targets))));
        }
        let body = html! {
            p { "Every picture, its seed and hash stand in " code { "manifest.jsonl" } " and, for spreadsheets, in " code { "audit.csv" } "; every rate in " code { "rates.csv" } "." }
            (facts("How the pictures were made", &rows))
        };
        Section { id: "settings", title: "Settings and hashes".into(), nav: "Settings", body }
    }
}
