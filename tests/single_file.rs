//! Single-file checkpoints: from a folder to one file and back, and what is said of files that are something else.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{QUICK, TEXT, Tiny, UNET, VAE, tree};
use common::{Raw, fixture, original, raw, repository};
use erase_concept::checkpoint::single_file::{Architecture, write_single_file};
use erase_concept::checkpoint::{
    ModelFiles, SingleFile, base_sha256, load_model, save_edited, sha256_file, write_safetensors,
};
use erase_concept::diffusion::Sampler;
use erase_concept::sd::SampleOptions;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn tensors(path: &Path) -> Raw {
    raw(path).0
}

fn single(path: &Path) -> ModelFiles {
    ModelFiles::Single(Arc::new(SingleFile::open(path).unwrap()))
}

fn models() -> [(&'static str, std::path::PathBuf, Architecture); 3] {
    [
        ("demo", repository("weights/demo"), Architecture::Sd1),
        ("tiny-sd21", fixture("tiny-sd21"), Architecture::Sd2),
        ("tiny-sdxl", fixture("tiny-sdxl"), Architecture::Sdxl),
    ]
}

/// A copy of a model as the first ones were: other names in the VAE's attentions, and the text encoder's buffer of positions.
fn as_of_2022(from: &Path, to: &Path) {
    for rel in tree(from).iter().filter(|rel| from.join(rel).is_file()) {
        let path = to.join(rel);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(from.join(rel), path).unwrap();
    }
    let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let rename = |name: &String| renamed.iter().fold(name.clone(), |name, (new, old)| name.replace(new, old));
    let vae = tensors(&to.join(VAE)).iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
    write_safetensors(&to.join(VAE), &vae, &BTreeMap::new()).unwrap();
    let mut text = tensors(&to.join(TEXT));
    let positions = (0..32i64).flat_map(i64::to_le_bytes).collect();
    text.insert("text_model.embeddings.position_ids".into(), (Dtype::I64, vec![1, 32], positions));
    write_safetensors(&to.join(TEXT), &text, &BTreeMap::new()).unwrap();
}

#[test]
fn every_tensor_survives_the_way_to_a_single_file_and_back() {
    let tmp = tempfile::tempdir().unwrap();
    let old = tmp.path().join("old");
    as_of_2022(&repository("weights/demo"), &old);
    let models = models().into_iter().chain([("demo-of-2022", old, Architecture::Sd1)]);
    for (name, folder, architecture) in models {
        let path = tmp.path().join(format!("{name}.safetensors"));
        write_single_file(&ModelFiles::Folder(folder.clone()), &path, &BTreeMap::new()).unwrap();
        let file = SingleFile::open(&path).unwrap();
        assert_eq!((file.architecture(), file.left_out(), file.notes()), (architecture, &[][..], &[][..]), "{name}");
        let back = tmp.path().join(name);
        std::fs::create_dir(&back).unwrap();
        save_edited(&single(&path), &BTreeMap::new(), &back, &BTreeMap::new()).unwrap();
        let mut weights = 0;
        for rel in tree(&back).iter().filter(|rel| back.join(rel).is_file()) {
            if rel.ends_with(".safetensors") {
                let (found, expected) = (tensors(&back.join(rel)), tensors(&folder.join(rel)));
                assert!(
                    found == expected,
                    "{name}/{rel}: {:?}",
                    found.keys().zip(expected.keys()).find(|(a, b)| a != b)
                );
                weights += 1;
            } else if rel.ends_with(".json") {
                let json = |path: &Path| -> serde_json::Value {
                    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
                };
                assert_eq!(json(&back.join(rel)), json(&folder.join(rel)), "{name}/{rel}");
            } else {
                assert_eq!(std::fs::read(back.join(rel)).unwrap(), std::fs::read(folder.join(rel)).unwrap());
            }
        }
        assert_eq!(weights, if architecture == Architecture::Sdxl { 4 } else { 3 }, "{name}");
    }
}

#[test]
fn a_model_loads_from_its_single_file_as_from_its_folder() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, folder, architecture) in models() {
        if architecture == Architecture::Sdxl {
            continue; // the pipeline of two text encoders has tests of its own
        }
        let (path, folder) = (tmp.path().join(name), ModelFiles::Folder(folder));
        write_single_file(&folder, &path, &BTreeMap::new()).unwrap();
        let file = single(&path);
        let (a, b) = (load_model(&folder).unwrap(), load_model(&file).unwrap());
        assert_eq!(b.base_sha256, sha256_file(&path).unwrap(), "as A1111 has it");
        assert_eq!(a.unet_dtypes, b.unet_dtypes);
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, tensor) in a.model.unet_params.tensors() {
            assert_eq!(values(tensor), values(b.model.unet_params.get(name).unwrap()), "{name}");
        }
        let prompts = ["a red star", ""];
        assert_eq!(
            values(&a.model.embed(&prompts).unwrap().context),
            values(&b.model.embed(&prompts).unwrap().context)
        );
    }
}

/// Everything of a PNG but its text: what it shows.
fn picture(path: &Path) -> Vec<u8> {
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    pixels
}

#[test]
fn sampling_from_a_single_file_gives_the_pictures_of_the_folder() {
    let tmp = tempfile::tempdir().unwrap();
    let demo = tmp.path().join("some.safetensors");
    write_single_file(&ModelFiles::Folder(repository("weights/demo")), &demo, &BTreeMap::new()).unwrap();
    let sd21 = tmp.path().join("other");
    write_single_file(&ModelFiles::Folder(fixture("tiny-sd21")), &sd21, &BTreeMap::new()).unwrap();
    for (file, folder) in [(&demo, "demo".to_string()), (&sd21, fixture("tiny-sd21").display().to_string())] {
        let sample = |model: &str, out: &str| -> Vec<u8> {
            let mut command = assert_cmd::Command::cargo_bin("erase-concept").unwrap();
            command.current_dir(tmp.path()).args([
                "sample",
                "--model",
                model,
                "--prompt",
                "a red star",
                "--steps",
                "2",
            ]);
            command.args(["--output", out]).assert().code(0);
            std::fs::read(tmp.path().join(out).join("00000_0.png")).unwrap()
        };
        let (a, b) = (sample(&folder, "a"), sample(&file.display().to_string(), "b"));
        let at = |out: &str| picture(&tmp.path().join(out).join("00000_0.png"));
        assert!(at("a") == at("b"), "{folder}: the pictures differ");
        // the text that goes with it has the file's hash and name in place of the folder's
        let said = String::from_utf8_lossy(&b).into_owned();
        let hash = sha256_file(file).unwrap();
        assert!(said.contains(&format!("Model hash: {}", &hash[..10])), "{said}");
        assert!(said.contains(&format!("Model: {},", file.file_stem().unwrap().display())), "{said}");
        let (a, b) = (a.len() as i64, b.len() as i64);
        assert!((a - b).abs() < 100, "{a} and {b} bytes");
        std::fs::remove_dir_all(tmp.path().join("a")).unwrap();
        std::fs::remove_dir_all(tmp.path().join("b")).unwrap();
    }
}

/// Adds tensors to a file.
fn with_tensors(path: &Path, more: &[(&str, &[usize])]) {
    let mut all = tensors(path);
    let bytes = std::fs::read(path).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
    for (name, shape) in more {
        let zeros = vec![0; 4 * shape.iter().product::<usize>()];
        all.insert(name.to_string(), (Dtype::F32, shape.to_vec(), zeros));
    }
    write_safetensors(path, &all, &metadata.into_iter().collect()).unwrap();
}

#[test]
fn the_erase_job_takes_a_single_file_and_writes_a_folder_without_averaged_weights() {
    let tiny = Tiny::new();
    let file = tiny.root().join("model.safetensors");
    write_single_file(&ModelFiles::Folder(tiny.root().join("model")), &file, &BTreeMap::new()).unwrap();
    with_tensors(
        &file,
        &[
            ("model_ema.diffusion_modelconv_inweight", &[2, 2]),
            ("model_ema.decay", &[]),
            ("alphas_cumprod", &[1000]),
            ("cond_stage_model.model.logit_scale", &[]),
        ],
    );
    let job = |model: &str, output: &str| {
        let more = ["--output", output, "--format", "diffusers"];
        let args = [&["--model", model, "--concept", "star"], &QUICK[..], &more].concat();
        tiny.command(&args).assert().code(0).get_output().clone()
    };
    job("model", "a");
    let output = job("model.safetensors", "b");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in [
        "no part of the model: model_ema.* (2 tensors: averaged weights, which would still hold the concept)",
        "no part of the model: alphas_cumprod",
        "no part of the model: cond_stage_model.model.logit_scale",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let at = |out: &str, rel: &str| tensors(&tiny.root().join(out).join(rel));
    assert!(at("a", UNET) == at("b", UNET), "the same edit");
    assert!(at("a", UNET) != at("model", UNET), "an edit");
    for rel in [VAE, TEXT] {
        assert!(at("model", rel) == at("b", rel), "{rel}");
    }
    tiny.command(&["sample", "--model", "b", "--prompt", "x", "--steps", "1", "--output", "c"]).assert().code(0);
}

fn read_json(files: &ModelFiles, rel: &str) -> serde_json::Value {
    serde_json::from_slice(&files.read(rel).unwrap()).unwrap()
}

#[test]
fn full_size_models_are_recognised_and_their_configs_follow_from_the_shapes() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("nothing-in-the-name");
    for model in original::models() {
        original::zeros(&path, &model.original(), &[]);
        let files = single(&path);
        let ModelFiles::Single(file) = &files else { panic!("not single") };
        assert_eq!(file.architecture(), model.architecture());
        for (component, config) in model.configs.as_object().unwrap() {
            let found = read_json(&files, &format!("{component}/config.json"));
            for (key, value) in config.as_object().unwrap() {
                assert_eq!(found[key], *value, "{} {component} {key}", model.name);
            }
        }
        let (left_out, notes) = (file.left_out().join("; "), file.notes().join("; "));
        let scheduler = read_json(&files, "scheduler/scheduler_config.json");
        let facts = ["_class_name", "prediction_type", "timestep_spacing"].map(|key| scheduler[key].as_str());
        let pad = |folder: &str| read_json(&files, &format!("{folder}/tokenizer_config.json"))["pad_token"].clone();
        match model.name.as_str() {
            "sd1" => {
                assert_eq!((left_out.as_str(), notes.as_str()), ("", ""));
                assert_eq!(facts, [Some("PNDMScheduler"), Some("epsilon"), None]);
                assert_eq!(pad("tokenizer"), "<|endoftext|>");
            }
            "sd2" => {
                assert!(
                    left_out.starts_with("14 tensors of cond_stage_model that diffusers has no place"),
                    "{left_out}"
                );
                assert!(notes.contains("predicts v (768-v), as the file does not say"), "{notes}");
                assert_eq!(facts, [Some("DDIMScheduler"), Some("v_prediction"), None]);
                assert_eq!(pad("tokenizer"), "!");
            }
            _ => {
                assert_eq!((left_out.as_str(), notes.as_str()), ("conditioner.embedders.1.model.logit_scale", ""));
                assert_eq!(facts, [Some("EulerDiscreteScheduler"), Some("epsilon"), Some("leading")]);
                assert_eq!((pad("tokenizer"), pad("tokenizer_2")), ("<|endoftext|>".into(), "!".into()));
            }
        }
        let index = read_json(&files, "model_index.json");
        assert_eq!(files.components().unwrap().contains("text_encoder_2"), model.name == "sdxl", "{index}");
        assert_eq!(files.list().unwrap().len(), if model.name == "sdxl" { 18 } else { 12 });
    }
}

#[test]
fn what_the_unet_predicts_is_taken_from_a_config_beside_the_file_or_from_the_metadata() {
    let tmp = tempfile::tempdir().unwrap();
    let (path, config) = (tmp.path().join("model.safetensors"), tmp.path().join("model.yaml"));
    let models = original::models();
    let facts = |model: usize, metadata: &[(&str, &str)], mark: Option<&str>| {
        let mut shapes = models[model].original();
        shapes.extend(mark.map(|name| (name.to_string(), vec![])));
        original::zeros(&path, &shapes, metadata);
        let files = single(&path);
        let size = read_json(&files, "unet/config.json")["sample_size"].as_u64().unwrap();
        let kind = read_json(&files, "scheduler/scheduler_config.json")["prediction_type"].clone();
        (kind.as_str().unwrap().to_string(), size, files.notes().len())
    };
    let of = |kind: &str, size: u64, notes: usize| (kind.to_string(), size, notes);
    let said = "modelspec.prediction_type";
    assert_eq!(facts(1, &[(said, "epsilon")], None), of("epsilon", 64, 0));
    assert_eq!(facts(1, &[(said, "v")], None), of("v_prediction", 96, 0));
    assert_eq!(facts(1, &[(said, "?")], None), of("v_prediction", 96, 1));
    assert_eq!(facts(0, &[(said, "v")], None), of("v_prediction", 64, 0));
    assert_eq!(facts(2, &[], Some("v_pred")), of("v_prediction", 128, 0));
    // CompVis' own: v2-inference.yaml has no parameterization, v2-inference-v.yaml has
    std::fs::write(&config, "model:\n  target: ldm\n  params:\n    linear_start: 0.00085\n").unwrap();
    assert_eq!(facts(1, &[(said, "v")], None), of("epsilon", 64, 1), "what lies beside it decides");
    std::fs::write(&config, "model:\n  params:\n    parameterization: \"v\" # not eps\n").unwrap();
    assert_eq!(facts(0, &[], None), of("v_prediction", 64, 1));
    std::fs::write(&config, "something: else\n").unwrap();
    assert_eq!(facts(0, &[], None), of("epsilon", 64, 0));
    std::fs::write(&config, "model:\n  params:\n    parameterization: x0\n").unwrap();
    let message = SingleFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("model.yaml: parameterization is \"x0\"; this program supports eps and v"), "{message}");
}

#[test]
fn a_file_without_configs_and_tokenizer_samples_as_the_folder_that_has_them() {
    for architecture in [Architecture::Sd1, Architecture::Sd2] {
        let tmp = tempfile::tempdir().unwrap();
        let (folder, path) = (tmp.path().join("folder"), tmp.path().join("model.safetensors"));
        original::smallest(&folder, architecture);
        let with = tmp.path().join("with.safetensors");
        write_single_file(&ModelFiles::Folder(folder.clone()), &with, &BTreeMap::new()).unwrap();
        write_safetensors(&path, &tensors(&with), &BTreeMap::new()).unwrap();
        let files = single(&path);
        std::fs::create_dir(folder.join("tokenizer")).unwrap();
        for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
            let rel = format!("tokenizer/{name}");
            std::fs::write(folder.join(&rel), files.read(&rel).unwrap()).unwrap();
        }
        let picture = |files: &ModelFiles| {
            let model = load_model(files).unwrap().model;
            let options =
                SampleOptions { sampler: Sampler::Ddim, steps: 2, guidance_scale: 7.5, eta: 0.0, size: Some((8, 8)) };
            let latents =
                model.sample_latents(&model.unet().unwrap(), &options, &["a cat, très drôle"], &[""], &[7]).unwrap();
            let picture = model.decode_latents(&latents).unwrap();
            (picture.flatten_all().unwrap().to_vec1::<f32>().unwrap(), model.latent_size())
        };
        let (a, b) = (picture(&ModelFiles::Folder(folder)), picture(&files));
        assert!(a == b, "{architecture:?}");
        // a config beside it decides what the UNet predicts: another model, with another hash
        let hash = |path: &Path| base_sha256(&single(path)).unwrap();
        assert_eq!(hash(&path), sha256_file(&path).unwrap());
        std::fs::write(path.with_extension("yaml"), "model:\n  parameterization: eps\n").unwrap();
        let (eps, other) = (picture(&single(&path)), hash(&path));
        assert_eq!(eps == b, architecture == Architecture::Sd1);
        assert_ne!(other, sha256_file(&path).unwrap());
        std::fs::write(path.with_extension("yaml"), "model:\n  parameterization: v\n").unwrap();
        assert_ne!(hash(&path), other);
        // what the file itself brings comes first
        std::fs::write(with.with_extension("yaml"), "model:\n").unwrap();
        assert_eq!(hash(&with), sha256_file(&with).unwrap());
    }
}

#[test]
fn the_first_files_of_sd1_spell_the_text_encoder_otherwise() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model");
    let respelt = |name: String| name.replace("transformer.text_model.", "transformer.");
    let shapes = original::models()[0].original().into_iter().map(|(name, shape)| (respelt(name), shape)).collect();
    original::zeros(&path, &shapes, &[]);
    let file = SingleFile::open(&path).unwrap();
    assert_eq!((file.architecture(), file.left_out()), (Architecture::Sd1, &[][..]));
    let entries = file.table().component("text_encoder");
    assert_eq!(entries.len(), 197, "196 and the buffer of positions");
    assert!(entries.iter().all(|e| e.diffusers.starts_with("text_model.") && !e.original.contains("text_model.")));
}
