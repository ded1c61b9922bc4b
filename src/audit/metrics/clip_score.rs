//! How well pictures fit their prompts.

use super::{Metric, common_width, unit};
use crate::{Error, Result};

/// What [`clip_score`] is.
pub const CLIP_SCORE_DEFINITION: &str = "\
    mean over pictures of 100 * max(cos, 0), cos between the CLIP features of a picture and of its prompt \
    (torchmetrics' CLIPScore, which takes the maximum of the mean instead; the same unless a cosine is negative). \
    Papers that print .31 print cos, those that print 31 print 100 * cos; Hessel et al. (2021) have 2.5 * max(cos, \
    0). Comparable for one CLIP model only";

/// The score of each picture with its own prompt: `100 * max(cos, 0)`. Rows are features as CLIP projects them; their
/// length does not matter.
///
/// # Errors
/// Unless there is one text a picture, with features of the same length.
pub fn clip_scores(pictures: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<Vec<f64>> {
    if pictures.len() != texts.len() {
        let what =
            format!("CLIP score: {} pictures and {} prompts; each picture needs its own", pictures.len(), texts.len());
        return Err(Error::usage(what));
    }
    common_width(pictures, texts, 1, "CLIP score")?;
    let cosine = |a: &Vec<f32>, b: &Vec<f32>| unit(a).iter().zip(unit(b)).map(|(a, b)| a * b).sum::<f64>();
    Ok(pictures.iter().zip(texts).map(|(a, b)| 100.0 * cosine(a, b).max(0.0)).collect())
}

/// The mean of [`clip_scores`].
///
/// # Errors
/// As [`clip_scores`].
pub fn clip_score(pictures: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<Metric> {
    let scores = clip_scores(pictures, texts)?;
    Ok(Metric {
        name: "CLIP score",
        definition: CLIP_SCORE_DEFINITION,
        value: scores.iter().sum::<f64>() / scores.len() as f64,
        pictures: vec![scores.len()],
    })
}
