//! What CLIP makes of the pictures: features, from which sets of pictures are compared, and how well each fits its prompt.

use super::UsedClip;
use crate::audit::ClipModel;
use crate::audit::metrics::clip_scores;
use crate::{Error, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};

/// What CLIP makes of one picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipLook {
    /// Its features: 32-bit numbers, least byte first, in hex.
    pub features: String,
    /// 100 times the cosine with its prompt's features, or 0.
    pub score: f64,
}

impl ClipLook {
    /// Keeps features.
    pub fn new(features: &[f32], score: f64) -> Self {
        Self { features: to_hex(features), score }
    }

    /// The features; `None` if the text is damaged.
    pub fn features(&self) -> Option<Vec<f32>> {
        from_hex(&self.features)
    }
}

/// Numbers as text that is not longer than their digits would be, to the bit.
pub(super) fn to_hex(values: &[f32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.flat_map(|byte| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]))).collect()
}

pub(super) fn from_hex(text: &str) -> Option<Vec<f32>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = text.as_bytes().iter().map(digit).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    let words = bytes.chunks_exact(4);
    let whole = text.len().is_multiple_of(8);
    whole.then(|| words.filter_map(|word| word.try_into().ok()).map(f32::from_le_bytes).collect())
}

/// A CLIP that looks at pictures.
pub struct ClipEye {
    /// The networks.
    pub model: ClipModel,
    /// What the manifest says of it.
    pub used: UsedClip,
}

impl ClipEye {
    /// Looks at pictures, each with its prompt.
    ///
    /// # Errors
    /// If interrupted, or a feature is not finite.
    pub fn look(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<ClipLook>> {
        let pictures = self.model.image_features(images)?;
        let mut unique: Vec<&str> = prompts.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let texts = self.model.text_features(&unique)?;
        let of = |prompt: &&str| unique.binary_search(prompt).ok().and_then(|i| texts.get(i)).cloned();
        let texts: Option<Vec<Vec<f32>>> = prompts.iter().map(of).collect();
        let texts = texts.ok_or_else(|| Error::usage("CLIP: each picture needs its prompt"))?;
        let scores = clip_scores(&pictures, &texts)?;
        Ok(pictures.iter().zip(scores).map(|(features, score)| ClipLook::new(features, score)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_kept_to_the_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE, -3.402e38, 0.1];
        let look = ClipLook::new(&values, 1.0);
        assert_eq!(look.features.len(), 48);
        let back: Vec<u32> = look.features().unwrap().iter().map(|x| x.to_bits()).collect();
        assert_eq!(back, values.map(f32::to_bits));
        for damaged in ["0", "0000", "0000000g", "é0000000"] {
            assert_eq!(from_hex(damaged), None, "{damaged}");
        }
        assert_eq!(from_hex(""), Some(vec![]));
    }
}
