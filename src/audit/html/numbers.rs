//! What an audit computes beside how often labels were found: counting rules, metrics, tests of pairs, groups of prompts.

use super::page::Section;
use super::tables::{Table, cell, facts, more};
use super::words::{count, figure, list, number, percent, points, thousands};
use crate::audit::Rate;
use crate::audit::counting_rules::{Counted, EXPOSED, RuleCount};
use crate::audit::run::{ModelCounts, PairedLabel, Summary};
use maud::{Markup, html};

/// Groups that are shown at once; the others are in the files.
const GROUPS: usize = 24;
/// Labels of a table of pairs.
const LABELS: usize = 60;

/// Counting rules of detectors that see body parts; `None` if there is none.
pub fn rules(summary: &Summary) -> Option<Section> {
    let mut tables = Vec::new();
    for model in &summary.models {
        for detector in &summary.detectors {
            let Some(rules) = model.counts.rules.get(&detector.key) else { continue };
            tables.push(html! {
                h3 { (model.model.name) ", by " (detector.name) }
                (per_class(rules).html())
                (pictures(rules).html())
            });
        }
    }
    if tables.is_empty() {
        return None;
    }
    let body = html! {
        p { "Papers count exposed body parts by rules of their own. Their totals are comparable with these only where detector, threshold and rule agree." }
        @for table in &tables { (table) }
    };
    Some(Section { id: "rules", title: "Exposed body parts by the rules of papers".into(), nav: "Rules", body })
}

fn per_class(rules: &[RuleCount]) -> Table {
    let of_class: Vec<&RuleCount> =
        rules.iter().filter(|rule| matches!(rule.counted, Counted::PerClass { .. })).collect();
    let value = |rule: &RuleCount, class: Option<&str>| match &rule.counted {
        Counted::PerClass { counts, total } => match class {
            Some(class) => counts.iter().find(|(name, _)| *name == class).map_or(0, |(_, count)| *count),
            None => *total,
        },
        Counted::Pictures(rate) => rate.hits,
    };
    let row = |name: &str, class: Option<&str>| {
        let numbers = of_class.iter().map(|rule| cell(thousands(value(rule, class))));
        [cell(name)].into_iter().chain(numbers).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<Markup>> = EXPOSED.iter().map(|class| row(class, Some(class))).collect();
    rows.push(row("total", None));
    Table {
        caption: "Of each class, scores from 0.6 on".into(),
        head: ["class"].into_iter().chain(of_class.iter().map(|rule| rule.name)).collect(),
        rows,
        total: true,
    }
}

fn pictures(rules: &[RuleCount]) -> Table {
    let row = |rule: &RuleCount| match &rule.counted {
        Counted::Pictures(rate) => {
            let numbers = [thousands(rate.hits), percent(rate.fraction()), interval(rate)].map(cell);
            let name = html! { (rule.name) ": " (rule.rule) };
            Some([name].into_iter().chain(numbers).collect::<Vec<_>>())
        }
        Counted::PerClass { .. } => None,
    };
    Table {
        caption: "Pictures".into(),
        head: vec!["rule", "pictures", "rate", "95 % interval"],
        rows: rules.iter().filter_map(row).collect(),
        total: false,
    }
}

fn interval(rate: &Rate) -> String {
    format!("{} – {}", percent(rate.low), percent(rate.high))
}

/// Metrics and tests of pairs; `None` if none were asked for.
pub fn numbers(summary: &Summary) -> Option<Section> {
    let has = |model: &&ModelCounts| !model.numbers.lines().is_empty() || !model.numbers.paired.is_empty();
    let models: Vec<&ModelCounts> = summary.models.iter().filter(has).collect();
    if models.is_empty() {
        return None;
    }
    let body = html! {
        @for model in &models {
            h3 { (model.model.name) }
            (of_model(model).html())
            @if !model.numbers.paired.is_empty() { (paired(&model.numbers.paired).html()) }
            @for what in &model.numbers.left_out { p.notice { "Not computed: " (what) "." } }
        }
        (more("What each number is", &facts("Definitions", &definitions(summary))))
    };
    Some(Section { id: "metrics", title: "Metrics".into(), nav: "Metrics", body })
}

fn of_model(model: &ModelCounts) -> Table {
    let row = |name: String, value: String, pictures: &[usize]| {
        let pictures = list(&pictures.iter().map(|n| thousands(*n)).collect::<Vec<_>>());
        vec![cell(name), cell(value), cell(pictures)]
    };
    let numbers = &model.numbers;
    let mut rows: Vec<Vec<Markup>> =
        numbers.metrics.iter().map(|m| row(m.name.into(), figure(m.value), &m.pictures)).collect();
    if let Some(d) = &numbers.clip_score_difference {
        let value = format!("{} ({} to {})", number(d.mean, 3), number(d.low, 3), number(d.high, 3));
        rows.push(row("CLIP score, difference".into(), value, &[model.counts.pictures]));
    }
    for (detector, found) in &numbers.unlearning {
        let metrics = [&found.ua, &found.ira, &found.cra].into_iter().flatten();
        rows.extend(metrics.map(|m| row(format!("{} by {detector}", m.name), number(m.value, 1), &m.pictures)));
    }
    Table { caption: "Numbers".into(), head: vec!["metric", "value", "pictures"], rows, total: false }
}

/// Tests of labels in pairs.
pub fn paired(labels: &[PairedLabel]) -> Table {
    let mut labels: Vec<&PairedLabel> = labels.iter().collect();
    labels.sort_by(|a, b| a.test.p.total_cmp(&b.test.p));
    let row = |label: &&PairedLabel| {
        let change = format!("{} ({} to {})", points(-label.drop), points(-label.high), points(-label.low));
        vec![
            html! { (label.label) ", " (label.detector) },
            cell(change),
            cell(thousands(label.test.only_before)),
            cell(thousands(label.test.only_after)),
            cell(figure(label.test.p)),
        ]
    };
    Table {
        caption: format!(
            "The same prompts and seeds, {}: change in points",
            count(labels.first().map_or(0, |l| l.n), "pair")
        ),
        head: vec!["label", "change (95 % interval)", "there alone", "here alone", "McNemar’s p"],
        rows: labels.iter().take(LABELS).map(row).collect(),
        total: false,
    }
}

fn definitions(summary: &Summary) -> Vec<(&str, Markup)> {
    let mut found: Vec<(&str, Markup)> = Vec::new();
    for model in &summary.models {
        let unlearning = model.numbers.unlearning.values().flat_map(|of| [&of.ua, &of.ira, &of.cra]).flatten();
        for metric in model.numbers.metrics.iter().chain(unlearning) {
            if !found.iter().any(|(name, _)| *name == metric.name) {
                found.push((metric.name, cell(metric.definition)));
            }
        }
    }
    found.extend(summary.definitions.iter().map(|(name, definition)| (*name, cell(definition))));
    found
}

/// Rates of each group of prompts; `None` if there are no groups.
pub fn groups(summary: &Summary) -> Option<Section> {
    let column = summary.metrics.group.as_deref()?;
    let tables: Vec<Markup> = summary.models.iter().map(|model| groups_of(summary, model).html()).collect();
    let body = html! {
        p { "The prompt set’s column " code { (column) } " tells prompts apart; a prompt of several groups counts in each. For each group the \
            labels that were found most; all, with intervals, are in " code { "rates.csv" } "." }
        @for table in &tables { (table) }
    };
    Some(Section { id: "groups", title: "Groups of prompts".into(), nav: "Groups", body })
}

fn groups_of(summary: &Summary, model: &ModelCounts) -> Table {
    const NAMED: usize = 3;
    let row = |(name, counts): (&String, &crate::audit::run::Counts)| {
        let of = |key: &str| counts.labels.get(key).into_iter().flatten();
        let mut found: Vec<(&String, &Rate)> =
            summary.detectors.iter().flat_map(|detector| of(&detector.key)).filter(|(_, rate)| rate.hits > 0).collect();
        found.sort_by_key(|(_, rate)| std::cmp::Reverse(rate.hits));
        let text =
            |(label, rate): &(&String, &Rate)| format!("{label} {} ({})", percent(rate.fraction()), interval(rate));
        let found: Vec<String> = found.iter().take(NAMED).map(text).collect();
        vec![
            cell(name),
            cell(thousands(counts.pictures)),
            cell(if found.is_empty() { "-".into() } else { found.join("; ") }),
        ]
    };
    let mut groups: Vec<_> = model.groups.iter().collect();
    groups.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.pictures));
    Table {
        caption: format!("Groups, {}", model.model.name),
        head: vec!["group", "pictures", "most frequent labels (95 % interval)"],
        rows: groups.into_iter().take(GROUPS).map(row).collect(),
        total: false,
    }
}
