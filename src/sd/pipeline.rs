//! The parts of a Stable Diffusion model together: prompts to embeddings, noise to latents, latents to pictures.

use super::{TextEncoder, Tokenizer, Unet, UnetConfig, Vae};
use crate::diffusion::{self, Generator, Sampler, Schedule, SchedulerConfig};
use crate::nn::{ParamStore, by_rows};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// What is said where a number left what `f32` can hold.
const NOT_FINITE: &str = "the model's picture became NaN or infinite: its configs may not fit its weights, or the guidance \
                          scale is much too large; lower --guidance-scale, or download the model again";

/// Latents of up to so many pixels are small.
const SMALL: usize = 32 * 32;
/// Small pictures that a thread makes at a time.
const SHARE: usize = 4;

/// A loaded model.
pub struct StableDiffusion {
    /// Prompts to token ids.
    pub tokenizer: Tokenizer,
    /// Token ids to embeddings; always frozen.
    pub text_encoder: Arc<TextEncoder>,
    /// The UNet's architecture.
    pub unet_config: UnetConfig,
    /// The UNet's parameters.
    pub unet_params: ParamStore,
    /// Pictures to latents and back; always frozen.
    pub vae: Arc<Vae>,
    /// The noise schedule and default sampler.
    pub scheduler: SchedulerConfig,
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
    /// Text embeddings, `(B, L, D)`, without a graph.
    pub fn embed<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Tensor> {
        let ids = self.tokenizer.encode(prompts)?.ids;
        let forward = |ids: &[Vec<u32>]| {
            check_interrupted()?;
            self.text_encoder.forward(ids)
        };
        let parts = ids.chunks(64).map(forward).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?.detach())
    }

    /// Bytes of all networks' parameters.
    pub fn bytes(&self) -> usize {
        self.unet_params.bytes() + self.text_encoder.bytes() + self.vae.bytes()
    }

    /// The UNet for sampling: it never records a graph.
    pub fn unet(&self) -> Result<Unet> {
        Unet::new(&self.unet_config, &self.unet_params.detached())
    }

    /// Height and width of the latents by default.
    pub fn latent_size(&self) -> usize {
        self.unet_config.sample_size.unwrap_or(64)
    }

    /// One latent for each seed: row i depends on its own prompt, negative prompt and seed alone, but for rounding.
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
        let side = self.latent_size();
        let (height, width) = options.size.unwrap_or((side, side));
        let share = self.share(height * width);
        if prompts.len() > share {
            let texts = |texts: &[S]| texts.iter().map(|text| text.as_ref().to_string()).collect::<Vec<_>>();
            let (prompts, negatives) = (texts(prompts), texts(negatives));
            return by_rows(prompts.len(), share, |rows| {
                self.sample_latents(unet, options, &prompts[rows.clone()], &negatives[rows.clone()], &seeds[rows])
            });
        }
        let shape = [1, self.unet_config.in_channels, height, width];
        let mut streams: Vec<Generator> = seeds.iter().map(|seed| Generator::new(*seed)).collect();
        let mut draw = |_: &[usize]| -> Result<Tensor> {
            let rows = streams.iter_mut().map(|s| s.randn_tensor(&shape, &Device::Cpu)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&rows, 0)?)
        };
        let start = draw(&[])?;
        self.denoise(unet, options, &self.embed(prompts)?, &self.embed(negatives)?, start, &mut draw)
    }

    /// Denoises unit-normal latents `start` `(B, C, h, w)` under the given embeddings `(B, L, D)`.
    pub fn denoise(
        &self,
        unet: &Unet,
        options: &SampleOptions,
        context: &Tensor,
        negative: &Tensor,
        start: Tensor,
        noise: &mut dyn FnMut(&[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rows = start.dim(0)?;
        let guided = options.guidance_scale > 1.0;
        let both = if guided { Tensor::cat(&[negative, context], 0)? } else { context.clone() }; // [uncond | cond]
        let mut predict = |x: &Tensor, t: f32| -> Result<Tensor> {
            if !guided {
                return unet.forward(x, &vec![t; rows], &both);
            }
            let eps = unet.forward(&Tensor::cat(&[x, x], 0)?, &vec![t; 2 * rows], &both)?;
            diffusion::guide(&eps.narrow(0, 0, rows)?, &eps.narrow(0, rows, rows)?, options.guidance_scale)
        };
        let schedule = Schedule::new(&self.scheduler)?;
        let x = diffusion::sample(options.sampler, &schedule, options.steps, options.eta, start, noise, &mut predict)?;
        let finite = x.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite());
        if finite { Ok(x) } else { Err(Error::Numeric(NOT_FINITE.into())) }
    }

    /// Pictures `(B, 3, H, W)` in about -1 to 1.
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = latents.dims4()?;
        let latents = (latents / self.vae.scaling_factor())?;
        by_rows(batch, self.share(height * width), |rows| {
            self.vae.decode(&latents.narrow(0, rows.start, rows.len())?)
        })
    }

    /// How many pictures one thread takes through the whole network: few where pictures are small, so that they stay in
    /// the core's cache; all where one picture is work enough for all threads.
    fn share(&self, pixels: usize) -> usize {
        if pixels <= SMALL { SHARE } else { usize::MAX }
    }
}
