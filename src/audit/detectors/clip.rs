//! A whole CLIP: pictures and texts to features.

use super::{BATCH, DetectorFiles};
use crate::audit::image_processor::{ImageProcessor, ProcessorKind};
use crate::progress::check_interrupted;
use crate::sd::{Clip, ClipConfig, Tokenizer};
use crate::{Error, Result};
use image::RgbImage;

/// A CLIP with its tokenizer and its image processor.
pub struct ClipModel {
    clip: Clip,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    name: String,
    sha256: String,
}

impl ClipModel {
    /// Loads both towers.
    ///
    /// # Errors
    /// If a file is missing or malformed, or does not belong to the others: the message names it.
    pub fn open(files: &DetectorFiles) -> Result<Self> {
        let in_config = |e| files.in_config(e);
        let config = ClipConfig::from_value(&files.config()?).map_err(in_config)?;
        let clip = Clip::new(&config, &files.weights()?).map_err(in_config)?;
        let mut tokenizer = files.tokenizer()?;
        tokenizer.limit_to(config.text_config.max_position_embeddings);
        let (largest, rows) = (tokenizer.largest_id() as usize, config.text_config.vocab_size);
        if largest >= rows {
            let what = format!(
                "text_config.vocab_size is {rows}, but the tokenizer has a token of id {largest}; they do not belong \
                 together, download both again"
            );
            return Err(Error::file(files.describe("config.json"), what));
        }
        let processor = files.processor(ProcessorKind::Clip)?;
        Ok(Self { clip, tokenizer, processor, name: files.name().to_string(), sha256: files.sha256()? })
    }

    /// A name for reports: the folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of its weights' file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The networks.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Features of pictures of any size, projected, not normalised: a row a picture. A row depends on its own picture
    /// alone.
    ///
    /// # Errors
    /// If interrupted, or a feature is not finite.
    pub fn image_features(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(images.len());
        for images in images.chunks(BATCH) {
            check_interrupted()?;
            rows.extend(self.clip.image_features(&self.processor.prepare(images)?)?.to_vec2::<f32>()?);
        }
        self.finite(rows)
    }

    /// Features of texts, projected, not normalised: a row a text. Texts that are too long lose their end, as in
    /// transformers' `truncation=True`.
    ///
    /// # Errors
    /// As [`ClipModel::image_features`].
    pub fn text_features<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            check_interrupted()?;
            let ids = self.tokenizer.encode(texts)?.ids;
            rows.extend(self.clip.text_features(&ids, self.tokenizer.eos())?.to_vec2::<f32>()?);
        }
        self.finite(rows)
    }

    fn finite(&self, rows: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        if rows.iter().flatten().all(|value| value.is_finite()) {
            return Ok(rows);
        }
        let what = format!("{}: a feature is NaN or infinite; do config and weights belong together?", self.name);
        Err(Error::Numeric(what))
    }
}
