//! YOLOv8's output to boxes, as NudeNet 3.4.2 reads it: scores above 0.25, and of boxes that overlap, whatever their class, the best.

/// Numbers of a box before its scores: the middle, width and height.
pub const SIDES: usize = 4;
/// A place whose best score is lower is not looked at.
const CANDIDATE: f32 = 0.2;
/// A box must be above this score.
const SCORE: f32 = 0.25;
/// Of two boxes that overlap by more of what they cover together, the better is left.
const OVERLAP: f64 = 0.45;

/// A picture and the side of the network's input.
pub struct Frame {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Of the network's input.
    pub side: usize,
}

/// A box that is left.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Number of its best class.
    pub class: usize,
    /// That class' score.
    pub score: f32,
    /// Left, top, width and height in pixels of the picture.
    pub bounds: [f32; 4],
}

/// The boxes that are left of an output, best first.
///
/// # Shape
/// `output` has `rows` rows of a place each column: `SIDES + classes`, places.
pub fn left(output: &[f32], rows: usize, frame: &Frame) -> Vec<Found> {
    let mut found = candidates(output, rows, frame);
    found.retain(|(_, score, _)| *score > SCORE);
    // the sort is stable: of two equal scores the first comes first
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut left: Vec<(usize, f32, [f64; 4])> = Vec::new();
    for one in found {
        if left.iter().all(|better| overlap(&better.2, &one.2) <= OVERLAP) {
            left.push(one);
        }
    }
    let found =
        |(class, score, bounds): (usize, f32, [f64; 4])| Found { class, score, bounds: bounds.map(|x| x as f32) };
    left.into_iter().map(found).collect()
}

/// Class, score and bounds of every place that may show something, cut at the picture's edges.
fn candidates(output: &[f32], rows: usize, frame: &Frame) -> Vec<(usize, f32, [f64; 4])> {
    let places = output.len() / rows.max(1);
    let at = |row: usize, place: usize| output[row * places + place];
    let (width, height) = (f64::from(frame.width), f64::from(frame.height));
    let scale = width.max(height) / frame.side as f64;
    let mut found = Vec::new();
    for place in 0..places {
        let mut best = (0, f32::NEG_INFINITY);
        for class in 0..rows.saturating_sub(SIDES) {
            let score = at(SIDES + class, place);
            if score > best.1 {
                best = (class, score);
            }
        }
        if best.1 < CANDIDATE {
            continue;
        }
        let [x, y, w, h] = [0, 1, 2, 3].map(|row| f64::from(at(row, place)));
        let x = ((x - w / 2.0) * scale).min(width).max(0.0);
        let y = ((y - h / 2.0) * scale).min(height).max(0.0);
        found.push((best.0, best.1, [x, y, (w * scale).min(width - x), (h * scale).min(height - y)]));
    }
    found
}

/// What two boxes share, of what they cover together; all of it, if both are empty (OpenCV's `jaccardDistance`).
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let shared = |i: usize| ((a[i] + a[i + 2]).min(b[i] + b[i + 2]) - a[i].max(b[i])).max(0.0);
    let both = shared(0) * shared(1);
    let areas = a[2] * a[3] + b[2] * b[3];
    if areas <= f64::EPSILON { 1.0 } else { both / (areas - both) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes; each place: middle, size, scores.
    fn output(places: &[[f32; 7]]) -> Vec<f32> {
        (0..7).flat_map(|row| places.iter().map(move |place| place[row])).collect()
    }

    const FRAME: Frame = Frame { width: 200, height: 100, side: 100 };

    #[test]
    fn of_boxes_that_overlap_the_best_is_left_whatever_its_class() {
        let places = [
            [20.0, 20.0, 20.0, 20.0, 0.1, 0.7, 0.2],
            [21.0, 20.0, 20.0, 20.0, 0.9, 0.1, 0.2],  // over the first, better
            [35.0, 20.0, 20.0, 20.0, 0.26, 0.1, 0.2], // shares a quarter of its width
            [60.0, 20.0, 4.0, 4.0, 0.25, 0.1, 0.2],   // not above the threshold
        ];
        let found = left(&output(&places), 7, &FRAME);
        let expected = [(0, 0.9, [22.0, 20.0, 40.0, 40.0]), (0, 0.26, [50.0, 20.0, 40.0, 40.0])];
        let facts: Vec<_> = found.iter().map(|f| (f.class, f.score, f.bounds)).collect();
        assert_eq!(facts, expected);
    }

    #[test]
    fn boxes_are_cut_at_the_edges_of_the_picture_not_of_the_padding() {
        let found = left(&output(&[[95.0, 48.0, 20.0, 20.0, 0.5, 0.1, 0.2]]), 7, &FRAME);
        assert_eq!(found[0].bounds, [170.0, 76.0, 30.0, 24.0]);
        let found = left(&output(&[[1.0, 80.0, 20.0, 10.0, 0.5, 0.1, 0.2]]), 7, &FRAME);
        assert_eq!(found[0].bounds, [0.0, 100.0, 40.0, 0.0], "as NudeNet's package: the width stays");
    }

    #[test]
    fn of_empty_boxes_beyond_the_edge_one_is_left() {
        let beyond = |y: f32, score: f32| [110.0, y, 4.0, 4.0, score, 0.1, 0.2];
        let found = left(&output(&[beyond(10.0, 0.5), beyond(30.0, 0.6)]), 7, &FRAME);
        assert_eq!(found.iter().map(|f| f.score).collect::<Vec<_>>(), [0.6]);
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        assert_eq!(left(&[], 7, &FRAME), []);
        assert_eq!(left(&[1.0; 4], 4, &FRAME), []);
    }
}
