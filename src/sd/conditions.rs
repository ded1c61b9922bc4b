//! What the UNet is told besides the latent and the timestep: text embeddings and, in SDXL, pooled text and sizes.

use super::unet::AddedConditions;
use crate::Result;
use crate::nn::across;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// The conditions of some rows. A plain context turns into them, for models that need nothing else.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// What cross-attention reads, `(B, L, cross_attention_dim)`.
    pub context: Tensor,
    /// What SDXL adds to the timestep.
    pub added: Option<AddedConditions>,
}

impl From<&Tensor> for Conditions {
    fn from(context: &Tensor) -> Self {
        Self { context: context.clone(), added: None }
    }
}

impl From<&Conditions> for Conditions {
    fn from(conditions: &Conditions) -> Self {
        conditions.clone()
    }
}

impl Conditions {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.context.dims().first().copied().unwrap_or(0)
    }

    /// The same conditions there.
    pub fn on(&self, device: &Device) -> Result<Self> {
        self.map(|tensor| across(tensor, device), <[_]>::to_vec)
    }

    /// These rows.
    pub fn narrow(&self, rows: &Range<usize>) -> Result<Self> {
        self.map(
            |tensor| Ok(tensor.narrow(0, rows.start, rows.len())?),
            |sizes| sizes.get(rows.clone()).unwrap_or_default().to_vec(),
        )
    }

    /// Rows by index, in the order given.
    pub fn select(&self, index: &[u32]) -> Result<Self> {
        let rows = Tensor::new(index, self.context.device())?;
        self.map(
            |tensor| Ok(tensor.index_select(&rows, 0)?),
            |sizes| index.iter().filter_map(|i| sizes.get(*i as usize).copied()).collect(),
        )
    }

    /// All rows of all, in order. They must come from one model.
    pub fn cat(all: &[&Self]) -> Result<Self> {
        let contexts: Vec<&Tensor> = all.iter().map(|conditions| &conditions.context).collect();
        let added: Option<Vec<&AddedConditions>> = all.iter().map(|conditions| conditions.added.as_ref()).collect();
        let added = added.filter(|added| !added.is_empty()).map(|added| -> Result<_> {
            let pooled: Vec<&Tensor> = added.iter().map(|added| &added.text_embeds).collect();
            let time_ids = added.iter().flat_map(|added| added.time_ids.iter().copied()).collect();
            Ok(AddedConditions { text_embeds: Tensor::cat(&pooled, 0)?, time_ids })
        });
        Ok(Self { context: Tensor::cat(&contexts, 0)?, added: added.transpose()? })
    }

    /// The same for pictures of this height and width in pixels, nothing cropped: SDXL is told the size, others are not.
    pub fn sized(mut self, height: usize, width: usize) -> Self {
        let (height, width) = (height as f32, width as f32);
        if let Some(added) = &mut self.added {
            added.time_ids.fill([height, width, 0.0, 0.0, height, width]);
        }
        self
    }

    /// Zeros in place of the text of the rows for which `empty` holds (diffusers' `force_zeros_for_empty_prompt`).
    pub fn without_text(self, empty: &[bool]) -> Result<Self> {
        let mask: Vec<f32> = empty.iter().map(|empty| if *empty { 0.0 } else { 1.0 }).collect();
        let mask = Tensor::from_vec(mask, empty.len(), self.context.device())?;
        let zeroed = |tensor: &Tensor| -> Result<Tensor> {
            let mut shape = vec![1; tensor.rank()];
            shape[0] = empty.len();
            Ok(tensor.broadcast_mul(&mask.reshape(shape)?)?)
        };
        self.map(zeroed, <[_]>::to_vec)
    }

    fn map(
        &self,
        tensor: impl Fn(&Tensor) -> Result<Tensor>,
        sizes: impl Fn(&[[f32; 6]]) -> Vec<[f32; 6]>,
    ) -> Result<Self> {
        let added = self.added.as_ref().map(|added| -> Result<_> {
            Ok(AddedConditions { text_embeds: tensor(&added.text_embeds)?, time_ids: sizes(&added.time_ids) })
        });
        Ok(Self { context: tensor(&self.context)?, added: added.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn of(first: f32) -> Conditions {
        let row = |i: f32| Tensor::full(first + i, (1, 2, 3), &Device::Cpu).unwrap();
        let context = Tensor::cat(&[row(0.0), row(1.0), row(2.0)], 0).unwrap();
        let text_embeds = (context.narrow(1, 0, 1).unwrap().squeeze(1).unwrap() * 10.0).unwrap();
        let time_ids = (0..3).map(|i| [first + i as f32; 6]).collect();
        Conditions { context, added: Some(AddedConditions { text_embeds, time_ids }) }
    }

    /// One number of each row's context, pooled text and sizes.
    fn values(conditions: &Conditions) -> Vec<[f32; 3]> {
        let first = |t: &Tensor| t.flatten_from(1).unwrap().narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        let context = first(&conditions.context).to_vec1::<f32>().unwrap();
        let added = conditions.added.as_ref().unwrap();
        let pooled = first(&added.text_embeds).to_vec1::<f32>().unwrap();
        assert_eq!((pooled.len(), added.time_ids.len()), (context.len(), conditions.rows()));
        context.iter().zip(pooled).zip(&added.time_ids).map(|((c, p), s)| [*c, p, s[5]]).collect()
    }

    #[test]
    fn rows_keep_their_pooled_text_and_sizes() {
        let all = of(1.0);
        let row = |i: f32| [i, 10.0 * i, i];
        assert_eq!(values(&all.narrow(&(1..3)).unwrap()), [row(2.0), row(3.0)]);
        assert_eq!(values(&all.select(&[2, 0, 2]).unwrap()), [row(3.0), row(1.0), row(3.0)]);
        let both = Conditions::cat(&[&all, &of(7.0).narrow(&(0..1)).unwrap()]).unwrap();
        assert_eq!(values(&both), [row(1.0), row(2.0), row(3.0), row(7.0)]);
        let zeroed = all.clone().without_text(&[true, false, true]).unwrap();
        assert_eq!(values(&zeroed), [[0.0, 0.0, 1.0], row(2.0), [0.0, 0.0, 3.0]], "sizes stay");
        let sized = all.sized(64, 32);
        assert_eq!(sized.added.unwrap().time_ids, vec![[64.0, 32.0, 0.0, 0.0, 64.0, 32.0]; 3]);
    }

    #[test]
    fn a_plain_context_has_nothing_added() {
        let context = of(0.0).context;
        let plain = Conditions::from(&context);
        assert!(plain.narrow(&(0..2)).unwrap().added.is_none());
        assert!(Conditions::cat(&[&plain, &plain]).unwrap().added.is_none());
    }
}
