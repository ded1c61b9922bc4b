//! One model on several devices: what samples in their turns, and always gives the same bytes.

use super::{SampleOptions, StableDiffusion, Unet};
use crate::Result;
use crate::nn::deal;
use candle_core::Tensor;

/// A model on one device, ready to sample.
pub struct Replica<'m> {
    /// The networks.
    pub model: &'m StableDiffusion,
    /// Its UNet, which never records a graph.
    pub unet: Unet,
}

/// A model on each device that it was loaded to.
pub struct Replicas<'m>(Vec<Replica<'m>>);

impl StableDiffusion {
    /// This model, and then its copies.
    pub fn everywhere(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.copies)
    }

    /// This model and its copies, ready to sample.
    ///
    /// # Errors
    /// As [`StableDiffusion::unet`].
    pub fn replicas(&self) -> Result<Replicas<'_>> {
        Ok(Replicas(self.everywhere().map(|model| Ok(Replica { model, unet: model.unet()? })).collect::<Result<_>>()?))
    }
}

impl Replicas<'_> {
    /// As [`deal`], with the devices as workers: `work` is told which one it is at.
    ///
    /// # Errors
    /// As [`deal`].
    pub fn deal<T: Send>(
        &self,
        count: usize,
        work: impl Fn(&Replica<'_>, usize) -> Result<T> + Sync,
        take: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        deal(&self.0, count, work, take)
    }
}

impl Replica<'_> {
    /// As [`StableDiffusion::sample_latents`]: latents on this device.
    ///
    /// # Errors
    /// As [`StableDiffusion::sample_latents`].
    pub fn latents<S: AsRef<str>>(
        &self,
        options: &SampleOptions,
        prompts: &[S],
        negatives: &[S],
        seeds: &[u64],
    ) -> Result<Tensor> {
        self.model.sample_latents(&self.unet, options, prompts, negatives, seeds)
    }

    /// The pictures of these latents, on this device.
    ///
    /// # Errors
    /// As [`Replica::latents`] and [`StableDiffusion::decode_latents`].
    pub fn pixels<S: AsRef<str>>(
        &self,
        options: &SampleOptions,
        prompts: &[S],
        negatives: &[S],
        seeds: &[u64],
    ) -> Result<Tensor> {
        self.model.decode_latents(&self.latents(options, prompts, negatives, seeds)?)
    }
}
