//! Several devices of one kind that share the work of a job.
//!
//! What is computed where never changes a byte, so long as all are alike: work is cut by sizes alone, and what was made comes back in
//! its order.

use super::{ComputeDevice, DeviceChoice, cuda};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What stands for every NVIDIA GPU.
const ALL: &str = "cuda:all";
/// More devices than this are a slip of the pen.
const MOST: usize = 64;

/// What `--device` says of a job: one device, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// These, in this order; the first is where everything is that is there once.
    These(Vec<DeviceChoice>),
    /// Every NVIDIA GPU that can be seen.
    AllCuda,
}

impl Default for Devices {
    fn default() -> Self {
        DeviceChoice::default().into()
    }
}

impl From<DeviceChoice> for Devices {
    fn from(choice: DeviceChoice) -> Self {
        Self::These(vec![choice])
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::These(list) => f.write_str(&list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            Self::AllCuda => f.write_str(ALL),
        }
    }
}

impl FromStr for Devices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case(ALL) {
            return Ok(Self::AllCuda);
        }
        let one = |word: &str| {
            word.trim().parse::<DeviceChoice>().map_err(|_| {
                Error::usage(format!(
                    "{word} is not a device; choose auto, cpu, cuda, cuda:1 (and so on), several alike (cuda:0,cuda:1, or {ALL}), or \
                     metal"
                ))
            })
        };
        let list = text.split(',').map(one).collect::<Result<Vec<_>>>()?;
        let cpus = list.iter().all(|choice| *choice == DeviceChoice::Cpu);
        let gpus = list.iter().all(|choice| matches!(choice, DeviceChoice::Cuda(_)));
        if list.len() > 1 && !cpus && !gpus {
            return Err(Error::usage(format!(
                "{text}: only NVIDIA GPUs can share the work, such as cuda:0,cuda:1; name these, {ALL}, or one device"
            )));
        }
        if list.len() > MOST {
            return Err(Error::usage(format!("{text} names {} devices; name at most {MOST}", list.len())));
        }
        Ok(Self::These(list))
    }
}

impl Devices {
    /// As [`DeviceChoice::must_be_said`].
    pub fn must_be_said(&self) -> bool {
        match self {
            Self::These(list) => list.iter().any(|choice| choice.must_be_said()),
            Self::AllCuda => true,
        }
    }

    /// As [`DeviceChoice::check`].
    ///
    /// # Errors
    /// As [`DeviceChoice::check`].
    pub fn check(&self) -> Result<()> {
        match self {
            Self::These(list) => list.iter().try_for_each(|choice| choice.check()),
            Self::AllCuda => DeviceChoice::Cuda(0).check(),
        }
    }

    /// Opens all; see [`DeviceChoice::open`]. One that is named twice is opened twice: two devices, which share its memory.
    ///
    /// # Errors
    /// As [`DeviceChoice::open`], and if they are not all of one kind.
    pub fn open(&self, tf32: bool) -> Result<ComputeDevice> {
        self.check()?;
        let list = match self {
            Self::These(list) => list.clone(),
            Self::AllCuda => {
                let count = cuda::count().unwrap_or(0).max(1); // without any, the first says why
                (0..count).map(DeviceChoice::Cuda).collect()
            }
        };
        let mut opened = list.iter().map(|choice| choice.open(tf32)).collect::<Result<Vec<_>>>()?;
        alike(&opened.iter().map(|one| (one.choice, one.name.as_str())).collect::<Vec<_>>())?;
        let further = opened.split_off(1.min(opened.len()));
        let first = opened.pop().ok_or_else(|| Error::usage("--device names no device"))?;
        Ok(ComputeDevice { further, ..first })
    }
}

/// Results depend on the kind of a GPU: those that share the work must be of one.
fn alike(opened: &[(DeviceChoice, &str)]) -> Result<()> {
    if opened.windows(2).all(|two| two[0].1 == two[1].1) {
        return Ok(());
    }
    let each: Vec<String> = opened.iter().map(|(choice, name)| format!("{} is {name}", numbered(*choice))).collect();
    Err(Error::usage(format!(
        "--device: {}; results depend on the kind of GPU, so all must be of one kind: name those that are alike, such as --device \
         cuda:0,cuda:1",
        each.join(", ")
    )))
}

fn numbered(choice: DeviceChoice) -> String {
    match choice {
        DeviceChoice::Cuda(n) => format!("cuda:{n}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        use DeviceChoice::{Auto, Cpu, Cuda, Metal};
        for (text, list) in [
            ("auto", vec![Auto]),
            ("cpu", vec![Cpu]),
            ("metal", vec![Metal(0)]),
            ("cpu,cpu,cpu", vec![Cpu; 3]),
            ("cuda,cuda:3,cuda", vec![Cuda(0), Cuda(3), Cuda(0)]),
        ] {
            let devices: Devices = text.parse().unwrap();
            assert_eq!(devices, Devices::These(list));
            assert_eq!(devices.to_string(), text);
        }
        assert_eq!("CUDA:0, cuda:1".parse::<Devices>().unwrap().to_string(), "cuda,cuda:1");
        assert_eq!("CUDA:ALL".parse::<Devices>().unwrap(), Devices::AllCuda);
        assert_eq!(Devices::AllCuda.to_string(), "cuda:all");
        assert_eq!(Devices::default(), Devices::These(vec![Auto]));
        let many = ["cpu"; 65].join(",");
        for (text, part) in [
            ("cpu,", " is not a device; choose auto, cpu, cuda"),
            ("cuda:0,cuda:x", "cuda:x is not a device; choose auto, cpu, cuda"),
            ("cuda:all,cuda:0", "cuda:all is not a device"),
            ("cpu,cuda", "cpu,cuda: only NVIDIA GPUs can share"),
            ("auto,auto", "only NVIDIA GPUs can share"),
            ("metal,metal:1", "only NVIDIA GPUs can share"),
            (&many, "names 65 devices; name at most 64"),
        ] {
            let message = text.parse::<Devices>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn several_openings_are_one_device_with_others() {
        let of = |text: &str| text.parse::<Devices>().unwrap().open(false).unwrap();
        let [one, three] = [of("cpu"), of("cpu,cpu,cpu")];
        assert_eq!([one.further().len(), three.further().len()], [0, 2]);
        assert_eq!((three.name(), three.choice(), three.count()), ("cpu", DeviceChoice::Cpu, 3));
        assert!(three.planned_memory().is_none() && three.peak_memory().is_none());
    }

    #[test]
    fn gpus_of_several_kinds_are_refused_by_name() {
        let (a, b) = ((DeviceChoice::Cuda(0), "cuda NVIDIA A"), (DeviceChoice::Cuda(1), "cuda NVIDIA B"));
        assert!(alike(&[a, (DeviceChoice::Cuda(1), a.1)]).is_ok() && alike(&[a]).is_ok());
        let message = alike(&[a, a, b]).unwrap_err().to_string();
        assert!(
            message.contains("cuda:0 is cuda NVIDIA A, cuda:0 is cuda NVIDIA A, cuda:1 is cuda NVIDIA B"),
            "{message}"
        );
    }

    #[test]
    fn what_is_opened_twice_has_half_the_memory() {
        let gpu = |n, free: u64| ComputeDevice {
            choice: DeviceChoice::Cuda(n),
            memory: Some((free << 30, 80 << 30)),
            ..ComputeDevice::cpu()
        };
        let of = |further| ComputeDevice { further, ..gpu(0, 80) }.planned_memory().unwrap() >> 30;
        assert_eq!([of(vec![]), of(vec![gpu(1, 80)]), of(vec![gpu(0, 80)])], [64, 64, 32]);
        assert_eq!(of(vec![gpu(1, 20)]), 18, "the fullest counts");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_refuses_a_list_too() {
        for text in ["cuda:0,cuda:1", "cuda:all"] {
            let message = text.parse::<Devices>().unwrap().open(false).unwrap_err().to_string();
            assert!(message.contains("no CUDA") && message.contains("scripts/build-cuda.sh"), "{message}");
        }
    }
}
