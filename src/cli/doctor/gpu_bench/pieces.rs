//! What is timed, and our half of it: made-up weights of Stable Diffusion 1.x's size, and the demo.

use super::Measured;
use crate::checkpoint::Precision;
use crate::cli::doctor::device::{allow_tf32, demo_on, moved_as, peak, reset_peak};
use crate::diffusion::{Generator, Sampler};
use crate::erase::Scope;
use crate::erase::student::{Predictor, Student};
use crate::nn::{Gradients, ParamStore, attention_in_bf16};
use crate::progress::check_interrupted;
use crate::sd::{Conditions, SampleOptions, TextEncoder, Unet, UnetConfig, Vae};
use crate::{Error, Result, hub};
use candle_core::{Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Runs before those that count.
const WARM_UP: usize = 2;
/// So many runs count, or as many as fit in the time, whichever is less, but at least three.
const RUNS: usize = 10;
const TIME: Duration = Duration::from_millis(1500);

/// How numbers are kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    F32,
    Tf32,
    Bf16,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    fn precision(self) -> Precision {
        if self == Self::Bf16 { Precision::Bf16 } else { Precision::F32 }
    }
}

/// Something that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// PyTorch's piece that it stands beside.
    pub beside: &'static str,
}

const fn piece(name: &'static str, what: &'static str) -> Piece {
    Piece { name, what, beside: name }
}

/// All of them, those of one network together.
pub(super) const PIECES: [Piece; 9] = [
    piece("text", "CLIP text encoder, 2 prompts"),
    piece("vae-decode", "VAE, a latent to 512x512"),
    piece("demo-sample", "demo, 32 pictures, 20 DDIM steps"),
    piece("unet-forward-1", "UNet forward, 1 latent of 64x64"),
    piece("unet-forward-4", "UNet forward, 4 latents"),
    piece("unet-xattn-1", "UNet forward and backward, attn2, 1"),
    piece("unet-xattn-4", "UNet forward and backward, attn2, 4"),
    Piece { name: "unet-lean-1", what: "the same, blocks computed again, 1", beside: "unet-xattn-1" },
    Piece { name: "unet-lean-4", what: "the same, blocks computed again, 4", beside: "unet-xattn-4" },
];

/// Measures these pieces in every mode; `tell` hears of each as it is done.
///
/// # Errors
/// If the user interrupts, or made-up weights cannot be made. What goes wrong in a piece is in its row.
pub(super) fn measure(device: &Device, pieces: &[Piece], tell: &mut dyn FnMut(&Measured)) -> Result<()> {
    let mut timed = |piece: &Piece, mode: Mode, run: &mut dyn FnMut() -> Result<()>| {
        let measured = timed(device, piece, mode, run);
        tell(&measured);
    };
    let has = |name: &str| pieces.iter().find(|piece| piece.name == name);
    if let Some(piece) = has("text") {
        let (config, params) = hub::made_up_text_encoder_parameters()?;
        let ids: Vec<Vec<u32>> = (0..2).map(|row| (0..77).map(|i| (row * 6007 + i * 641) % 49408).collect()).collect();
        for mode in Mode::ALL {
            let there = || moved_as(&params, device, mode.precision(), &|_| false);
            let network = there().and_then(|params| TextEncoder::new(&config, &params));
            timed(piece, mode, &mut || wait(&of(&network)?.forward(&ids)?));
        }
    }
    if let Some(piece) = has("vae-decode") {
        let (config, params) = hub::made_up_vae_parameters()?;
        let latent = random(1, &[1, 4, 64, 64], device);
        for mode in Mode::ALL {
            let there = || moved_as(&params, device, mode.precision(), &|_| false);
            let network = there().and_then(|params| Vae::new(&config, &params));
            timed(piece, mode, &mut || wait(&of(&network)?.decode(of(&latent)?)?));
        }
    }
    if let Some(piece) = has("demo-sample") {
        let options = SampleOptions { sampler: Sampler::Ddim, steps: 20, guidance_scale: 7.5, eta: 0.0, size: None };
        let seeds: Vec<u64> = (0..32).collect();
        for mode in Mode::ALL {
            let model = demo_on(device, mode.precision()).and_then(|model| Ok((model.unet()?, model)));
            timed(piece, mode, &mut || {
                let (unet, model) = of(&model)?;
                let latents = model.sample_latents(unet, &options, &["a red star"; 32], &[""; 32], &seeds)?;
                wait(&model.decode_latents(&latents)?)
            });
        }
    }
    let of_unet: Vec<Piece> = pieces.iter().copied().filter(|piece| piece.name.starts_with("unet-")).collect();
    if of_unet.is_empty() {
        return Ok(());
    }
    let (config, params) = hub::made_up_unet()?;
    for precision in [Precision::F32, Precision::Bf16] {
        unet(device, &config, &params, precision, &of_unet, &mut timed)?;
    }
    Ok(())
}

type Timed<'a> = dyn FnMut(&Piece, Mode, &mut dyn FnMut() -> Result<()>) + 'a;

/// The UNet with its weights of one precision.
fn unet(
    device: &Device,
    config: &UnetConfig,
    params: &ParamStore,
    precision: Precision,
    pieces: &[Piece],
    timed: &mut Timed<'_>,
) -> Result<()> {
    let modes = if precision == Precision::F32 { vec![Mode::F32, Mode::Tf32] } else { vec![Mode::Bf16] };
    let inputs = |rows: usize| -> Result<_> {
        let (x, context) = (random(1, &[rows, 4, 64, 64], device)?, random(2, &[rows, 77, 768], device)?);
        Ok((x, vec![500.0; rows], context))
    };
    let forward = || pieces.iter().filter(|piece| piece.name.starts_with("unet-forward"));
    if forward().next().is_some() {
        let network = moved_as(params, device, precision, &|_| false).and_then(|params| Unet::new(config, &params));
        for (piece, mode) in forward().flat_map(|piece| modes.iter().map(move |mode| (piece, *mode))) {
            let inputs = inputs(rows(piece));
            timed(piece, mode, &mut || {
                let (x, t, context) = of(&inputs)?;
                wait(&of(&network)?.forward(x, t, context)?)
            });
        }
    }
    let backward = || pieces.iter().filter(|piece| !piece.name.starts_with("unet-forward"));
    if backward().next().is_some() {
        let scope = Scope::parse("xattn")?;
        let names = scope.select(params.tensors().keys())?;
        let network = moved_as(params, device, precision, &|name| scope.contains(name)).and_then(|mut params| {
            params.make_trainable(&names)?;
            Ok((Unet::new(config, &params)?, params))
        });
        for (piece, mode) in backward().flat_map(|piece| modes.iter().map(move |mode| (piece, *mode))) {
            let inputs = inputs(rows(piece));
            timed(piece, mode, &mut || {
                let ((x, t, context), (unet, params)) = (of(&inputs)?, of(&network)?);
                let student = Student::new(unet, piece.name.starts_with("unet-lean"));
                let loss = student.predict(x, t, &Conditions::from(context))?.sqr()?.mean_all()?;
                let gradients: Gradients = student.backward(loss, params)?;
                gradients.values().next().map_or(Ok(()), wait)
            });
        }
    }
    Ok(())
}

/// The rows of a piece's batch, which its name ends with.
fn rows(piece: &Piece) -> usize {
    piece.name.rsplit('-').next().and_then(|rows| rows.parse().ok()).unwrap_or(1)
}

fn random(seed: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    Ok(Generator::new(seed).randn_tensor(shape, &Device::Cpu)?.to_device(device)?)
}

/// What was made, or why not.
fn of<T>(made: &Result<T>) -> Result<&T> {
    made.as_ref().map_err(|error| Error::Numeric(error.to_string()))
}

/// Waits until the device has computed `x`.
fn wait(x: &Tensor) -> Result<()> {
    Ok(x.flatten_all()?.get(0)?.to_scalar::<f32>().map(drop)?)
}

fn timed(device: &Device, piece: &Piece, mode: Mode, run: &mut dyn FnMut() -> Result<()>) -> Measured {
    allow_tf32(mode == Mode::Tf32);
    attention_in_bf16(mode == Mode::Bf16);
    let found = catch_unwind(AssertUnwindSafe(|| median(device, run)));
    allow_tf32(false);
    attention_in_bf16(false);
    let found = found.unwrap_or_else(|_| Err(Error::Numeric("panicked".into())));
    let (seconds, peak_bytes, error) = match found {
        Ok((seconds, peak)) => (Some(seconds), peak, None),
        Err(error) => (None, None, Some(error.to_string())),
    };
    Measured { piece: piece.name.into(), mode: mode.name().into(), seconds, peak_bytes, error }
}

/// The median time, and the largest memory that tensors took, weights and all.
fn median(device: &Device, run: &mut dyn FnMut() -> Result<()>) -> Result<(f64, Option<u64>)> {
    let began = Instant::now();
    for _ in 0..WARM_UP {
        check_interrupted()?;
        run()?;
        if device.is_cpu() && began.elapsed() > TIME {
            break; // nothing there is compiled or looked for at first
        }
    }
    device.synchronize()?;
    reset_peak(device);
    let (began, mut times) = (Instant::now(), Vec::with_capacity(RUNS));
    while times.len() < 3 || (times.len() < RUNS && began.elapsed() < TIME) {
        check_interrupted()?;
        let once = Instant::now();
        run()?;
        device.synchronize()?;
        times.push(once.elapsed().as_secs_f64());
    }
    let peak = peak(device);
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], peak))
}
