//! The parts of a Stable Diffusion model together: prompts to embeddings, noise to latents, latents to pictures.

use super::{AddedConditions, Conditions, TextEncoder, Tokenizer, Unet, UnetConfig, Vae};
use crate::diffusion::{self, Generator, Sampler, Schedule, SchedulerConfig};
use crate::nn::{ParamStore, across, assuming_rows, by_rows};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// What is said where a number left what `f32` can hold.
const NOT_FINITE: &str = "the model's picture became NaN or infinite: its configs may not fit its weights, or the guidance \
                          scale is much too large; lower --guidance-scale, or download the model again";

/// Latents of up to this side are tiny: on the CPU, 32 pictures at a time are fastest. Larger ones are made one by one.
const TINY: usize = 16;
/// Pictures of tiny latents made at a time.
const TOGETHER: usize = 32;
/// Latents of up to so many pixels are small.
const SMALL: usize = 32 * 32;
/// Small pictures that a thread makes at a time.
const SHARE: usize = 8;
/// Pixels of latents that a GPU takes through the UNet at a time (twice as many with guidance): 16 pictures of SD 1.x.
const ON_GPU: usize = 16 * 64 * 64;
/// Of these, that it decodes at a time: two pictures of SD 1.x, in less than 2 GiB.
const DECODED_ON_GPU: usize = 2 * 64 * 64;
/// More pictures than this at a time make a GPU no faster.
const MOST_ON_GPU: usize = 64;
/// Prompts that a text encoder takes at a time.
const EMBEDDED: usize = 64;

/// A loaded model.
pub struct StableDiffusion {
    /// Prompts to token ids.
    pub tokenizer: Tokenizer,
    /// Token ids to embeddings; always frozen.
    pub text_encoder: Arc<TextEncoder>,
    /// SDXL's second tokenizer and text encoder.
    pub second: Option<SecondEncoder>,
    /// Whether an empty negative prompt is zeros instead of what the text encoders make of it (SDXL).
    pub zeros_for_empty: bool,
    /// The UNet's architecture.
    pub unet_config: UnetConfig,
    /// The UNet's parameters.
    pub unet_params: ParamStore,
    /// Pictures to latents and back; always frozen.
    pub vae: Arc<Vae>,
    /// The noise schedule and default sampler.
    pub scheduler: SchedulerConfig,
    /// The same model on the further devices that share the work.
    pub copies: Vec<StableDiffusion>,
}

/// SDXL's second tokenizer (`tokenizer_2`) and text encoder (`text_encoder_2`).
pub struct SecondEncoder {
    /// Prompts to token ids.
    pub tokenizer: Tokenizer,
    /// Token ids to embeddings and a pooled embedding; always frozen.
    pub text_encoder: Arc<TextEncoder>,
}

/// How latents are sampled.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// The sampler.
    pub sampler: Sampler,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 or less switches it off.
    pub guidance_scale: f64,
    /// Noise added in each DDIM step, 0 to 1.
    pub eta: f64,
    /// Height and width of the latents; by default as the UNet's config says.
    pub size: Option<(usize, usize)>,
}

impl StableDiffusion {
    /// What the UNet is told of these prompts, a row each, without a graph, for pictures of the default size.
    pub fn embed<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditions> {
        let parts = prompts.chunks(EMBEDDED).map(|prompts| self.embed_together(prompts)).collect::<Result<Vec<_>>>()?;
        let pixels = self.latent_size() * self.vae.downsampling();
        Ok(Conditions::cat(&parts.iter().collect::<Vec<_>>())?.sized(pixels, pixels))
    }

    /// As [`StableDiffusion::embed`], for what a picture is steered away from: some models take zeros for an empty prompt.
    pub fn embed_negative<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditions> {
        let conditions = self.embed(prompts)?;
        if !self.zeros_for_empty {
            return Ok(conditions);
        }
        conditions.without_text(&prompts.iter().map(|prompt| prompt.as_ref().is_empty()).collect::<Vec<_>>())
    }

    fn embed_together<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditions> {
        check_interrupted()?;
        let ids = self.tokenizer.encode(prompts)?.ids;
        let Some(second) = &self.second else {
            return Ok(Conditions { context: self.text_encoder.forward(&ids)?.detach(), added: None });
        };
        let first = self.text_encoder.forward_all(&ids, self.tokenizer.eos())?;
        check_interrupted()?;
        let ids = second.tokenizer.encode(prompts)?.ids;
        let second = second.text_encoder.forward_all(&ids, second.tokenizer.eos())?;
        let context = Tensor::cat(&[first.penultimate, second.penultimate], 2)?.detach(); // features side by side
        let pooled = second.pooled.ok_or_else(|| Error::Weights("text_encoder_2 has no text_projection".into()))?;
        let added = AddedConditions { text_embeds: pooled.detach(), time_ids: vec![[0.0; 6]; prompts.len()] };
        Ok(Conditions { context, added: Some(added) })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.unet_params.device()
    }

    /// How many pictures a job should ask for at a time.
    pub fn together(&self) -> usize {
        let side = self.latent_size();
        match self.device().is_cpu() {
            true if side <= TINY => TOGETHER,
            true => 1,
            false => on_gpu(ON_GPU, side * side),
        }
    }

    /// Bytes of all networks' parameters, on one device.
    pub fn bytes(&self) -> usize {
        let second = self.second.as_ref().map_or(0, |second| second.text_encoder.bytes());
        self.unet_params.bytes() + self.text_encoder.bytes() + second + self.vae.bytes()
    }

    /// Gives back what text encoders and VAE take on GPUs, until they are asked for something.
    ///
    /// # Errors
    /// If they cannot be copied to main memory.
    pub fn make_room(&self) -> Result<()> {
        for model in self.everywhere() {
            model.text_encoder.leave()?;
            model.second.as_ref().map_or(Ok(()), |second| second.text_encoder.leave())?;
            model.vae.leave()?;
        }
        Ok(())
    }

    /// The UNet for sampling: it never records a graph.
    pub fn unet(&self) -> Result<Unet> {
        Unet::new(&self.unet_config, &self.unet_params.detached())
    }

    /// Height and width of the latents by default.
    pub fn latent_size(&self) -> usize {
        self.unet_config.sample_size.unwrap_or(64)
    }

    /// Rows and columns of the latents that are asked for.
    fn latents_of(&self, options: &SampleOptions) -> (usize, usize) {
        let side = self.latent_size();
        options.size.unwrap_or((side, side))
    }

    /// One latent for each seed: row i depends on its own prompt, negative prompt and seed alone, to the last bit.
    ///
    /// # Shape
    /// `B` prompts, negatives and seeds -> `(B, C, h, w)`.
    pub fn sample_latents<S: AsRef<str>>(
        &self,
        unet: &Unet,
        options: &SampleOptions,
        prompts: &[S],
        negatives: &[S],
        seeds: &[u64],
    ) -> Result<Tensor> {
        if prompts.len() != negatives.len() || prompts.len() != seeds.len() || prompts.is_empty() {
            return Err(Error::usage(format!(
                "{} prompts, {} negative prompts and {} seeds do not match",
                prompts.len(),
                negatives.len(),
                seeds.len()
            )));
        }
        let (height, width) = self.latents_of(options);
        let share = self.share(height * width);
        // fewer at a time where there are threads for more shares: a picture does not depend on those beside it
        let at_once = match self.device().is_cpu() && share == SHARE {
            true => prompts.len().div_ceil(rayon::current_num_threads()).clamp(SHARE / 2, SHARE),
            false => share,
        };
        if prompts.len() > at_once {
            let texts = |texts: &[S]| texts.iter().map(|text| text.as_ref().to_string()).collect::<Vec<_>>();
            let (prompts, negatives) = (texts(prompts), texts(negatives));
            return by_rows(self.device(), prompts.len(), at_once, |rows| {
                self.sample_share(unet, options, &prompts[rows.clone()], &negatives[rows.clone()], &seeds[rows])
            });
        }
        self.sample_share(unet, options, prompts, negatives, seeds)
    }

    /// As [`Self::sample_latents`], all at a time.
    fn sample_share<S: AsRef<str>>(
        &self,
        unet: &Unet,
        options: &SampleOptions,
        prompts: &[S],
        negatives: &[S],
        seeds: &[u64],
    ) -> Result<Tensor> {
        let (height, width) = self.latents_of(options);
        let shape = [1, self.unet_config.in_channels, height, width];
        let mut streams: Vec<Generator> = seeds.iter().map(|seed| Generator::new(*seed)).collect();
        let mut draw = |_: &[usize]| -> Result<Tensor> {
            let rows = streams.iter_mut().map(|s| s.randn_tensor(&shape, &Device::Cpu)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&rows, 0)?.to_device(self.device())?)
        };
        let start = draw(&[])?;
        let pixels = |latent: usize| latent * self.vae.downsampling();
        let [prompts, negatives] = [self.embed(prompts)?, self.embed_negative(negatives)?]
            .map(|conditions| conditions.sized(pixels(height), pixels(width)));
        // as with guidance, of a whole share or of one large picture
        let rows = if self.share(height * width) == SHARE { 2 * SHARE } else { 2 };
        assuming_rows(rows, || self.denoise(unet, options, &prompts, &negatives, start, &mut draw))
    }

    /// Denoises unit-normal latents `start` `(B, C, h, w)` under the conditions of `B` prompts and negative prompts.
    pub fn denoise(
        &self,
        unet: &Unet,
        options: &SampleOptions,
        prompts: &Conditions,
        negatives: &Conditions,
        start: Tensor,
        noise: &mut dyn FnMut(&[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rows = start.dim(0)?;
        let guided = options.guidance_scale > 1.0;
        let both = if guided { Conditions::cat(&[negatives, prompts])? } else { prompts.clone() }; // [uncond | cond]
        let reader = unet.reading(&both);
        let mut predict = |x: &Tensor, t: f32| -> Result<Tensor> {
            let eps = reader.forward(x, &vec![t; rows])?;
            if !guided {
                return Ok(eps);
            }
            diffusion::guide(&eps.narrow(0, 0, rows)?, &eps.narrow(0, rows, rows)?, options.guidance_scale)
        };
        let schedule = Schedule::new(&self.scheduler)?;
        let x = diffusion::sample(options.sampler, &schedule, options.steps, options.eta, start, noise, &mut predict)?;
        let finite = x.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite());
        if finite { Ok(x) } else { Err(Error::Numeric(NOT_FINITE.into())) }
    }

    /// Pictures `(B, 3, H, W)` in about -1 to 1, each depending on its own latent alone.
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = latents.dims4()?;
        let latents = (across(latents, self.device())? / self.vae.scaling_factor())?;
        let share = match self.device().is_cpu() {
            true => self.share(height * width),
            false => on_gpu(DECODED_ON_GPU, height * width),
        };
        let assumed = if share == SHARE { SHARE } else { 1 };
        by_rows(self.device(), batch, share, |rows| {
            assuming_rows(assumed, || self.vae.decode(&latents.narrow(0, rows.start, rows.len())?))
        })
    }

    /// How many pictures one thread takes through the whole network: few where pictures are small, so that they stay in
    /// the core's cache; all where one picture is work enough for all threads. A GPU takes as many as its memory should hold.
    fn share(&self, pixels: usize) -> usize {
        match self.device().is_cpu() {
            true if pixels <= SMALL => SHARE,
            true => usize::MAX,
            false => on_gpu(ON_GPU, pixels),
        }
    }
}

/// How many latents of `pixels` there are in `all`, at least one.
fn on_gpu(all: usize, pixels: usize) -> usize {
    (all / pixels.max(1)).clamp(1, MOST_ON_GPU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_takes_fewer_of_larger_pictures() {
        let at = |side: usize| (on_gpu(ON_GPU, side * side), on_gpu(DECODED_ON_GPU, side * side));
        assert_eq!([16, 32, 64, 96, 128, 1024].map(at), [(64, 32), (64, 8), (16, 2), (7, 1), (4, 1), (1, 1)]);
    }
}
