//! What was changed in a model, as a LoRA: a small file that A1111, ComfyUI, kohya's scripts and diffusers load beside the base.
//!
//! A LoRA holds for each changed matrix of the UNet (a linear layer, or a convolution with its kernel laid flat) two thin
//! factors, whose product is added to the base's weights as the model is loaded:
//!
//! ```text
//! W + weight * alpha / r * up * down        up (out, r)   down (r, in)
//! ```
//!
//! where `weight` is what the user chooses and `r` the rank. [`create`] finds the factors by a singular value decomposition of
//! the difference between two models, so that no other factors of the same rank come nearer; [`apply`] adds them.
//!
//! **What is lost.** What of the difference lies beyond the rank, and what no LoRA can hold: biases, norms, embeddings. Both are
//! counted in the residual that [`Summary`] tells. At [`Rank::Full`] nothing of a matrix is lost but what the rounding of its
//! own `f32` weights loses; applied to weights in 16 bits, such a LoRA gives the edited model's very bytes. (kohya's
//! `extract_lora_from_models.py` clamps the largest hundredth of all factors, which no rank makes good; here nothing is
//! clamped.)
//!
//! **How the factors are scaled.** Each singular value's root goes into either factor, so that neither leaves the range of
//! 16-bit floats when the other is small. `alpha` is the same for all layers (the highest rank that any may have), because
//! diffusers 0.42 misreads attention's `alpha` in a file in which layers differ in it; a layer of a lower rank has `r / alpha`
//! folded into its factors, also half into either. Thus a weight of 1 in any program is the edit as it was made, times
//! [`Options::strength`], which is folded into the factors too.

mod apply;
mod create;
mod factor;
mod metadata;
mod names;
mod summary;
mod tensors;

pub use apply::apply;
pub use create::create;
pub use names::{text_encoder_name, unet_names};
pub use summary::{Layer, NotHeld, Summary};

use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// How many pairs of vectors a layer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// At most so many.
    Fixed(usize),
    /// As many as it takes to be exact, to the rounding of `f32`.
    Full,
}

impl Rank {
    /// The most that a matrix of this size can have.
    fn limit(self, rows: usize, columns: usize) -> usize {
        match self {
            Self::Fixed(rank) => rank.min(rows).min(columns),
            Self::Full => rows.min(columns),
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(rank) => rank.fmt(f),
            Self::Full => f.write_str("full"),
        }
    }
}

impl FromStr for Rank {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            text => match text.parse() {
                Ok(rank) if rank > 0 => Ok(Self::Fixed(rank)),
                _ => Err(format!("{text} is not a rank; give a number of 1 or more, or full for an exact LoRA")),
            },
        }
    }
}

/// How to make a LoRA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How many pairs of vectors a layer may have.
    pub rank: Rank,
    /// What the whole edit is multiplied by; below 0 it is turned round.
    pub strength: f64,
    /// The factors in `f16`: half the size, and a residual of some 0.03 % at any rank. Otherwise in `f32`.
    pub half: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { rank: Rank::Full, strength: 1.0, half: false }
    }
}

impl Options {
    /// Refuses what makes no LoRA.
    ///
    /// # Errors
    /// A rank of 0, a strength of 0 or one that is not finite.
    pub fn check(&self) -> Result<()> {
        if self.rank == Rank::Fixed(0) {
            return Err(Error::usage("--rank is 0; give a number of 1 or more, or full for an exact LoRA"));
        }
        check_strength(self.strength)?;
        match self.strength == 0.0 {
            true => Err(Error::usage("--strength is 0: the LoRA would change nothing; 1 is the edit as it was made")),
            false => Ok(()),
        }
    }
}

fn check_strength(strength: f64) -> Result<()> {
    match strength.is_finite() {
        true => Ok(()),
        false => {
            Err(Error::usage(format!("--strength is {strength}; give a number, where 1 is the edit as it was made")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_a_number_or_full() {
        assert_eq!(("16".parse(), "full".parse()), (Ok(Rank::Fixed(16)), Ok(Rank::Full)));
        assert_eq!((Rank::Fixed(16).to_string(), Rank::Full.to_string()), ("16".to_string(), "full".to_string()));
        for wrong in ["0", "-1", "1.5", "", "Full"] {
            assert!(wrong.parse::<Rank>().unwrap_err().contains("is not a rank; give a number"), "{wrong}");
        }
        assert_eq!(
            (Rank::Fixed(16).limit(320, 8), Rank::Fixed(16).limit(320, 768), Rank::Full.limit(320, 768)),
            (8, 16, 320)
        );
    }

    #[test]
    fn settings_that_make_no_lora_are_refused() {
        for (options, what) in [
            (Options { rank: Rank::Fixed(0), ..Options::default() }, "--rank is 0"),
            (Options { strength: 0.0, ..Options::default() }, "--strength is 0"),
            (Options { strength: f64::NAN, ..Options::default() }, "--strength is NaN"),
            (Options { strength: f64::INFINITY, ..Options::default() }, "--strength is inf"),
        ] {
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
        assert!(Options { strength: -0.5, ..Options::default() }.check().is_ok());
    }
}
