//! The UNet as a picture: its blocks from input to output, deeper ones lower, filled by what they lost.

use super::super::words::{number, thousands};
use maud::{Markup, html};

const BOX: u32 = 64;
/// How much lower each level lies.
const DEEPER: u32 = 30;
/// Above a box: its name, in two lines.
const NAME: u32 = 34;
/// Below it: share and count.
const BELOW: u32 = 38;

/// One block.
pub struct Block {
    /// Its name in two words: `down`, `0`.
    pub name: (String, String),
    /// How deep it lies; the input is 0.
    pub depth: u32,
    /// Trimmed entries.
    pub trimmed: usize,
    /// Entries that could be trimmed; a block without any is drawn empty.
    pub scored: usize,
}

impl Block {
    fn share(&self) -> f64 {
        if self.scored == 0 { 0.0 } else { self.trimmed as f64 / self.scored as f64 }
    }
}

/// How high the figure is.
pub fn height(blocks: &[Block]) -> u32 {
    NAME + BOX + BELOW + blocks.iter().map(|b| b.depth).max().unwrap_or(0) * DEEPER
}

/// The figure. A box is filled from below in proportion to its share of trimmed entries; the fullest is full.
pub fn unet(name: &str, blocks: &[Block]) -> Markup {
    let height = height(blocks);
    let most = blocks.iter().map(Block::share).fold(0.0, f64::max);
    let width = 100.0 / blocks.len().max(1) as f64;
    let x = |i: usize, share: f64| format!("{:.3}%", width * (i as f64 + share));
    let top = |block: &Block| NAME + block.depth * DEEPER;
    let named = |b: &Block| format!("{} {}", b.name.0, b.name.1).trim_end().to_string();
    let said = |b: &Block| format!("{}: {} of {}", named(b), thousands(b.trimmed), thousands(b.scored));
    html! {
        svg.unet role="img" aria-label={ (name) ". " (blocks.iter().map(said).collect::<Vec<_>>().join("; ")) }
            width="100%" height=(height) {
            @for (i, pair) in blocks.windows(2).enumerate() {
                line.flow x1=(x(i, 0.5)) x2=(x(i + 1, 0.5)) y1=(top(&pair[0]) + BOX / 2) y2=(top(&pair[1]) + BOX / 2) {}
            }
            @for (i, block) in blocks.iter().enumerate() {
                @let top = top(block);
                @let fill = if most > 0.0 { f64::from(BOX) * block.share() / most } else { 0.0 };
                g.block .unscored[block.scored == 0] {
                    text.label x=(x(i, 0.5)) y=(top - 20) text-anchor="middle" { (block.name.0) }
                    text.label x=(x(i, 0.5)) y=(top - 7) text-anchor="middle" { (block.name.1) }
                    rect.hull x=(x(i, 0.1)) width=(format!("{:.3}%", 0.8 * width)) y=(top) height=(BOX) rx="4" {}
                    @if fill > 0.0 {
                        rect.fill x=(x(i, 0.1)) width=(format!("{:.3}%", 0.8 * width)) y=(format!("{:.1}", f64::from(top + BOX) - fill))
                            height=(format!("{fill:.1}")) rx="4" {}
                    }
                    @if block.scored > 0 {
                        text.value x=(x(i, 0.5)) y=(top + BOX + 16) text-anchor="middle" { (number(100.0 * block.share(), 2)) }
                        text.tick x=(x(i, 0.5)) y=(top + BOX + 31) text-anchor="middle" { (thousands(block.trimmed)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_block_is_full_and_an_unscored_one_empty() {
        let block =
            |name: &str, depth, trimmed, scored| Block { name: (name.into(), "0".into()), depth, trimmed, scored };
        let blocks = [block("input", 0, 0, 0), block("down", 1, 10, 1000), block("mid", 2, 5, 1000)];
        let svg = unet("Trimmed", &blocks).into_string();
        let heights: Vec<&str> = svg
            .split("class=\"fill\"")
            .skip(1)
            .filter_map(|part| part.split("height=\"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(heights, ["64.0", "32.0"]);
        assert_eq!(svg.matches("block unscored").count(), 1);
        assert!(svg.contains("Trimmed. input 0: 0 of 0; down 0: 10 of 1,000; mid 0: 5 of 1,000"), "{svg}");
    }
}
