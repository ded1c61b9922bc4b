//! Patches: from two models to one file, and from one model and that file to the other, byte for byte.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{Tiny, UNET, VAE, replaced, tree};
use common::{Raw, fixture, raw, repository};
use erase_concept::checkpoint::patch::{self, Summary};
use erase_concept::checkpoint::single_file::write_single_file;
use erase_concept::checkpoint::{ModelFiles, SingleFile, base_sha256, sha256_file, sha256_hex, write_safetensors};
use erase_concept::diffusion::Generator;
use erase_concept::hub;
use erase_concept::progress::Silent;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a test changes a tensor.
#[derive(Clone, Copy)]
enum Edit {
    /// Every value moves a little; one in twenty is drawn anew.
    Many,
    /// Three values turn round.
    Few,
}

fn edit(dtype: Dtype, bytes: &mut [u8], edit: Edit, random: &mut Generator) {
    let width = dtype.bitsize() / 8;
    let count = bytes.len() / width;
    for i in 0..count {
        let number = &mut bytes[i * width..][..width];
        if matches!(edit, Edit::Few) {
            if i % count.div_ceil(3) == 0 {
                number[width - 1] ^= 0x80;
            }
            continue;
        }
        let to = |x: f32, random: &mut Generator| match random.below(20) {
            0 => 0.02 * random.randn(1)[0],
            _ => x + 1e-4 * random.randn(1)[0],
        };
        match dtype {
            Dtype::F32 => {
                let x = to(f32::from_le_bytes(number.try_into().unwrap()), random);
                number.copy_from_slice(&x.to_le_bytes());
            }
            Dtype::F16 => {
                let x = to(f16::from_le_bytes(number.try_into().unwrap()).to_f32(), random);
                number.copy_from_slice(&f16::from_f32(x).to_le_bytes());
            }
            Dtype::BF16 => {
                let x = to(bf16::from_le_bytes(number.try_into().unwrap()).to_f32(), random);
                number.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A file of weights with each tensor whose name has `part` in it changed, and metadata added.
fn edited(from: &Path, to: &Path, part: &str, how: Edit) {
    let (mut all, mut metadata) = raw(from);
    let mut random = Generator::new(3);
    for (_, (dtype, _, bytes)) in all.iter_mut().filter(|(name, _)| name.contains(part)) {
        edit(*dtype, bytes, how, &mut random);
    }
    metadata.extend([("format".into(), "pt".into()), ("erase.concept".into(), "star".into())]);
    write_safetensors(to, &all, &metadata).unwrap();
}

fn copy(from: &Path, to: &Path) {
    for rel in tree(from).iter().filter(|rel| from.join(rel).is_file()) {
        let path = to.join(rel);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(from.join(rel), path).unwrap();
    }
}

/// The content of each file of the model.
fn content(files: &ModelFiles) -> BTreeMap<String, Vec<u8>> {
    files.list().unwrap().into_iter().map(|rel| (rel.clone(), files.read(&rel).unwrap().into_owned())).collect()
}

fn folder(path: impl Into<PathBuf>) -> ModelFiles {
    ModelFiles::Folder(path.into())
}

fn single(path: &Path) -> ModelFiles {
    ModelFiles::Single(Arc::new(SingleFile::open(path).unwrap()))
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("erase.concept".to_string(), "star".to_string()), ("erase.method".into(), "scissorhands".into())])
}

/// Two models and what lies between them.
struct Case {
    tmp: tempfile::TempDir,
    base: ModelFiles,
    edited: ModelFiles,
    summary: Summary,
}

impl Case {
    /// A folder, the same folder with the tensors changed that have `part` in their name, and with a model card.
    fn folders(model: &Path, part: &str, how: Edit) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let (base, to) = (folder(model), tmp.path().join("edited"));
        copy(model, &to);
        edited(&model.join(UNET), &to.join(UNET), part, how);
        fs::write(to.join("README.md"), "---\nlicense: mit\n---\nwithout stars\n").unwrap();
        let index = to.join("model_index.json");
        fs::write(&index, format!("{}\n", fs::read_to_string(&index).unwrap())).unwrap();
        Self::between(tmp, base, folder(to))
    }

    /// A single file of the demo, with `more` tensors that the edited file does not have.
    fn files(more: &Raw) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let (base, to) = (tmp.path().join("base.safetensors"), tmp.path().join("edited.safetensors"));
        write_single_file(&folder(fixture("tiny-sd21")), &base, &BTreeMap::new()).unwrap();
        edited(&base, &to, ".attn2.", Edit::Many);
        let (mut all, metadata) = raw(&base);
        all.extend(more.clone());
        write_safetensors(&base, &all, &metadata).unwrap();
        let (base, edited) = (single(&base), single(&to));
        Self::between(tmp, base, edited)
    }

    fn between(tmp: tempfile::TempDir, base: ModelFiles, edited: ModelFiles) -> Self {
        let summary = patch::create(&base, &edited, &tmp.path().join("patch.safetensors"), &metadata()).unwrap();
        Self { tmp, base, edited, summary }
    }

    fn patch(&self) -> PathBuf {
        self.tmp.path().join("patch.safetensors")
    }

    /// A place for a result.
    fn place(&self, name: &str) -> PathBuf {
        let place = self.tmp.path().join(name);
        if !matches!(self.base, ModelFiles::Single(_)) {
            fs::create_dir(&place).unwrap();
        }
        place
    }

    fn apply(&self, name: &str) -> PathBuf {
        let place = self.place(name);
        let applied = patch::apply(&self.base, &self.patch(), &place, &mut Silent).unwrap();
        assert_eq!(applied.sha256, self.summary.result_sha256);
        place
    }

    fn reverse(&self, of: &ModelFiles, name: &str) -> PathBuf {
        let place = self.place(name);
        let applied = patch::reverse(of, &self.patch(), &place, &mut Silent).unwrap();
        assert_eq!(applied.sha256, self.summary.base_sha256);
        place
    }
}

/// Applies and reverses a patch between folders, and compares every file.
fn there_and_back(case: &Case, what: &str) {
    let there = folder(case.apply("there"));
    assert!(content(&there) == content(&case.edited), "{what}: forward");
    assert_eq!(base_sha256(&there).unwrap(), case.summary.result_sha256, "{what}");
    let back = case.reverse(&there, "back");
    for (rel, bytes) in content(&case.base) {
        assert!(fs::read(back.join(&rel)).unwrap() == bytes, "{what}: {rel} does not come back");
    }
    let files = tree(&back).into_iter().filter(|rel| back.join(rel).is_file()).count();
    assert_eq!(files, case.base.list().unwrap().len(), "{what}: nothing else comes back");
}

#[test]
fn a_folder_comes_out_byte_for_byte_and_its_base_comes_back() {
    for (name, model) in
        [("demo", repository("weights/demo")), ("tiny-sd21", fixture("tiny-sd21")), ("tiny-sdxl", fixture("tiny-sdxl"))]
    {
        for (part, how, encoding) in [
            (".attn2.", Edit::Many, "all values"),
            ("", Edit::Many, "all values"),
            ("weight", Edit::Few, "listed values"),
        ] {
            let case = Case::folders(&model, part, how);
            there_and_back(&case, &format!("{name}, {part:?}"));
            let (summary, size) = (&case.summary, fs::metadata(case.patch()).unwrap().len());
            println!("{name} {part:?}: {} of {} bytes, {:?}", size, summary.tensor_bytes, summary.encodings);
            assert_eq!((summary.bytes, summary.files, &summary.dropped), (size, 3, &None));
            let most = summary.encodings.iter().max_by_key(|(_, encoded)| encoded.tensors).unwrap().0;
            assert_eq!(*most, encoding);
            let tensors: usize = summary.encodings.values().map(|encoded| encoded.tensors).sum();
            assert_eq!(tensors, summary.tensors);
        }
    }
}

#[test]
fn the_demo_in_the_program_is_a_base_too() {
    let tmp = tempfile::tempdir().unwrap();
    let to = tmp.path().join("edited");
    // as the erase job writes it: the classifier too, which is no part of the folder's model
    copy(&repository("weights/demo"), &to);
    edited(&repository("weights/demo").join(UNET), &to.join(UNET), ".attn2.", Edit::Many);
    let case = Case::between(tmp, hub::demo(), folder(to));
    assert!(case.summary.bytes < case.summary.tensor_bytes, "the classifier is not in the patch");
    there_and_back(&case, "demo");
    let there = case.tmp.path().join("there");
    assert!(there.join("classifier/model.safetensors").is_file());
    fs::write(there.join("classifier/config.json"), "{}").unwrap();
    let error = patch::reverse(&folder(&there), &case.patch(), &case.place("again"), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("classifier/config.json: was changed: it is part of the base"), "{error}");
    fs::remove_file(there.join("classifier/config.json")).unwrap();
    let error = patch::reverse(&folder(&there), &case.patch(), &case.place("more"), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("classifier/config.json: is missing: it is part of the base"), "{error}");
}

#[test]
fn every_float_is_moved_exactly() {
    let tmp = tempfile::tempdir().unwrap();
    let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
    let special = |width: usize| -> Vec<u8> {
        let mut random = Generator::new(9);
        (0..64 * width).map(|_| [0, 0x80, 0xff, 0x7f, random.below(256) as u8][random.below(5)]).collect()
    };
    for (dtype, width) in [
        (Dtype::F64, 8),
        (Dtype::F32, 4),
        (Dtype::F16, 2),
        (Dtype::BF16, 2),
        (Dtype::F8_E4M3, 1),
        (Dtype::I64, 8),
        (Dtype::U8, 1),
        (Dtype::BOOL, 1),
    ] {
        for (place, turn) in [(&from, 0), (&to, 9)] {
            copy(&fixture("tiny-sd21"), place);
            let (mut all, metadata) = raw(&fixture("tiny-sd21").join(VAE));
            let mut bytes = special(width);
            bytes.rotate_left(turn);
            all.insert("special".into(), (dtype, vec![4, 16], bytes));
            all.insert("empty".into(), (dtype, vec![0], Vec::new()));
            all.insert("scalar".into(), (dtype, vec![], special(width)[turn..][..width].to_vec()));
            write_safetensors(&place.join(VAE), &all, &metadata).unwrap();
        }
        let path = tmp.path().join("patch.safetensors");
        patch::create(&folder(&from), &folder(&to), &path, &BTreeMap::new()).unwrap();
        let made = tempfile::tempdir().unwrap();
        patch::apply(&folder(&from), &path, made.path(), &mut Silent).unwrap();
        assert!(fs::read(made.path().join(VAE)).unwrap() == fs::read(to.join(VAE)).unwrap(), "{dtype:?}");
    }
}

#[test]
fn a_single_file_comes_out_and_comes_back() {
    let case = Case::files(&Raw::new());
    assert!(case.summary.dropped.is_none() && case.summary.bytes < case.summary.tensor_bytes);
    let there = case.apply("there.safetensors");
    assert_eq!(sha256_file(&there).unwrap(), sha256_file(case.tmp.path().join("edited.safetensors")).unwrap());
    let back = case.reverse(&single(&there), "back.safetensors");
    assert_eq!(sha256_file(&back).unwrap(), sha256_file(case.tmp.path().join("base.safetensors")).unwrap());
}

#[test]
fn what_was_dropped_cannot_be_given_back() {
    let average = (Dtype::F32, vec![2], vec![1; 8]);
    let more = Raw::from([("model_ema.decay".to_string(), average.clone()), ("model_ema.x".into(), average)]);
    let case = Case::files(&more);
    let there = case.apply("there.safetensors");
    assert_eq!(sha256_file(&there).unwrap(), case.summary.result_sha256);
    let error = patch::reverse(&single(&there), &case.patch(), &case.place("back"), &mut Silent).unwrap_err();
    let expected =
        "cannot be reversed: its base has 2 tensors (model_ema.decay, ...), which neither the result nor the patch has";
    assert!(error.to_string().contains(expected), "{error}");
    assert!(!case.tmp.path().join("back").exists());
    let info = patch::open(&case.patch()).unwrap();
    assert!(info.dropped.is_some() && info.describe().ends_with("not reversible"), "{info:?}");
}

#[test]
fn the_same_models_give_the_same_bytes_whatever_the_threads() {
    let case = Case::folders(&repository("weights/demo"), "", Edit::Many);
    let expected = sha256_file(case.patch()).unwrap();
    for threads in [1, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = case.tmp.path().join(format!("{threads}.safetensors"));
        pool.install(|| patch::create(&case.base, &case.edited, &path, &metadata())).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), expected, "{threads} threads");
    }
}

#[test]
fn what_a_patch_says_of_itself() {
    let case = Case::folders(&fixture("tiny-sd21"), ".attn2.", Edit::Many);
    let info = patch::open(&case.patch()).unwrap();
    assert_eq!(info.base_sha256, base_sha256(&case.base).unwrap());
    assert_eq!(info.result_sha256, base_sha256(&case.edited).unwrap());
    assert_eq!((info.tensors, info.bytes), (case.summary.tensors, case.summary.bytes));
    assert_eq!(info.metadata["erase.concept"], "star");
    assert!(SafeTensors::deserialize(&fs::read(case.patch()).unwrap()).is_ok(), "any reader of safetensors opens it");
}

/// The message, after making sure that nothing was written.
fn refusal(files: &ModelFiles, patch: &Path, reverse: bool) -> String {
    let tmp = tempfile::tempdir().unwrap();
    let place = match files {
        ModelFiles::Single(_) => tmp.path().join("out.safetensors"),
        _ => tmp.path().to_path_buf(),
    };
    let run = if reverse { patch::reverse } else { patch::apply };
    let error = run(files, patch, &place, &mut Silent).unwrap_err();
    // of a folder, what was written is thrown away with it
    let late =
        ["would not have the hash", "damaged: its change of"].iter().any(|late| error.to_string().contains(late));
    assert!(late || tree(tmp.path()).is_empty(), "{error}");
    error.to_string()
}

#[test]
fn another_model_is_refused_with_what_differs() {
    let case = Case::folders(&fixture("tiny-sd21"), ".attn2.", Edit::Many);
    let says = |message: String, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(message.contains(part), "{message}\nlacks: {part}"));
    };
    let (base, result) = (case.summary.base_sha256.as_str(), case.summary.result_sha256.as_str());
    let other = Tiny::new();
    other.edit("scheduler/scheduler_config.json", "{", "{ ");
    other.put("LICENSE", "mine");
    let files = folder(other.root().join("model"));
    let found = base_sha256(&files).unwrap();
    let parts =
        ["is not the model that the patch was made from", &found, base, "take the model that the patch belongs to"];
    says(refusal(&files, &case.patch(), false), &parts);
    says(refusal(&files, &case.patch(), false), &["(scheduler/scheduler_config.json differs, LICENSE is new)"]);
    says(
        refusal(&files, &case.patch(), true),
        &["is not what the patch makes", &found, result, "README.md is missing"],
    );
    says(refusal(&case.edited, &case.patch(), false), &["is already patched", result, "--reverse gives the base back"]);
    says(
        refusal(&case.base, &case.patch(), true),
        &["is the patch's base, not its result", base, "nothing to reverse"],
    );
    let file = case.tmp.path().join("single.safetensors");
    write_single_file(&hub::demo(), &file, &BTreeMap::new()).unwrap();
    says(
        refusal(&single(&file), &case.patch(), false),
        &["is for a folder in diffusers' layout, but", "a single file"],
    );
    let files = Case::files(&Raw::new());
    says(refusal(&case.base, &files.patch(), false), &["is for a single file, but", "is a folder"]);
    says(refusal(&single(&file), &files.patch(), false), &["is not the model that the patch was made from"]);
    let made = patch::create(&case.base, &single(&file), &case.tmp.path().join("no"), &BTreeMap::new());
    assert!(made.unwrap_err().to_string().contains("between two folders or two single files"));
}

#[test]
fn what_a_patch_cannot_hold_is_refused() {
    let case = Case::folders(&fixture("tiny-sd21"), ".attn2.", Edit::Many);
    let ModelFiles::Folder(root) = &case.edited else { panic!() };
    let good = fs::read(root.join(UNET)).unwrap();
    let refused = |what: &str| {
        let path = case.tmp.path().join("no.safetensors");
        let error = patch::create(&case.base, &case.edited, &path, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(what) && !path.exists(), "{error}\nlacks: {what}");
    };
    let (all, metadata) = raw(&root.join(UNET));
    let name = all.keys().next().unwrap().clone();
    for (dtype, shape, bytes) in [(Dtype::U8, vec![1], vec![1]), (Dtype::F32, vec![1], vec![0; 4])] {
        let mut other = all.clone();
        other.insert(name.clone(), (dtype, shape, bytes));
        write_safetensors(&root.join(UNET), &other, &metadata).unwrap();
        refused(&format!("has the tensor {name}, which"));
    }
    fs::write(root.join(UNET), &good).unwrap();
    fs::write(root.join("vae/a:b.json"), "{}").unwrap();
    refused("with a colon");
    fs::remove_file(root.join("vae/a:b.json")).unwrap();
    fs::write(root.join("vae/config.json"), vec![b' '; (16 << 20) + 1]).unwrap();
    refused("has more than the 16777216 bytes");
}

/// A patch with its header or index replaced.
fn forged(patch: &[u8], change: impl Fn(&mut serde_json::Value, &mut Vec<u8>)) -> Vec<u8> {
    let length = u64::from_le_bytes(patch[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&patch[8..8 + length]).unwrap();
    let mut data = patch[8 + length..].to_vec();
    change(&mut header, &mut data);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn forged_patches_are_refused() {
    let case = Case::folders(&fixture("tiny-sd21"), ".attn2.", Edit::Many);
    let good = fs::read(case.patch()).unwrap();
    let file = case.tmp.path().join("forged.safetensors");
    let says = |bytes: &[u8], part: &str| {
        fs::write(&file, bytes).unwrap();
        let message = refusal(&case.base, &file, false);
        assert!(message.contains(part) && message.contains("forged.safetensors"), "{message}\nlacks: {part}");
    };
    says(&replaced(&good, "erase-concept.patch/1", "erase-concept.patch/2"), "use a newer version");
    says(&replaced(&good, "patch.format", "patch.xormat"), "no patch of this program");
    says(&replaced(&good, "vae/config.json", "../confi/g.json"), "leads outside the model");
    says(&replaced(&good, "vae/config.json", "/ae/config.json"), "leads outside the model");
    says(&replaced(&good, "vae/config.json", "README.md/x.txt"), "is a file and a folder");
    says(
        &replaced(&good, "scheduler/scheduler_config.json", "text_encoder/model.safetensors_"),
        "damaged: its patch.base_sha256",
    );
    says(&replaced(&good, &case.summary.base_sha256, &"0".repeat(64)), "damaged: its patch.base_sha256");
    says(&replaced(&good, &case.summary.result_sha256, &"0".repeat(64)), "damaged: its patch.result_sha256");
    says(&good[..good.len() - 1], "truncated");
    says(&good[..good.len() / 2], "truncated");
    says(b"", "the file is empty");
    says(b"PK\x03\x04....", "a PyTorch pickle");
    let part = format!("{UNET}:");
    let first = |header: &serde_json::Value| {
        header.as_object().unwrap().keys().find(|name| name.starts_with(&part)).unwrap().clone()
    };
    let renamed = |to: &str| {
        forged(&good, |header, _| {
            let name = first(header);
            let entry = header.as_object_mut().unwrap().remove(&name).unwrap();
            header[to] = entry;
        })
    };
    says(&renamed("other:x"), "belongs to no file that changes");
    says(&renamed("x"), "belongs to no file that changes");
    says(&renamed("base:vae/config.json"), "belongs to no file that changes");
    // a change that goes nowhere leaves a tensor as it was
    says(&renamed(&format!("{part}x")), "would not have the hash that the patch promises");
    let typed = forged(&good, |header, _| {
        let name = first(header);
        header[&name]["shape"] = serde_json::json!([1, header[&name]["shape"][0]]);
    });
    says(&typed, "is no row of bytes");
    let longer = forged(&good, |header, data| {
        let last = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
        let (name, entry) = last.max_by_key(|(_, entry)| entry["data_offsets"][1].as_u64()).unwrap();
        let (name, n) = (name.clone(), entry["shape"][0].as_u64().unwrap());
        let end = entry["data_offsets"][1].as_u64().unwrap();
        header[&name]["shape"] = serde_json::json!([n + 1]);
        header[&name]["data_offsets"][1] = (end + 1).into();
        data.push(0);
    });
    says(&longer, "get the patch again");
}

#[test]
fn the_fuzzers_seeds_are_what_they_should_be() {
    let base = erase_concept::fuzzing::patch_base();
    for seed in fs::read_dir(repository("fuzz/corpus/patch")).unwrap() {
        let path = seed.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let found = patch::read_all(&fs::read(&path).unwrap(), &base).map_err(|e| e.to_string());
        match name {
            "folder" | "headers" | "single" => assert_eq!(found, Ok(()), "{name}"),
            "newer" => assert!(found.as_ref().is_err_and(|e| e.contains("newer version")), "{found:?}"),
            "outside" => assert!(found.as_ref().is_err_and(|e| e.contains("leads outside")), "{found:?}"),
            "bomb" | "text-bomb" => assert!(found.as_ref().is_err_and(|e| e.contains("unpack")), "{name}: {found:?}"),
            "cut" => assert!(found.as_ref().is_err_and(|e| e.contains("is cut off")), "{found:?}"),
            "too-many" => assert!(found.as_ref().is_err_and(|e| e.contains("bytes too many")), "{found:?}"),
            other => assert!(found.is_err(), "{other}"),
        }
    }
}

/// Of a folder the parts that were written stay in the folder that is thrown away; of a file there is nothing.
#[test]
fn damages_are_seen_and_leave_no_file() {
    let case = Case::files(&Raw::new());
    let good = fs::read(case.patch()).unwrap();
    let (damaged, out) = (case.tmp.path().join("damaged.safetensors"), case.tmp.path().join("out.safetensors"));
    let before = tree(case.tmp.path()).len() + 1;
    let mut random = Generator::new(4);
    let (mut refused, tries) = (0, 300);
    for _ in 0..tries {
        let mut bytes = good.clone();
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        fs::write(&damaged, &bytes).unwrap();
        match patch::apply(&case.base, &damaged, &out, &mut Silent) {
            Ok(_) => {
                // what is no part of the change: what the patch says of itself
                assert_eq!(sha256_file(&out).unwrap(), case.summary.result_sha256, "byte {at}");
                fs::remove_file(&out).unwrap();
            }
            Err(_) => refused += 1,
        }
        assert_eq!(tree(case.tmp.path()).len(), before, "byte {at} leaves something behind");
    }
    println!("{refused} of {tries} refused");
    assert!(refused > tries * 8 / 10);
}

#[test]
fn the_command_applies_and_reverses() {
    let tiny = Tiny::new();
    tiny.command(&tiny.erase(&["--output", "out"])).assert().success();
    let (base, out) = (folder(tiny.root().join("model")), folder(tiny.root().join("out")));
    patch::create(&base, &out, &tiny.root().join("star.safetensors"), &metadata()).unwrap();
    let assert =
        tiny.command(&["apply", "model", "star.safetensors", "--output", "new/again", "--json"]).assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    let result: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(result["result"]["sha256"], base_sha256(&out).unwrap());
    assert!(content(&folder(tiny.root().join("new/again"))) == content(&out));
    let reverse = ["apply", "new/again", "star.safetensors", "--reverse", "--output", "back"];
    let assert = tiny.command(&reverse).assert().success();
    assert!(String::from_utf8_lossy(&assert.get_output().stdout).contains("the patch's base, as it was: back ("));
    assert!(content(&folder(tiny.root().join("back"))) == content(&base));
    tiny.refused(&reverse, &["back", "pass --overwrite"]);
    tiny.command(&[&reverse[..], &["--overwrite"]].concat()).assert().success();
    let refuse = |args: &[&str], parts: &[&str]| tiny.refused(&[&["apply"], args, &["--output", "o"]].concat(), parts);
    refuse(&["out", "star.safetensors"], &["out/: is already patched"]);
    refuse(&["model", "star.safetensors", "--reverse"], &["is the patch's base, not its result"]);
    refuse(&["demo", "star.safetensors"], &["is not the model that the patch was made from"]);
    refuse(&["star.safetensors", "model"], &["name the model first, and then the patch"]);
    refuse(&["model", "model"], &["model: is a folder; apply takes a file"]);
    refuse(&["model", "nothing"], &["nothing: No such file"]);
    refuse(&["model", "model/vae/config.json"], &["config.json: "]);
    refuse(
        &["model", "model/vae/diffusion_pytorch_model.safetensors"],
        &["is neither a patch nor a LoRA (it is this: VAE"],
    );
    refuse(&["nowhere", "star.safetensors"], &["error: \"nowhere\" is not there; a model is either"]);
    let over = ["apply", "model", "star.safetensors", "--overwrite", "--output", "model"];
    tiny.refused(&over, &["--output model holds what MODEL names"]);
    let inspected = tiny.command(&["inspect", "star.safetensors"]).assert().success();
    let text = String::from_utf8_lossy(&inspected.get_output().stdout).into_owned();
    for part in ["patch of this program for a folder in diffusers' layout: ", " changed, reversible", "erase.concept"] {
        assert!(text.contains(part), "{text}\nlacks: {part}");
    }
}

#[test]
fn the_command_makes_a_file_of_a_single_file() {
    let case = Case::files(&Raw::new());
    let tiny = Tiny::new();
    for name in ["base.safetensors", "edited.safetensors", "patch.safetensors"] {
        fs::copy(case.tmp.path().join(name), tiny.root().join(name)).unwrap();
    }
    let apply = ["apply", "base.safetensors", "patch.safetensors", "--output", "new.safetensors"];
    tiny.command(&apply).assert().success();
    let read = |name: &str| fs::read(tiny.root().join(name)).unwrap();
    assert!(read("new.safetensors") == read("edited.safetensors"));
    tiny.refused(&apply, &["new.safetensors: is there already"]);
    let left = tiny.root().join(".x.partial-4194305-abc");
    fs::write(&left, "what a killed process left").unwrap();
    tiny.command(&[&apply[..], &["--overwrite"]].concat()).assert().success();
    assert!(!left.exists());
    let to =
        |output: &'static str| ["apply", "base.safetensors", "patch.safetensors", "--overwrite", "--output", output];
    tiny.refused(&to("model"), &["model: is a folder; what is made of a single file is one too"]);
    tiny.refused(&to("no/x"), &["no: is no folder; make it first"]);
    tiny.refused(&to("base.safetensors"), &["--output base.safetensors holds what MODEL names"]);
    tiny.refused(&to("patch.safetensors"), &["--output patch.safetensors holds what PATCH names"]);
    assert_eq!(sha256_hex(&read("new.safetensors")), case.summary.result_sha256);
}
