//! What can compute: the CPU, and the GPUs that this build and this machine have.

use crate::nn::device::{Gpu, gpus};
use serde::Serialize;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Devices {
    /// What `--device` takes here.
    pub(super) devices: Vec<String>,
    /// Every GPU that can be asked.
    pub(super) gpus: Vec<Gpu>,
}

/// Looks; what this build has but cannot use is a warning.
pub(super) fn find(warnings: &mut Vec<String>) -> Devices {
    let gpus = gpus().unwrap_or_else(|why| {
        warnings.push(format!(
            "no NVIDIA GPU can be used: {why}; is the driver installed, and does `nvidia-smi` show the GPU? Until then jobs \
             compute on the CPU"
        ));
        Vec::new()
    });
    if cfg!(feature = "cuda") && gpus.is_empty() && warnings.iter().all(|w| !w.starts_with("no NVIDIA GPU")) {
        warnings.push(
            "this build is for NVIDIA GPUs, but the machine shows none (CUDA_VISIBLE_DEVICES may hide it): jobs compute on the CPU"
                .into(),
        );
    }
    let metal = cfg!(feature = "metal").then(|| "metal".to_string());
    let cpu = std::iter::once("cpu".to_string());
    let all = (gpus.len() > 1).then(|| "cuda:all".to_string());
    let each = gpus.iter().map(|gpu| gpu.device.clone());
    Devices { devices: cpu.chain(each).chain(all).chain(metal).collect(), gpus }
}

impl Devices {
    /// Rows for people.
    pub(super) fn rows(&self, bytes: impl Fn(u64) -> String) -> Vec<(&'static str, String)> {
        let lacking = match cfg!(any(feature = "cuda", feature = "metal")) {
            true => "",
            false => " (this build has no CUDA and no Metal; scripts/build-cuda.sh builds one for NVIDIA's GPUs)",
        };
        let mut rows = vec![("devices", format!("{}{lacking}", self.devices.join(", ")))];
        for gpu in &self.gpus {
            rows.push(("GPU", format!("{}: {}, compute capability {}", gpu.device, gpu.name, gpu.compute_capability)));
            rows.push(("", format!("driver {}", gpu.driver)));
            rows.push(("", format!("{} of memory, {} free", bytes(gpu.total_bytes), bytes(gpu.free_bytes))));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_shown_with_all_that_is_known_of_it() {
        let gpu = Gpu {
            device: "cuda:1".into(),
            name: "NVIDIA X".into(),
            driver: "580.1, CUDA 13.0".into(),
            compute_capability: "9.0".into(),
            total_bytes: 80,
            free_bytes: 70,
        };
        let devices = Devices { devices: vec!["cpu".into(), "cuda:1".into()], gpus: vec![gpu] };
        let rows = devices.rows(|bytes| format!("{bytes} B"));
        let rows: Vec<&str> = rows.iter().map(|(_, text)| text.as_str()).collect();
        assert!(rows[0].starts_with("cpu, cuda:1"), "{rows:?}");
        let rest = ["cuda:1: NVIDIA X, compute capability 9.0", "driver 580.1, CUDA 13.0", "80 B of memory, 70 B free"];
        assert_eq!(rows[1..], rest);
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_build_for_the_cpu_has_nothing_to_warn_of() {
        let mut warnings = Vec::new();
        let found = find(&mut warnings);
        assert_eq!((found.devices.as_slice(), found.gpus.len(), warnings.len()), (&["cpu".to_string()][..], 0, 0));
        assert!(found.rows(|bytes| bytes.to_string())[0].1.contains("scripts/build-cuda.sh"));
    }
}
