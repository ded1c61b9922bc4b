//! What an erased model is written as, and models from one format to another: the same tensors in each, and what the files say of
//! themselves.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{TEXT, Tiny, UNET, VAE, result, tree};
use common::{Raw, fixture, raw, repository};
use erase_concept::checkpoint::single_file::{Architecture, write_single_file};
use erase_concept::checkpoint::{ModelFiles, SingleFile, sha256_hex, write_edited_single_file, write_safetensors};
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

#[test]
fn the_job_writes_every_format_that_is_asked_for() {
    let tiny = Tiny::new();
    let both = tiny.erase(&["--output", "both", "--format", "single-file", "--format", "diffusers", "--quiet"]);
    tiny.command(&both).assert().code(0);
    tiny.command(&tiny.erase(&["--output", "folder", "--quiet"])).assert().code(0);
    tiny.command(&tiny.erase(&["--output", "file", "--quiet", "--format", "single-file"])).assert().code(0);
    let path = |rel: &str| tiny.root().join(rel);
    let files = |folder: &str| {
        let names = tree(&path(folder)).into_iter().filter(|rel| path(folder).join(rel).is_file());
        names.collect::<Vec<_>>()
    };
    assert_eq!(
        files("file"),
        ["README.md", "erased.safetensors", "grid.png", "report.html", "report.json", "run.json"]
    );
    assert!(!files("folder").contains(&"erased.safetensors".to_string()));
    // the same weights, whatever they are written with
    assert!(
        std::fs::read(path("both/erased.safetensors")).unwrap()
            == std::fs::read(path("file/erased.safetensors")).unwrap()
    );
    for rel in [UNET, VAE, TEXT, "grid.png"] {
        assert!(
            std::fs::read(path("both").join(rel)).unwrap() == std::fs::read(path("folder").join(rel)).unwrap(),
            "{rel}"
        );
    }
    assert!(std::fs::read(path("file/grid.png")).unwrap() == std::fs::read(path("folder/grid.png")).unwrap());
    assert_ne!(tensors(&path("folder").join(UNET)), tensors(&tiny.file(UNET)));
    // each is a model; one way and back gives the other
    tiny.command(&["export", "file", "--format", "diffusers", "--output", "back"]).assert().code(0);
    for rel in [UNET, VAE, TEXT] {
        assert!(
            std::fs::read(path("back").join(rel)).unwrap() == std::fs::read(path("folder").join(rel)).unwrap(),
            "{rel}"
        );
    }
    tiny.command(&["export", "folder", "--format", "single-file", "--output", "again.safetensors"]).assert().code(0);
    // but for the licence, which only the model card of the folder has
    assert_eq!(tensors(&path("again.safetensors")), tensors(&path("file/erased.safetensors")));
    tiny.command(&["sample", "--model", "file", "--prompt", "x", "--steps", "1", "--output", "s"]).assert().code(0);
}

#[test]
fn a_single_file_comes_back_as_one_with_what_is_not_of_the_model_but_averaged_weights() {
    let tiny = Tiny::new();
    let model = tiny.root().join("v2.safetensors");
    write_single_file(&ModelFiles::Folder(tiny.file("")), &model, &BTreeMap::new()).unwrap();
    let (mut all, mut metadata) = raw(&model);
    let (dtype, shape, bytes) = all.values().next().unwrap().clone();
    for name in ["model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay", "betas", "own.notes"] {
        all.insert(name.into(), (dtype, shape.clone(), bytes.clone()));
    }
    metadata.insert("my.key".into(), "stays".into());
    write_safetensors(&model, &all, &metadata).unwrap();
    let before = all;
    let mut args = tiny.erase(&["--output", "out", "--json"]);
    args[1] = "v2.safetensors";
    let assert = tiny.command(&args).assert().code(0);
    let said = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    assert!(said.contains("model_ema.* (2 tensors: averaged weights, which would still hold the concept)"), "{said}");
    let (after, metadata) = raw(&tiny.root().join("out/erased.safetensors"));
    let lost: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert_eq!(lost, ["model_ema.decay", "model_ema.diffusion_modelinput_blocks00weight"]);
    assert!(after.keys().all(|name| before.contains_key(name)));
    let changed: Vec<_> = after.iter().filter(|(name, tensor)| before[*name] != **tensor).collect();
    assert!(!changed.is_empty() && changed.iter().all(|(name, _)| name.starts_with("model.diffusion_model.")));
    assert!(changed.iter().all(|(name, (dtype, shape, _))| (*dtype, shape) == (before[*name].0, &before[*name].1)));
    let expected = [
        ("my.key", "stays"),
        ("format", "pt"),
        ("erase.concept", "star"),
        ("erase.base", "v2"),
        ("modelspec.architecture", "stable-diffusion-v2-768-v"),
        ("modelspec.prediction_type", "v"),
        ("modelspec.title", "v2 without star"),
    ];
    for (key, value) in expected {
        assert_eq!(metadata[key], value, "{key}");
    }
    // the hash is of the tensors' bytes as they lie in the file
    let bytes = std::fs::read(tiny.root().join("out/erased.safetensors")).unwrap();
    let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata["modelspec.hash_sha256"], format!("0x{}", sha256_hex(&bytes[8 + header..])));
    assert!(!metadata.contains_key("modelspec.date"));
    let files = tree(&tiny.root().join("out"));
    assert!(!files.iter().any(|name| name.contains("unet")), "{files:?}");
}

#[test]
fn a_date_is_in_the_file_where_one_is_set() {
    let tiny = Tiny::new();
    let export = ["export", "model", "--format", "single-file", "--output", "x.safetensors", "--overwrite"];
    tiny.command(&export).env("SOURCE_DATE_EPOCH", "1700000000").assert().code(0);
    assert_eq!(raw(&tiny.root().join("x.safetensors")).1["modelspec.date"], "2023-11-14T22:13:20Z");
    let assert = tiny.command(&export).env("SOURCE_DATE_EPOCH", "now").assert().code(2);
    assert!(String::from_utf8_lossy(&assert.get_output().stderr).contains("SOURCE_DATE_EPOCH"));
}

#[test]
fn every_shape_of_model_goes_to_each_format_and_back_without_a_tensor_changed() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, folder) in
        [("demo", repository("weights/demo")), ("tiny-sd21", fixture("tiny-sd21")), ("tiny-sdxl", fixture("tiny-sdxl"))]
    {
        let (file, again) = (tmp.path().join(name), tmp.path().join(format!("{name}-again")));
        let back = tmp.path().join(format!("{name}-back"));
        write_single_file(&ModelFiles::Folder(folder.clone()), &file, &BTreeMap::new()).unwrap();
        // one file to one file: byte for byte
        let left = write_edited_single_file(&single(&file), &BTreeMap::new(), &again, &BTreeMap::new()).unwrap();
        assert!(left.is_empty() && std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "{name}");
        std::fs::create_dir(&back).unwrap();
        erase_concept::checkpoint::save_edited(&single(&again), &BTreeMap::new(), &back, &BTreeMap::new()).unwrap();
        let weights: Vec<String> = tree(&back).into_iter().filter(|rel| rel.ends_with(".safetensors")).collect();
        assert!(weights.len() >= 3, "{weights:?}");
        for rel in weights {
            assert!(tensors(&back.join(&rel)) == tensors(&folder.join(&rel)), "{name}/{rel}");
        }
    }
}

#[test]
fn an_edited_tensor_is_turned_round_and_put_together_on_its_way_into_a_single_file() {
    use candle_core::{Device, Tensor};
    let tmp = tempfile::tempdir().unwrap();
    for (name, folder) in [("demo", repository("weights/demo")), ("tiny-sdxl", fixture("tiny-sdxl"))] {
        let base = tmp.path().join(name);
        write_single_file(&ModelFiles::Folder(folder.clone()), &base, &BTreeMap::new()).unwrap();
        // a convolution, a linear layer and (in SD 1.x a convolution by 1) a projection
        let unet = tensors(&folder.join(UNET));
        let wanted = ["conv_in.weight", "attn2.to_k.weight", "proj_in.weight", "norm2.bias"];
        let changed: BTreeMap<String, Tensor> = wanted
            .iter()
            .map(|ending| {
                let (name, (_, shape, _)) = unet.iter().find(|(name, _)| name.ends_with(ending)).unwrap();
                let n = shape.iter().product::<usize>();
                let values: Vec<f32> = (0..n).map(|i| (i % 97) as f32 / 64.0).collect();
                (name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap())
            })
            .collect();
        for (from, files) in [("folder", ModelFiles::Folder(folder.clone())), ("file", single(&base))] {
            let (file, back) = (tmp.path().join("edited"), tempfile::tempdir().unwrap());
            write_edited_single_file(&files, &changed, &file, &BTreeMap::new()).unwrap();
            erase_concept::checkpoint::save_edited(&single(&file), &BTreeMap::new(), back.path(), &BTreeMap::new())
                .unwrap();
            let expected = tempfile::tempdir().unwrap();
            erase_concept::checkpoint::save_edited(
                &ModelFiles::Folder(folder.clone()),
                &changed,
                expected.path(),
                &BTreeMap::new(),
            )
            .unwrap();
            let (found, expected) = (tensors(&back.path().join(UNET)), tensors(&expected.path().join(UNET)));
            let differ: Vec<_> = expected.iter().filter(|(name, tensor)| found[*name] != **tensor).collect();
            assert!(differ.is_empty() && found.len() == expected.len(), "{name} from a {from}");
            assert_eq!(expected.iter().filter(|(name, tensor)| unet[*name] != **tensor).count(), wanted.len());
            let wrong = BTreeMap::from([(
                "conv_in.weight".to_string(),
                Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
            )]);
            let said = write_edited_single_file(&files, &wrong, &file, &BTreeMap::new()).unwrap_err().to_string();
            assert!(said.contains("conv_in.weight") && said.contains("[3]"), "{said}");
            let absent = BTreeMap::from([("nowhere".to_string(), wrong["conv_in.weight"].clone())]);
            let said = write_edited_single_file(&files, &absent, &file, &BTreeMap::new()).unwrap_err().to_string();
            assert!(said.contains("has no tensor named nowhere"), "{said}");
        }
    }
}

#[test]
fn a_pickled_checkpoint_becomes_a_single_file() {
    let tiny = Tiny::new();
    let plain = tiny.root().join("plain.safetensors");
    let small = tiny.root().join("small");
    common::original::smallest(&small, Architecture::Sd1);
    write_single_file(&ModelFiles::Folder(small), &plain, &BTreeMap::new()).unwrap();
    common::ckpt::write(&tiny.root().join("x.ckpt"), &tensors(&plain));
    let export = ["export", "x.ckpt", "--format", "single-file", "--output", "y.safetensors"];
    tiny.refused(&export, &["--allow-pickle"]);
    tiny.command(&[&export[..], &["--allow-pickle"]].concat()).assert().code(0);
    assert_eq!(tensors(&tiny.root().join("y.safetensors")), tensors(&plain));
}

#[cfg(unix)]
#[test]
fn files_that_are_not_edited_are_copied_or_linked_and_the_same_in_any_case() {
    use std::os::unix::fs::MetadataExt;
    let tiny = Tiny::new();
    tiny.put("README.md", "the base's own");
    tiny.command(&tiny.erase(&["--output", "copied", "--quiet"])).assert().code(0);
    tiny.command(&tiny.erase(&["--output", "linked", "--quiet", "--link"])).assert().code(0);
    let inode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().ino();
    for rel in [VAE, TEXT, "tokenizer/tokenizer.json"] {
        let linked = tiny.root().join("linked").join(rel);
        assert_eq!(inode(linked), inode(tiny.file(rel)), "{rel}");
        assert_ne!(inode(tiny.root().join("copied").join(rel)), inode(tiny.file(rel)), "{rel}");
    }
    assert_ne!(inode(tiny.root().join("linked").join(UNET)), inode(tiny.file(UNET)));
    assert_eq!(tiny.read("README.md"), b"the base's own", "what replaces a link is not written through it");
    let (mut linked, mut copied) = (result(&tiny.root().join("linked")), result(&tiny.root().join("copied")));
    assert!(linked.remove("README.md") == copied.remove("README.md"));
    common::tiny::assert_same(&linked, &copied, "linked and copied");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let tiny = Tiny::new();
    std::fs::write(tiny.root().join("there.safetensors"), "x").unwrap();
    let export =
        |format: &'static str, output: &'static str| ["export", "model", "--format", format, "--output", output];
    tiny.refused(&export("single-file", "there.safetensors"), &["is there already", "--overwrite"]);
    tiny.refused(&export("single-file", "model"), &["is a folder", "one file"]);
    tiny.refused(&export("single-file", "nowhere/x.safetensors"), &["nowhere", "no such folder"]);
    tiny.refused(&export("diffusers", "there.safetensors"), &["is a file"]);
    tiny.refused(&export("gguf", "x"), &["gguf is not known", "diffusers, single-file"]);
    tiny.refused(&tiny.erase(&["--output", "out", "--format", "onnx"]), &["onnx is not known"]);
    tiny.refused(&["export", "nowhere", "--format", "diffusers", "--output", "x"], &["is not there"]);
    let over =
        ["export", "there.safetensors", "--format", "single-file", "--output", "there.safetensors", "--overwrite"];
    tiny.refused(&over, &["which would be replaced"]);
}

#[test]
fn the_model_card_says_what_was_done_and_keeps_the_licence() {
    let tiny = Tiny::with_classifier();
    let card = "---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# the base\n";
    tiny.put("README.md", card);
    tiny.command(&tiny.erase(&["--output", "out", "--quiet"])).assert().code(0);
    let card = std::fs::read_to_string(tiny.root().join("out/README.md")).unwrap();
    let (_, rest) = card.split_once("---\n").unwrap();
    let (front, body) = rest.split_once("\n---\n").unwrap();
    for line in ["license: \"creativeml-openrail-m\"", "library_name: diffusers", "pipeline_tag: text-to-image"] {
        assert!(front.lines().any(|found| found == line), "{front}");
    }
    assert!(!front.contains("base_model"), "a folder is no model of the Hub: {front}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny.root().join("out/report.json")).unwrap()).unwrap();
    for part in [
        "# model without star",
        report["base_sha256"].as_str().unwrap(),
        report["command"].as_str().unwrap(),
        "Not a guarantee of safety",
        "`model_index.json`",
        "That of the base: creativeml-openrail-m.",
    ] {
        assert!(body.contains(part), "{body}\nsays not: {part}");
    }
}

#[test]
fn patch_and_lora_come_with_the_job_alone_or_beside_a_model() {
    let tiny = Tiny::new();
    tiny.put("README.md", "---\nlicense: mit\n---\n");
    let path = |rel: &str| tiny.root().join(rel);
    let bytes = |rel: &str| std::fs::read(path(rel)).unwrap();
    let erase = |output: &str, formats: &[&str]| {
        let mut args = tiny.erase(&["--output", output, "--quiet"]);
        formats.iter().for_each(|format| args.extend(["--format", *format]));
        tiny.command(&args).assert().code(0);
    };
    erase("whole", &["diffusers", "patch", "lora"]);
    erase("patch", &["patch"]);
    erase("lora", &["lora"]);
    let files = |folder: &str| tree(&path(folder)).join(" ");
    assert_eq!(files("patch"), "README.md erased-patch.safetensors grid.png report.html report.json run.json");
    assert_eq!(files("lora"), "README.md erased-lora.safetensors grid.png report.html report.json run.json");
    // the patch makes the folder, model card and all, and takes it back
    let apply = |model: &str, file: &str, output: &str, more: &[&str]| {
        tiny.command(&[&["apply", model, file, "--output", output], more].concat()).assert().code(0);
    };
    apply("model", "whole/erased-patch.safetensors", "applied", &[]);
    for rel in tree(&path("applied")).iter().filter(|rel| path("applied").join(rel).is_file()) {
        assert!(bytes(&format!("applied/{rel}")) == bytes(&format!("whole/{rel}")), "{rel}");
    }
    assert!(bytes("applied/README.md").starts_with(b"---\nlicense: \"mit\""));
    apply("whole", "whole/erased-patch.safetensors", "back", &["--reverse"]);
    for rel in tree(&path("model")).iter().filter(|rel| path("model").join(rel).is_file()) {
        assert!(bytes(&format!("back/{rel}")) == bytes(&format!("model/{rel}")), "{rel}");
    }
    // alone it holds the same weights, and the same pictures were looked at
    apply("model", "patch/erased-patch.safetensors", "alone", &[]);
    assert!(bytes(&format!("alone/{UNET}")) == bytes(&format!("whole/{UNET}")));
    assert!(bytes("patch/grid.png") == bytes("whole/grid.png"));
    // the LoRA is exact but for rounding: the shipped settings change no biases
    assert!(bytes("lora/erased-lora.safetensors") == bytes("whole/erased-lora.safetensors"));
    apply("model", "lora/erased-lora.safetensors", "merged", &[]);
    let (merged, whole, base) =
        (tensors(&path("merged").join(UNET)), tensors(&path("whole").join(UNET)), tensors(&tiny.file(UNET)));
    let floats = |tensor: &(Dtype, Vec<usize>, Vec<u8>)| -> Vec<f32> {
        tensor.2.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    };
    let mut changed = 0;
    for (name, tensor) in &whole {
        assert_eq!(tensor.0, Dtype::F32);
        if name.ends_with(".bias") {
            assert!(*tensor == base[name] && merged[name] == base[name], "{name}: no LoRA holds it");
            continue;
        }
        let (a, b) = (floats(tensor), floats(&merged[name]));
        let most = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 1e-5, "{name}: {most}");
        changed += usize::from(base[name] != merged[name]);
    }
    assert!(changed > 0);
    // the same from a finished run
    let export = |format: &str, output: &str, more: &[&str]| {
        [&["export", "whole", "--format", format, "--output", output], more]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| tiny.command(&args.iter().map(String::as_str).collect::<Vec<_>>()).assert();
    run(export("lora", "x.safetensors", &["--base", "model"])).code(0);
    assert_eq!(tensors(&path("x.safetensors")), tensors(&path("lora/erased-lora.safetensors")));
    run(export("patch", "y.safetensors", &["--base", "model"])).code(0);
    apply("model", "y.safetensors", "applied-again", &[]);
    assert!(bytes(&format!("applied-again/{UNET}")) == bytes(&format!("whole/{UNET}")));
    // what makes no sense
    let refused = |args: Vec<String>, parts: &[&str]| {
        tiny.refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    refused(export("patch", "z", &[]), &["--base MODEL"]);
    refused(export("patch", "z", &["--base", "whole"]), &["is not what whole was made from"]);
    refused(export("lora", "z", &["--base", "model", "--rank", "0"]), &["--rank"]);
    refused(export("lora", "z", &["--base", "model", "--strength", "0"]), &["--strength is 0"]);
    tiny.refused(&["apply", "model", "x.safetensors", "--output", "z", "--reverse"], &["--reverse is for a patch"]);
    tiny.refused(
        &["apply", "model", "y.safetensors", "--output", "z", "--strength", "2"],
        &["--strength is for a LoRA"],
    );
    let vae = format!("model/{VAE}");
    tiny.refused(&["apply", "model", &vae, "--output", "z"], &["neither a patch nor a LoRA"]);
}

#[test]
fn a_single_file_has_its_patch_too() {
    let tiny = Tiny::new();
    write_single_file(&ModelFiles::Folder(tiny.file("")), &tiny.root().join("v2.safetensors"), &BTreeMap::new())
        .unwrap();
    let mut args = tiny.erase(&["--output", "out", "--quiet", "--format", "patch", "--format", "diffusers"]);
    args[1] = "v2.safetensors";
    tiny.command(&args).assert().code(0);
    let patch = "out/erased-patch.safetensors";
    assert!(!tree(&tiny.root().join("out")).iter().any(|name| name.starts_with('.') || name == "erased.safetensors"));
    tiny.command(&["apply", "v2.safetensors", patch, "--output", "new.safetensors"]).assert().code(0);
    tiny.command(&["apply", "new.safetensors", patch, "--output", "old.safetensors", "--reverse"]).assert().code(0);
    let bytes = |rel: &str| std::fs::read(tiny.root().join(rel)).unwrap();
    assert!(bytes("old.safetensors") == bytes("v2.safetensors"));
    tiny.command(&["export", "new.safetensors", "--format", "diffusers", "--output", "folder"]).assert().code(0);
    assert!(bytes(&format!("folder/{UNET}")) == bytes(&format!("out/{UNET}")));
}
