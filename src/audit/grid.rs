//! Before/after grids: the same prompts and seeds in rows, with labels.

use super::picture::blurred;
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([40, 40, 46]);
const PALE: Rgb<u8> = Rgb([120, 120, 130]);
const GAP: u32 = 8;
const MARGIN: u32 = 16;
const LABEL: u32 = 112;
/// Pixels of a letter's cell.
const CELL: u32 = 8;
/// Small pictures are enlarged to at least this width.
const WIDTH: u32 = 128;
/// Columns of one band.
const COLUMNS: usize = 8;
/// Lines of a caption under a column.
const CAPTION_LINES: usize = 6;

/// One row of pictures.
pub struct GridRow<'a> {
    /// What stands at its left; `\n` breaks lines.
    pub label: String,
    /// The pictures, all of one size.
    pub images: Vec<&'a RgbImage>,
    /// For each picture, whether it is made unrecognisable.
    pub blur: Vec<bool>,
}

/// A labelled grid.
pub struct Grid<'a> {
    /// Above everything.
    pub title: String,
    /// The rows; each has a picture for every caption.
    pub rows: Vec<GridRow<'a>>,
    /// Under each column: the prompt.
    pub captions: Vec<String>,
}

impl Grid<'_> {
    /// Draws the grid; more than eight columns go on in a further band below.
    pub fn draw(&self) -> RgbImage {
        let first = self.rows.iter().flat_map(|row| &row.images).next();
        let (width, height) = first.map_or((WIDTH, WIDTH), |image| image.dimensions());
        let scale = WIDTH.div_ceil(width.max(1)).max(1);
        let (w, h) = (width * scale, height * scale);
        let columns = self.captions.len().clamp(1, COLUMNS);
        let bands = self.captions.len().div_ceil(COLUMNS).max(1) as u32;
        let caption = CAPTION_LINES as u32 * (CELL + 2) + GAP;
        let band = self.rows.len() as u32 * (h + GAP) + caption + GAP;
        let title = 2 * CELL + 2 * GAP;
        let size = (2 * MARGIN + LABEL + columns as u32 * (w + GAP), 2 * MARGIN + title + bands * band);
        let mut canvas = RgbImage::from_pixel(size.0, size.1, WHITE);
        text(&mut canvas, &self.title, (MARGIN, MARGIN), 2, INK);
        for (i, caption) in self.captions.iter().enumerate() {
            let x = MARGIN + LABEL + (i % COLUMNS) as u32 * (w + GAP);
            let top = MARGIN + title + (i / COLUMNS) as u32 * band;
            for (r, row) in self.rows.iter().enumerate() {
                let y = top + r as u32 * (h + GAP);
                if let Some(image) = row.images.get(i) {
                    overlay(
                        &mut canvas,
                        &prepare(image, w, h, row.blur.get(i) == Some(&true)),
                        i64::from(x),
                        i64::from(y),
                    );
                }
                if i % COLUMNS == 0 {
                    for (l, line) in row.label.lines().enumerate() {
                        let colour = if l == 0 { INK } else { PALE };
                        text(&mut canvas, line, (MARGIN, y + h / 2 - CELL + l as u32 * (CELL + 4)), 1, colour);
                    }
                }
            }
            let y = top + self.rows.len() as u32 * (h + GAP);
            let lines = wrap(caption, ((w + GAP / 2) / CELL) as usize);
            for (l, line) in lines.iter().take(CAPTION_LINES).enumerate() {
                text(&mut canvas, line, (x, y + l as u32 * (CELL + 2)), 1, PALE);
            }
        }
        canvas
    }
}

fn prepare(image: &RgbImage, w: u32, h: u32, blur: bool) -> RgbImage {
    if blur {
        return blurred(image, w, h);
    }
    resize(image, w, h, FilterType::Nearest)
}

/// Lines of at most `width` letters, broken between words where possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Draws one line; letters that the font lacks become a box.
fn text(canvas: &mut RgbImage, line: &str, (x, y): (u32, u32), scale: u32, colour: Rgb<u8>) {
    for (i, letter) in line.chars().enumerate() {
        let glyph = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter)).unwrap_or([0x7e; 8]);
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..8u32).filter(|c| bits >> c & 1 == 1) {
                for (dx, dy) in (0..scale * scale).map(|k| (k % scale, k / scale)) {
                    let px = x + (i as u32 * CELL + column) * scale + dx;
                    let py = y + row as u32 * scale + dy;
                    if px < canvas.width() && py < canvas.height() {
                        canvas.put_pixel(px, py, colour);
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
    fn has_labels_rows_and_bands_and_blurs_only_what_it_should() {
        let sharp =
            RgbImage::from_fn(64, 64, |x, y| if (x / 4 + y / 4) % 2 == 0 { Rgb([0, 0, 0]) } else { Rgb([255, 0, 0]) });
        let rows = |blur| {
            let flags = |i| (0..10).map(|column| column == i && blur).collect();
            vec![
                GridRow { label: "before".into(), images: vec![&sharp; 10], blur: flags(0) },
                GridRow { label: "after".into(), images: vec![&sharp; 10], blur: flags(1) },
            ]
        };
        let draw = |blur| Grid { title: "t".into(), rows: rows(blur), captions: vec!["a red star".into(); 10] }.draw();
        let (plain, blurred) = (draw(false), draw(true));
        assert_eq!(plain.dimensions(), blurred.dimensions());
        assert_eq!(plain.width(), 2 * MARGIN + LABEL + 8 * (128 + GAP));
        let top = MARGIN + 2 * CELL + 2 * GAP;
        let area = |image: &RgbImage, y: u32| image.view_pixels(MARGIN + LABEL, y);
        assert_ne!(area(&plain, top), area(&blurred, top), "the first row's first picture is blurred");
        assert_eq!(area(&plain, top + 128 + GAP), area(&blurred, top + 128 + GAP), "the second's is not");
        let label = (0..LABEL).any(|x| (top..top + 128).any(|y| *plain.get_pixel(MARGIN + x, y) == INK));
        assert!(label, "the row has a label");
    }

    trait View {
        fn view_pixels(&self, x: u32, y: u32) -> Vec<Rgb<u8>>;
    }

    impl View for RgbImage {
        fn view_pixels(&self, x: u32, y: u32) -> Vec<Rgb<u8>> {
            (0..128 * 128).map(|i| *self.get_pixel(x + i % 128, y + i / 128)).collect()
        }
    }

    #[test]
    fn captions_wrap_between_words() {
        assert_eq!(wrap("a large red star", 8), ["a large", "red star"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
    }
}
