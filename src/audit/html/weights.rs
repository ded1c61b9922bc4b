//! Where the trimmed weights lie.

use super::EraseReport;
use super::page::Section;
use super::plots::{Block, figure as plot, unet};
use super::tables::{Table, cell, more};
use super::words::{figure, number, thousands};
use crate::audit::BlockTrim;
use maud::{Markup, html};
use std::collections::BTreeMap;

pub fn section(r: &EraseReport<'_>) -> Section {
    let (trim, blocks) = (&r.report.trim, &r.report.blocks);
    let share = 100.0 * trim.total as f64 / trim.scored.max(1) as f64;
    let body = html! {
        p { "Every weight of the scope " code { (r.report.settings.score_scope) } " got a score: how much the loss on the "
            "concept depends on it" @if r.report.settings.contrast { ", beyond how much everything else does" } ". Those above the "
            "threshold " (figure(f64::from(trim.threshold))) " were given up and start anew: " strong { (thousands(trim.total)) }
            " of " (thousands(trim.scored)) " weights (" (number(share, 2)) " %) in " (thousands(trim.trimmed.len())) " tensors." }
        (plot(
            &unet("Trimmed weights in each block of the UNet", &boxes(blocks)),
            &html! { "The UNet from input to output; deeper blocks work at lower resolution. Below each: percent of its scored weights "
                "that were trimmed, and how many. Fill is in proportion to that percentage; dashed blocks were not scored." },
        ))
        (table(blocks).html())
        h3 { "By module and matrix" }
        (map(&trim.trimmed, r.scored))
        (more("Every tensor that lost weights", &tensors(&trim.trimmed, r.scored).html()))
    };
    Section { id: "weights", title: "Where the trimmed weights lie".into(), nav: "Weights", body }
}

/// How a picture by itself looks.
const SHEET: &str = "text { fill: #1d1f24; font: 12px sans-serif; } .title { font-size: 16px; font-weight: 600; } .value { \
                     font-weight: 600; } .tick { fill: #565b66; font-size: 10.5px; } .hull { fill: #f6f5f1; stroke: #c9c6bd; \
                     stroke-width: 1.5; } .fill { fill: #1f66b0; } .flow { stroke: #c9c6bd; stroke-width: 2; } .unscored .hull { \
                     stroke-dasharray: 4 4; fill: #fff; }";

/// The UNet's blocks by themselves, as an SVG file: what changed in each.
pub fn changes(title: &str, blocks: &[BlockTrim]) -> String {
    let boxes = boxes(blocks);
    let rows = super::plots::height(&boxes);
    let drawing = html! {
        svg xmlns="http://www.w3.org/2000/svg" width="900" height=(rows + 70) viewBox=(format!("0 0 900 {}", rows + 70)) {
            style { (maud::PreEscaped(SHEET)) }
            rect width="100%" height="100%" fill="#fff" {}
            text.title x="20" y="28" { (title) }
            text.tick x="20" y="48" { "below each block: percent of its weights that changed, and how many" }
            svg x="0" y="60" width="900" height=(rows) { (unet(title, &boxes)) }
        }
    };
    format!("{}\n", drawing.into_string())
}

/// Blocks down to the middle lie ever deeper, those after it ever higher; ends that were not scored are left out.
fn boxes(blocks: &[BlockTrim]) -> Vec<Block> {
    let outside = |b: &BlockTrim| ["input", "output"].contains(&b.block.as_str()) && b.scored == 0;
    let blocks: Vec<&BlockTrim> = blocks.iter().filter(|b| !outside(b)).collect();
    let middle = blocks.iter().position(|b| b.block == "mid_block").unwrap_or(blocks.len() / 2);
    let block = |(i, b): (usize, &&BlockTrim)| {
        let (list, number) = b.block.split_once('.').unwrap_or((&b.block, ""));
        Block {
            name: (list.split('_').next().unwrap_or(list).to_string(), number.to_string()),
            depth: (middle - i.abs_diff(middle).min(middle)) as u32,
            trimmed: b.trimmed,
            scored: b.scored,
        }
    };
    blocks.iter().enumerate().map(block).collect()
}

fn percent_of(trimmed: usize, scored: usize) -> String {
    if scored == 0 { "–".into() } else { number(100.0 * trimmed as f64 / scored as f64, 2) }
}

fn table(blocks: &[BlockTrim]) -> Table {
    let total: usize = blocks.iter().map(|b| b.trimmed).sum();
    let row = |b: &BlockTrim| {
        vec![
            html! { code { (b.block) } },
            cell(thousands(b.entries)),
            cell(thousands(b.scored)),
            cell(thousands(b.trimmed)),
            cell(percent_of(b.trimmed, b.scored)),
            cell(percent_of(b.trimmed, total)),
        ]
    };
    Table {
        caption: "Blocks of the UNet".into(),
        head: vec!["block", "weights", "scored", "trimmed", "% of scored", "% of all trimmed"],
        rows: blocks.iter().map(row).collect(),
        total: false,
    }
}

/// A tensor's module and the matrix in it: `down_blocks.0.attentions.0` and `attn2 to_k`.
fn place(name: &str) -> (String, String) {
    let parts: Vec<&str> = name.split('.').collect();
    let depth = match parts.first() {
        Some(&"mid_block") => 3,
        Some(&("down_blocks" | "up_blocks")) => 4,
        _ => 1,
    };
    let module = parts[..depth.min(parts.len())].join(".");
    let inner = &parts[depth.min(parts.len())..];
    let matrix = match inner.iter().position(|part| ["attn1", "attn2"].contains(part)) {
        Some(i) => format!("{} {}", inner[i], inner.get(i + 1).unwrap_or(&"")),
        None if inner.contains(&"ff") => "ff".into(),
        None => {
            let first = inner.iter().find(|part| !["transformer_blocks", "0", "linear_1", "linear_2"].contains(part));
            let first = first.filter(|part| !["weight", "bias"].contains(part)).copied().unwrap_or("other");
            first.trim_end_matches(|c: char| c.is_ascii_digit()).into()
        }
    };
    (module, matrix)
}

/// Modules down, matrices across; a cell is the stronger in colour the greater its share.
fn map(trimmed: &BTreeMap<String, usize>, scored: &BTreeMap<String, usize>) -> Markup {
    let mut cells: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
    for (name, entries) in scored {
        let sums = cells.entry(place(name)).or_default();
        sums.0 += trimmed.get(name).copied().unwrap_or(0);
        sums.1 += entries;
    }
    let mut modules: Vec<&String> = cells.keys().map(|(module, _)| module).collect();
    modules.dedup();
    modules.sort_by_key(|module| crate::audit::trimmed::place(&crate::audit::block_of(module)));
    let mut matrices: Vec<&String> = cells.keys().map(|(_, matrix)| matrix).collect();
    matrices.sort();
    matrices.dedup();
    let share = |(trimmed, entries): (usize, usize)| trimmed as f64 / entries.max(1) as f64;
    let most = cells.values().map(|sums| share(*sums)).fold(0.0, f64::max);
    html! {
        div.scroll role="region" aria-label="Trimmed weights by module and matrix" tabindex="0" {
            table.map {
                caption { "Percent of the weights of each matrix that were trimmed; the strongest colour is " (number(100.0 * most, 2)) " %" }
                thead { tr { th scope="col" { "module" } @for matrix in &matrices { th scope="col" { (matrix) } } } }
                tbody {
                    @for module in &modules {
                        tr {
                            th scope="row" { code { (module) } }
                            @for matrix in &matrices {
                                @match cells.get(&((*module).clone(), (*matrix).clone())) {
                                    Some(sums) => {
                                        @let depth = if most > 0.0 { share(*sums) / most } else { 0.0 };
                                        td .deep[depth > 0.55] style={ "--depth:" (format!("{:.1}", 100.0 * depth)) "%" } {
                                            (number(100.0 * share(*sums), 2))
                                        }
                                    }
                                    None => td.none { "–" },
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn tensors(trimmed: &BTreeMap<String, usize>, scored: &BTreeMap<String, usize>) -> Table {
    let row = |(name, count): (&String, &usize)| {
        let entries = scored.get(name).copied().unwrap_or(0);
        vec![
            html! { code { (name) } },
            cell(thousands(entries)),
            cell(thousands(*count)),
            cell(percent_of(*count, entries)),
        ]
    };
    Table {
        caption: "Trimmed entries of each tensor".into(),
        head: vec!["tensor", "entries", "trimmed", "%"],
        rows: trimmed.iter().map(row).collect(),
        total: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_their_place() {
        let place = |name: &str| {
            let (module, matrix) = place(name);
            format!("{module} | {matrix}")
        };
        for (name, expected) in [
            (
                "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight",
                "down_blocks.0.attentions.1 | attn2 to_k",
            ),
            (
                "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
                "mid_block.attentions.0 | attn1 to_out",
            ),
            ("up_blocks.2.attentions.1.transformer_blocks.0.ff.net.0.proj.weight", "up_blocks.2.attentions.1 | ff"),
            ("up_blocks.2.attentions.1.transformer_blocks.0.norm3.weight", "up_blocks.2.attentions.1 | norm"),
            ("up_blocks.2.attentions.1.proj_in.weight", "up_blocks.2.attentions.1 | proj_in"),
            ("down_blocks.1.resnets.0.conv2.weight", "down_blocks.1.resnets.0 | conv"),
            ("down_blocks.1.downsamplers.0.conv.weight", "down_blocks.1.downsamplers.0 | conv"),
            ("conv_in.weight", "conv_in | other"),
            ("time_embedding.linear_1.bias", "time_embedding | other"),
        ] {
            assert_eq!(place(name), expected);
        }
    }

    #[test]
    fn the_middle_is_deepest_and_unscored_ends_are_left_out() {
        let block = |name: &str, scored| BlockTrim { block: name.into(), entries: 9, scored, trimmed: 0 };
        let blocks = [
            block("input", 0),
            block("down_blocks.0", 4),
            block("mid_block", 4),
            block("up_blocks.0", 4),
            block("output", 1),
        ];
        let found: Vec<_> = boxes(&blocks).into_iter().map(|b| (b.name.0, b.name.1, b.depth)).collect();
        let expected = [("down", "0", 0), ("mid", "", 1), ("up", "0", 0), ("output", "", 0)];
        assert_eq!(found, expected.map(|(a, b, depth)| (a.to_string(), b.to_string(), depth)));
    }
}
