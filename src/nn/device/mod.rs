//! Which device computes, and how it is opened: the CPU, an NVIDIA GPU (feature `cuda`) or Apple's (feature `metal`).
//!
//! A job opens its device once, and everything of it is there; several of one kind may share the work ([`Devices`]). Two openings of
//! one GPU are two devices to candle, whose tensors cannot meet.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod several;

pub use several::Devices;

use crate::{Error, Result};
use candle_core::Device;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Tenths of a GPU's memory that a job plans with, if no limit is given.
const SHARE: u64 = 8;

/// What `--device` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first NVIDIA GPU, else Apple's GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// Apple's GPU of this number.
    Metal(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal(0) => f.write_str("metal"),
            Self::Metal(n) => write!(f, "metal:{n}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_lowercase();
        let (name, number) = lower.split_once(':').map_or((lower.as_str(), None), |(name, n)| (name, Some(n)));
        let known =
            || Error::usage(format!("{text} is not a device; choose auto, cpu, cuda, cuda:1 (and so on) or metal"));
        let n = number.map(str::parse::<u8>).transpose().map_err(|_| known())?;
        let first = usize::from(n.unwrap_or(0));
        match (name, n) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(first)),
            ("metal", _) => Ok(Self::Metal(first)),
            _ => Err(known()),
        }
    }
}

impl DeviceChoice {
    /// Whether a command must name it to get it again: not where this build has no other.
    pub fn must_be_said(self) -> bool {
        match self {
            Self::Auto => false,
            Self::Cpu => cfg!(any(feature = "cuda", feature = "metal")),
            Self::Cuda(_) | Self::Metal(_) => true,
        }
    }

    /// Refuses what this build cannot do, without looking for a device.
    ///
    /// # Errors
    /// Says how to get a build that can.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::usage(format!(
                "--device {self}: this build has no CUDA; build with scripts/build-cuda.sh, or with `cargo build --release --features \
                 cuda` where CUDA's compiler is installed; or say --device cpu"
            ))),
            Self::Metal(_) if !cfg!(feature = "metal") => Err(Error::usage(format!(
                "--device {self}: this build has no Metal; build with `cargo build --release --features metal` on a Mac, or say \
                 --device cpu"
            ))),
            _ => Ok(()),
        }
    }

    /// Opens the device; with `tf32`, matrices in `f32` are multiplied with 10 bits of mantissa there.
    ///
    /// # Errors
    /// If this build has no code for it, or there is no such device, or it cannot be used: why, and what to do.
    pub fn open(self, tf32: bool) -> Result<ComputeDevice> {
        self.check()?;
        let opened = match self {
            Self::Auto => auto()?,
            Self::Cpu => ComputeDevice::cpu(),
            Self::Cuda(n) => cuda::open(n)?,
            Self::Metal(n) => metal(n)?,
        };
        if tf32 && !opened.device.is_cuda() {
            return Err(Error::usage(format!(
                "--tf32 goes with an NVIDIA GPU, but this job would compute on {}; leave --tf32 out",
                opened.name
            )));
        }
        candle_core::cuda::set_gemm_reduced_precision_f32(tf32);
        Ok(ComputeDevice { tf32, ..opened })
    }
}

fn auto() -> Result<ComputeDevice> {
    let mut note = None;
    if cfg!(feature = "cuda") {
        match cuda::count() {
            Ok(0) => note = Some("no NVIDIA GPU was found: computing on the CPU".to_string()),
            Ok(_) => return cuda::open(0),
            Err(why) => note = Some(format!("no NVIDIA GPU can be used ({why}): computing on the CPU")),
        }
    }
    if cfg!(feature = "metal") {
        match metal(0) {
            Ok(opened) => return Ok(opened),
            Err(why) => note = Some(format!("{why}: computing on the CPU")),
        }
    }
    Ok(ComputeDevice { note, ..ComputeDevice::cpu() })
}

fn metal(n: usize) -> Result<ComputeDevice> {
    let failed = |e| Error::usage(format!("--device metal:{n} cannot be used: {e}; say --device cpu"));
    let device = Device::new_metal(n).map_err(failed)?;
    Ok(ComputeDevice { device, choice: DeviceChoice::Metal(n), name: "metal".into(), ..ComputeDevice::cpu() })
}

/// A device that was opened.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    device: Device,
    choice: DeviceChoice,
    name: String,
    tf32: bool,
    /// Bytes that were free, and all, when it was opened; `None` of the CPU.
    memory: Option<(u64, u64)>,
    note: Option<String>,
    /// The others that share its work.
    further: Vec<ComputeDevice>,
}

impl ComputeDevice {
    /// The CPU.
    pub fn cpu() -> Self {
        let (choice, name) = (DeviceChoice::Cpu, "cpu".to_string());
        Self { device: Device::Cpu, choice, name, tf32: false, memory: None, note: None, further: Vec::new() }
    }

    /// Where tensors go; of several devices, the first.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The other devices that share the work: the same kind of GPU, or another opening of the same.
    pub fn further(&self) -> Vec<Device> {
        self.further.iter().map(|other| other.device.clone()).collect()
    }

    /// How many devices there are.
    pub fn count(&self) -> usize {
        1 + self.further.len()
    }

    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.further)
    }

    /// What has to be said to get this one again (of several, the first: the others change no result).
    pub fn choice(&self) -> DeviceChoice {
        self.choice
    }

    /// What results depend on: `cpu`, or the kind and the model of the GPU, such as `cuda NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether matrices in `f32` are multiplied with 10 bits of mantissa.
    pub fn tf32(&self) -> bool {
        self.tf32
    }

    /// What the user should be told of the choice.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Bytes that a job without a limit of its own plans with: most of the GPU's memory, as far as nobody else has it. Of several
    /// GPUs, what each has at least; one that was opened twice is shared. `None` of the CPU, and where the system does not say.
    pub fn planned_memory(&self) -> Option<u64> {
        let openings = |one: &Self| self.all().filter(|other| other.choice == one.choice).count() as u64;
        self.all().filter_map(|one| Some(planned_memory(one.memory?) / openings(one))).min()
    }

    /// The most bytes of a GPU's memory that tensors had so far, and that were taken from the system for them.
    pub fn peak_memory(&self) -> Option<(u64, u64)> {
        let peaks = self.all().filter_map(|one| cuda::peak_memory(&one.device));
        peaks.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
    }
}

/// Bytes that a job plans with on a GPU that has so many free, and so many in all.
pub fn planned_memory((free, total): (u64, u64)) -> u64 {
    (total / 10 * SHARE).min(free / 10 * (SHARE + 1))
}

/// A GPU, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// What `--device` calls it.
    pub device: String,
    /// Its model.
    pub name: String,
    /// The driver's version, and the newest CUDA that it knows.
    pub driver: String,
    /// What it can compute, as NVIDIA numbers it: 8.0, 9.0.
    pub compute_capability: String,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// Of these, free now.
    pub free_bytes: u64,
}

/// Every NVIDIA GPU that this build can use.
///
/// # Errors
/// In words: why none can be used, though this build could.
pub fn gpus() -> std::result::Result<Vec<Gpu>, String> {
    cuda::gpus()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        use DeviceChoice::{Auto, Cpu, Cuda, Metal};
        for (text, choice) in
            [("auto", Auto), ("cpu", Cpu), ("cuda", Cuda(0)), ("cuda:3", Cuda(3)), ("metal", Metal(0))]
        {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("CUDA:0".parse::<DeviceChoice>().unwrap(), Cuda(0));
        for text in ["", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cuda:999"] {
            let message = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains("is not a device; choose auto, cpu, cuda"), "{text}: {message}");
        }
    }

    #[test]
    fn the_cpu_is_there_and_takes_no_tf32() {
        let cpu = DeviceChoice::Cpu.open(false).unwrap();
        assert!(cpu.device().is_cpu() && cpu.planned_memory().is_none() && cpu.peak_memory().is_none());
        assert_eq!((cpu.name(), cpu.choice(), cpu.tf32(), cpu.note()), ("cpu", DeviceChoice::Cpu, false, None));
        let message = DeviceChoice::Cpu.open(true).unwrap_err().to_string();
        assert!(message.contains("--tf32") && message.contains("on cpu"), "{message}");
    }

    #[test]
    fn most_of_what_is_free_is_planned_with() {
        let of = |free, total| ComputeDevice { memory: Some((free, total)), ..ComputeDevice::cpu() }.planned_memory();
        assert_eq!(of(78 << 30, 80 << 30), Some((80 << 30) / 10 * 8));
        assert_eq!(of(10 << 30, 80 << 30), Some((10 << 30) / 10 * 9), "somebody else has the rest");
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_build_without_gpus_says_how_to_get_one() {
        for (text, parts) in
            [("cuda:1", ["no CUDA", "scripts/build-cuda.sh"]), ("metal", ["no Metal", "--features metal"])]
        {
            let choice: DeviceChoice = text.parse().unwrap();
            let message = choice.open(false).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            assert!(
                message.starts_with(&format!("--device {text}: ")) && message.contains("--device cpu"),
                "{message}"
            );
        }
        assert!(DeviceChoice::Auto.open(false).unwrap().device().is_cpu());
        assert_eq!(gpus(), Ok(Vec::new()));
    }
}
