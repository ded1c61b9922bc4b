//! How much memory an erasure takes, and whether its graph must be kept block by block.

use super::gradient;
use super::settings::Settings;
use crate::nn::ParamStore;
use crate::sd::{Footprint, StableDiffusion, UnetConfig};
use crate::{Error, Result};
use candle_core::DType;
use serde::Serialize;

/// Bytes of a number.
const F32: u64 = 4;
/// What the program, the text encoder's work and fragmentation take beyond what is counted.
const OVERHEAD: u64 = 192 << 20;
/// The same on a GPU: the driver's context, kernels, cuBLAS's workspace and what the pool keeps (0.72 GB on an H100).
const OVERHEAD_ON_GPU: u64 = 768 << 20;
/// The gradients that are alive beside the graph in a backward pass, in sixteenths of the graph; on a CPU with what its allocator keeps.
const BACKWARD: u64 = 4;
/// The same on a GPU.
const BACKWARD_ON_GPU: u64 = 1;
/// Of the machine's memory, this many tenths may be used if no limit is given.
const SHARE: u64 = 8;

/// What may be used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    /// Bytes, all in (on a GPU: of its memory), as the user limits them; most of the machine's memory otherwise (not of what is free just now: the
    /// last bits of a result depend on the choice, and two runs on one machine are to give the same bytes).
    pub limit: Option<u64>,
    /// Most of the GPU's memory, if the job runs on one; otherwise most of the machine's is what there is.
    pub gpu: Option<u64>,
}

/// What is done to save memory, at the price of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Thrift {
    /// Whether blocks are computed again in the backward pass.
    pub checkpointing: bool,
    /// Whether the rows of a batch of large latents are worked on one by one.
    pub single_rows: bool,
}

impl Thrift {
    /// All that can be done, the fastest first.
    const ALL: [Self; 4] =
        [Self::with(false, false), Self::with(false, true), Self::with(true, false), Self::with(true, true)];

    const fn with(checkpointing: bool, single_rows: bool) -> Self {
        Self { checkpointing, single_rows }
    }
}

/// What an erasure takes, in bytes, all in, with each of [`Thrift::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need([u64; 4]);

impl Need {
    /// Of a job with these numbers of scored and trained parameters, on latents of `size`.
    pub fn new(
        model: &StableDiffusion,
        settings: &Settings,
        (scored, trained): (u64, u64),
        (height, width): (usize, usize),
    ) -> Self {
        let gpu = !model.device().is_cpu();
        // the UNet computes in the type of its first layer there
        let first = model.unet_params.get("conv_in.weight");
        let bytes = if gpu && first.is_ok_and(|weight| weight.dtype() == DType::BF16) { F32 / 2 } else { F32 };
        // text encoders and VAE leave it meanwhile
        let weights = if gpu { model.unet_params.bytes() } else { model.bytes() } as u64;
        let counts = (scored, trained);
        Self::counted(weights, &model.unet_config, settings, counts, (height, width), (gpu, bytes))
    }

    /// The same for a model that is not loaded: `weights` are the bytes of all its parameters, `gpu` whether it would be on one.
    pub fn of(
        weights: u64,
        config: &UnetConfig,
        settings: &Settings,
        (scored, trained): (u64, u64),
        (height, width): (usize, usize),
        gpu: bool,
    ) -> Self {
        Self::counted(weights, config, settings, (scored, trained), (height, width), (gpu, F32))
    }

    /// `bytes`: of a number that the graph keeps.
    fn counted(
        weights: u64,
        config: &UnetConfig,
        settings: &Settings,
        (scored, trained): (u64, u64),
        (height, width): (usize, usize),
        (gpu, bytes): (bool, u64),
    ) -> Self {
        let only_cross = settings.score_scope.is_cross_attention() && settings.train_scope.is_cross_attention();
        let footprint = Footprint::new(config, (height, width), only_cross);
        let sizes = [settings.forget_batch, settings.retain_batch];
        let graph = |thrift: Thrift| {
            let shares = gradient::shares(&sizes, height * width, thrift, gpu);
            // shares side by side may all be in memory; how many are depends on the threads, on which no choice may depend
            let rows = sizes.iter().sum::<usize>().div_ceil(if shares.side_by_side { 1 } else { shares.count }) as u64;
            let per_row = match thrift.checkpointing {
                true => footprint.checkpointed(),
                false if !gpu && gradient::is_lean(height * width) => footprint.lean(),
                false => footprint.dense(),
            };
            bytes * per_row * rows * (16 + if gpu { BACKWARD_ON_GPU } else { BACKWARD }) / 16
        };
        // scoring: a copy of the scope, its sums (twice with contrast) and gradients
        let sums = if settings.contrast { 2 } else { 1 };
        let scoring = F32 * scored * (2 + sums);
        // repair: a copy, Adam's two moments, the gradients of a share and of the batch, the memories, and a projected copy
        let repair = F32 * trained * (5 + settings.projection.memories as u64 + 1);
        let overhead = if gpu { OVERHEAD_ON_GPU } else { OVERHEAD };
        Self(Thrift::ALL.map(|thrift| overhead + weights + scoring.max(repair) + graph(thrift)))
    }

    /// The fastest way's bytes, and the least.
    pub fn range(&self) -> (u64, u64) {
        (self.0[0], self.0.into_iter().min().unwrap_or_default())
    }

    /// The fastest way within this budget, and what it takes.
    ///
    /// # Errors
    /// If the user's limit cannot be met: how much is needed, and what to lower.
    pub fn within(&self, budget: Budget) -> Result<(Thrift, u64)> {
        let ways = || Thrift::ALL.into_iter().zip(self.0);
        let limit = budget.limit.or(budget.gpu).or_else(planned).unwrap_or(u64::MAX);
        let least = ways().min_by_key(|(_, need)| *need).unwrap_or_default();
        match ways().find(|(_, need)| *need <= limit) {
            Some(way) => Ok(way),
            None if budget.limit.is_none() => Ok(least),
            None => Err(Error::usage(format!(
                "--memory-limit {} is too little: this job needs about {}; raise the limit, lower --batch-size, keep frozen weights in half the \
                 memory (--dtype bf16 or f16), or train fewer parameters (--train-scope, --score-scope)",
                gib(limit),
                gib(least.1)
            ))),
        }
    }
}

/// Parameters of these names.
pub fn count(params: &ParamStore, names: &[String]) -> u64 {
    names.iter().filter_map(|name| params.get(name).ok()).map(|tensor| tensor.elem_count() as u64).sum()
}

fn gib(bytes: u64) -> String {
    format!("{:.1}GiB", bytes as f64 / f64::from(1u32 << 30))
}

/// `8GiB`, `500MB`, `6G`, or a plain number of bytes.
///
/// # Errors
/// If it is none of these.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{text:?} is not a size; write 8GiB or 500MB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size; write 8GiB or 500MB"))?;
    let bytes = number * factor as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text:?} is no size that can be used")) }
}

/// What a job without a limit of its own plans with: most of the machine's memory. `None` where the system does not say.
pub fn planned() -> Option<u64> {
    Some(machine()? / 10 * SHARE)
}

/// Bytes of the machine, or what this control group may have, whichever is less. `None` where the system does not say.
pub fn machine() -> Option<u64> {
    let total = total()?;
    Some(group_limit().map_or(total, |group| group.min(total)))
}

/// Bytes of the machine. `None` where the system does not say.
pub fn total() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// What the process's control group (Linux, version 2 or 1) or one above it may have, if that is limited.
pub fn group_limit() -> Option<u64> {
    let limit = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim().to_string();
    let above = std::path::Path::new(&own).ancestors().map(|group| {
        let group = group.to_string_lossy();
        limit(&format!("/sys/fs/cgroup{}/memory.max", group.trim_end_matches('/')))
    });
    let old = limit("/sys/fs/cgroup/memory/memory.limit_in_bytes").filter(|bytes| *bytes < 1 << 60); // «none» is a huge number
    above.flatten().chain(old).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read() {
        let cases = [("8GiB", 8 << 30), ("8g", 8 << 30), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("4096", 4096)];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "8 apples", "-1G", "0", "1e9999", "99999999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_fastest_way_within_the_limit_is_taken_and_too_low_a_limit_says_what_is_needed() {
        let need = Need([9 << 30, 7 << 30, 6 << 30, 4 << 30]);
        let under = |gib: u64| need.within(Budget { limit: Some(gib << 30), gpu: None });
        for (limit, way) in [(u64::MAX >> 30, 0), (9, 0), (8, 1), (7, 1), (6, 2), (5, 3), (4, 3)] {
            assert_eq!(under(limit).unwrap(), (Thrift::ALL[way], need.0[way]), "{limit} GiB");
        }
        let message = under(3).unwrap_err().to_string();
        assert!(
            message.contains("3.0GiB") && message.contains("4.0GiB") && message.contains("--batch-size"),
            "{message}"
        );
        assert!(message.contains("--dtype bf16"), "{message}");
        // where checkpoints save nothing, they are not taken
        assert_eq!(Need([5, 5, 7, 6]).within(Budget { limit: Some(5), gpu: None }).unwrap().0, Thrift::default());
        // on a GPU, its memory counts, unless the user says otherwise
        let on_gpu = |limit, gpu: u64| need.within(Budget { limit, gpu: Some(gpu << 30) }).unwrap().0;
        assert_eq!([on_gpu(None, 7), on_gpu(Some(6 << 30), 7), on_gpu(None, 1)], [1, 2, 3].map(|way| Thrift::ALL[way]));
    }
}
