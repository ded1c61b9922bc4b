//! Several devices give what one gives, byte for byte. `cpu,cpu` is two of them: two copies of the networks and a thread each, though
//! both compute on the same cores.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::fixture;
use common::tiny::{QUICK, Tiny, assert_same, result};
use erase_concept::Error;
use erase_concept::checkpoint::{LoadedModel, Loading, ModelFiles, load_model_on};
use erase_concept::diffusion::Generator;
use erase_concept::erase::batch::Batch;
use erase_concept::erase::gradient::{self, Trained};
use erase_concept::erase::loss::denoising;
use erase_concept::erase::memory::Thrift;
use erase_concept::erase::places::Places;
use erase_concept::erase::settings::DataSettings;
use erase_concept::erase::{Latents, Settings};
use erase_concept::nn::{Gradients, ParamStore};
use erase_concept::progress::{Event, Progress};
use erase_concept::sd::{Conditions, SampleOptions};
use std::collections::BTreeSet;
use std::sync::Mutex;

const DEVICES: [&str; 2] = ["cpu,cpu", "cpu,cpu,cpu"];

/// The tiny model on so many devices.
fn on(devices: usize) -> LoadedModel {
    let files = ModelFiles::Folder(fixture("tiny-sd21"));
    load_model_on(&files, &Loading::default(), &vec![Device::Cpu; devices - 1]).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Counts steps.
#[derive(Default)]
struct Steps(usize);

impl Progress for Steps {
    fn event(&mut self, event: Event<'_>) {
        self.0 += usize::from(matches!(event, Event::Step { .. }));
    }
}

#[test]
fn latents_are_those_of_one_device() {
    let settings = DataSettings { steps: 2, ..Settings::preset("balanced").unwrap().data };
    let prompts = ["a red star", "three blue rings", "a star"].map(String::from);
    let sample = |devices: usize| {
        let (loaded, mut steps) = (on(devices), Steps::default());
        let latents = Latents::sample(&loaded.model, &prompts, 150, &settings, 7, &mut steps).unwrap();
        assert_eq!(steps.0, 150);
        bits(&latents.latents)
    };
    let one = sample(1);
    assert!(sample(2) == one && sample(3) == one);
}

#[test]
fn batches_are_dealt_to_every_copy() {
    let loaded = on(3);
    let options = SampleOptions {
        sampler: erase_concept::diffusion::Sampler::Ddim,
        steps: 1,
        guidance_scale: 1.0,
        eta: 0.0,
        size: None,
    };
    let seen = Mutex::new(BTreeSet::new());
    let work = |replica: &erase_concept::sd::Replica<'_>, i: usize| {
        seen.lock().unwrap().insert(std::ptr::from_ref(replica.model) as usize);
        replica.latents(&options, &["x"], &[""], &[i as u64])
    };
    let mut made = Vec::new();
    loaded
        .model
        .replicas()
        .unwrap()
        .deal(5, work, |i, latent| {
            made.push((i, bits(&latent)));
            Ok(())
        })
        .unwrap();
    assert_eq!((seen.lock().unwrap().len(), made.len()), (3, 5));
    let alone =
        |i: usize| loaded.model.sample_latents(&loaded.model.unet().unwrap(), &options, &["x"], &[""], &[i as u64]);
    assert!(made.iter().enumerate().all(|(n, (i, latent))| n == *i && *latent == bits(&alone(*i).unwrap())));
}

/// The network with its cross-attention trainable, and after a step, on so many devices; its gradients on a batch of latents of
/// this side, whose shares are of single rows or not.
fn gradients(devices: usize, side: usize, thrift: Thrift) -> (Gradients, f64) {
    let loaded = on(devices);
    let model = &loaded.model;
    let mut params = model.unet_params.clone();
    let names: Vec<String> = params.tensors().keys().filter(|name| name.contains("attn2")).cloned().collect();
    params.make_trainable(&names).unwrap();
    let bases: Vec<&ParamStore> = model.everywhere().map(|copy| &copy.unet_params).collect();
    let places = Places::new(&model.unet_config, &params, &bases, std::iter::empty(), thrift).unwrap();
    for var in params.vars().values() {
        var.set(&(var.as_detached_tensor() * 1.5).unwrap()).unwrap();
    }
    places.follow().unwrap();
    let trained: Vec<Trained<'_>> = places.trained();
    assert_eq!(trained.len(), devices);

    let mut noise = Generator::new(9);
    let mut randn = |shape: &[usize]| noise.randn_tensor(shape, &Device::Cpu).unwrap();
    let prompts = Conditions::from(&randn(&[2, 7, model.unet_config.cross_attention_dim]));
    let batch = Batch {
        noisy: randn(&[5, 4, side, side]),
        t: vec![900.0, 400.0, 7.0, 55.0, 620.0],
        target: randn(&[5, 4, side, side]),
        prompts: vec![1, 0, 1, 0, 0],
    };
    gradient::of_batch(&batch, &trained, |_, part, student| denoising(student, part, &part.conditions(&prompts)?))
        .unwrap()
}

#[test]
fn gradients_are_those_of_one_device_however_shares_are_worked_on() {
    for (side, checkpointing, single_rows) in
        [(8, false, false), (40, false, false), (40, true, false), (40, true, true)]
    {
        let thrift = Thrift { checkpointing, single_rows };
        assert_eq!(gradient::shares(&[5], side * side, thrift, false).side_by_side, side == 8);
        let (one, value) = gradients(1, side, thrift);
        for devices in [2, 3] {
            let (several, again) = gradients(devices, side, thrift);
            assert_eq!(value.to_bits(), again.to_bits());
            assert!(!one.is_empty() && one.keys().eq(several.keys()));
            assert!(one.iter().all(|(name, gradient)| bits(gradient) == bits(&several[name])), "{side}: {devices}");
        }
    }
}

#[test]
fn a_failing_share_is_the_error_of_all() {
    let loaded = on(3);
    let params = &loaded.model.unet_params;
    let bases: Vec<&ParamStore> = loaded.model.everywhere().map(|copy| &copy.unet_params).collect();
    let places = Places::new(&loaded.model.unet_config, params, &bases, std::iter::empty(), Thrift::default()).unwrap();
    let shares = gradient::shares(&[40], 64, Thrift::default(), false);
    let failed = gradient::gradients::<()>(shares, &places.trained(), |place, i, _| {
        Err(Error::usage(format!("share {i} at {place}")))
    });
    assert_eq!(failed.unwrap_err().to_string(), "share 0 at 0");
}

/// What the program prints as JSON, and the files of its result.
fn run(tiny: &Tiny, args: &[&str], device: &str) -> (String, std::collections::BTreeMap<String, Vec<u8>>) {
    let all = [args, &["--device", device, "--output", "out", "--json"]].concat();
    let output = tiny.command(&all).assert().code(0).get_output().stdout.clone();
    let out = tiny.root().join("out");
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(
        (run["device"].as_str(), run["devices"].as_u64()),
        (Some("cpu"), Some(device.split(',').count() as u64))
    );
    let files = result(&out);
    std::fs::remove_dir_all(out).unwrap();
    (String::from_utf8(output).unwrap(), files)
}

fn same_everywhere(tiny: &Tiny, args: &[&str]) {
    let (said, files) = run(tiny, args, "cpu");
    for device in DEVICES {
        let (again, others) = run(tiny, args, device);
        assert_same(&files, &others, device);
        assert_eq!(said, again, "{device}");
    }
}

#[test]
fn an_erasure_is_that_of_one_device() {
    let tiny = Tiny::with_classifier();
    let mut args = vec!["--model", "model", "--concept", "star", "--keep-images"];
    args.extend(QUICK);
    for (flag, value) in [
        ("--forget-latents", "40"),
        ("--retain-latents", "70"),
        ("--batch-size", "10"),
        ("--score-batches", "2"),
        ("--repair-steps", "4"),
        ("--verify-images", "40"),
        ("--retain-images", "40"),
    ] {
        let at = args.iter().position(|arg| *arg == flag).unwrap();
        args[at + 1] = value;
    }
    same_everywhere(&tiny, &args);
    // memories, everything trained, and weights in bf16
    let more =
        ["--train-scope", "full", "--dtype", "bf16", "--memories", "2", "--memory-every", "2", "--preset", "paper"];
    same_everywhere(&tiny, &[&args[..], &more].concat());
}

#[test]
fn an_audit_and_a_comparison_are_those_of_one_device() {
    let tiny = Tiny::with_classifier();
    let mut set = "case_number,prompt,evaluation_seed,evaluation_guidance\n".to_string();
    (0..23).for_each(|i| set.push_str(&format!("{i},a red star number {i},{},{}\n", 10 + i, 5 + i % 2)));
    std::fs::write(tiny.root().join("set.csv"), set).unwrap();
    same_everywhere(&tiny, &["audit", "--model", "model", "--prompts", "set.csv", "--steps", "2", "--batch-size", "2"]);
    same_everywhere(&tiny, &["compare", "model", "demo", "--prompts", "set.csv", "--steps", "1"]);
}

#[test]
fn samples_are_those_of_one_device_and_so_are_errors() {
    let tiny = Tiny::new();
    let args = ["sample", "--model", "model", "--prompt", "star", "-n", "9", "--batch-size", "2", "--steps", "2"];
    let run = |device: &str| {
        tiny.command(&[&args[..], &["--device", device, "--output", "out"]].concat()).assert().code(0);
        let out = tiny.root().join("out");
        let read = |rel: String| (rel.clone(), std::fs::read(out.join(rel)).unwrap());
        let files: std::collections::BTreeMap<_, _> = common::tiny::tree(&out).into_iter().map(read).collect();
        std::fs::remove_dir_all(&out).unwrap();
        files
    };
    let one = run("cpu");
    assert_eq!(one.len(), 9);
    DEVICES.iter().for_each(|device| assert_same(&one, &run(device), device));

    let failing = |device: &str| {
        let args = [&args[..], &["--guidance-scale", "1e38", "--device", device, "--output", "out"]].concat();
        let assert = tiny.refused(&args, &["became NaN or infinite"]);
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert_eq!(said.matches("error").count(), 1, "it is said once: {said}");
        said.lines().last().unwrap().to_string()
    };
    let one = failing("cpu");
    DEVICES.iter().for_each(|device| assert_eq!(failing(device), one));
}

#[test]
fn what_cannot_share_the_work_is_refused() {
    let tiny = Tiny::new();
    for (device, parts) in [
        ("cpu,cuda:0", ["only NVIDIA GPUs can share the work", "cuda:all"]),
        ("cpu,,cpu", ["--device", "is not a device; choose auto, cpu, cuda"]),
        #[cfg(not(feature = "cuda"))]
        ("cuda:all", ["this build has no CUDA", "scripts/build-cuda.sh"]),
    ] {
        tiny.refused(&tiny.erase(&["--device", device, "--output", "out"]), &parts);
    }
}
