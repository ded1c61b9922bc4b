//! Weights in, weights out: round trips, byte identity, and every way a file can be wrong.

mod common;

use candle_core::{Device, Tensor};
use common::fixture;
use erase_concept::checkpoint::{
    ModelFiles, UNET_WEIGHTS, base_sha256, load_tensors, save_edited, sha256_file, sha256_hex, write_safetensors,
};
use erase_concept::hub;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const INDEX: &str = "unet/diffusion_pytorch_model.safetensors.index.json";

/// A model folder with a UNet of five tensors of all kinds, and files that do and do not belong to it.
struct Model(tempfile::TempDir);

impl Model {
    fn new() -> Self {
        let model = Self(tempfile::tempdir().expect("tempdir"));
        let index = r#"{"_class_name": "StableDiffusionPipeline", "safety_checker": [null, null],
                        "unet": ["diffusers", "UNet2DConditionModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}"#;
        model.put("model_index.json", index.as_bytes());
        model.put("unet/config.json", b"{}");
        model.put("tokenizer/merges.txt", b"#version\n");
        model.put("tokenizer/nested/vocab.json", b"{}");
        model.put("README.md", b"card");
        model.put("LICENSE.txt", b"MIT");
        write_safetensors(&model.path(UNET_WEIGHTS), &tensors(), &strings(&[("origin", "test")])).expect("weights");
        model
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.0.path().join(rel)
    }

    fn put(&self, rel: &str, bytes: &[u8]) {
        let path = self.path(rel);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, bytes).expect("file");
    }

    fn files(&self) -> ModelFiles {
        ModelFiles::Folder(self.0.path().to_path_buf())
    }

    /// Splits the UNet into two shards with an index.
    fn shard(&self) {
        fs::remove_file(self.path(UNET_WEIGHTS)).expect("the one file");
        let mut map = BTreeMap::new();
        for (i, part) in [["a.f16", "b.bf16", "c.f32"].as_slice(), &["d.ids", "e.scalar"]].iter().enumerate() {
            let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i + 1);
            let shard = tensors().into_iter().filter(|(name, _)| part.contains(&name.as_str())).collect();
            part.iter().for_each(|tensor| drop(map.insert(*tensor, name.clone())));
            write_safetensors(&self.path(&format!("unet/{name}")), &shard, &strings(&[])).expect("shard");
        }
        self.put(INDEX, serde_json::json!({"metadata": {}, "weight_map": map}).to_string().as_bytes());
    }

    /// The message with which the UNet's weights are refused.
    fn refused(&self) -> String {
        load_tensors(&self.files(), UNET_WEIGHTS).err().expect("should be refused").to_string()
    }
}

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn tensors() -> Tensors {
    let halves: Vec<u8> = [1.0, -2.5, 65504.0, 6e-8].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let brains: Vec<u8> = [1.0, -3e38].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let floats: Vec<u8> = [0.1f32, -7.0, 1e-30].iter().flat_map(|x| x.to_le_bytes()).collect();
    let ids: Vec<u8> = (0..3i64).flat_map(i64::to_le_bytes).collect();
    BTreeMap::from([
        ("a.f16".into(), (Dtype::F16, vec![2, 2], halves)),
        ("b.bf16".into(), (Dtype::BF16, vec![2], brains)),
        ("c.f32".into(), (Dtype::F32, vec![3, 1], floats)),
        ("d.ids".into(), (Dtype::I64, vec![1, 3], ids)),
        ("e.scalar".into(), (Dtype::F16, vec![], f16::from_f32(0.5).to_le_bytes().to_vec())),
    ])
}

fn parsed(path: &Path) -> (Tensors, BTreeMap<String, String>) {
    let bytes = fs::read(path).expect("file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let tensors = tensors.into_iter().map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
    (tensors.collect(), header.metadata().clone().unwrap_or_default().into_iter().collect())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32")
}

#[test]
fn written_bytes_are_reproducible_and_those_of_the_reference_writer() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let (one, two) = (tmp.path().join("one"), tmp.path().join("two"));
    let many: BTreeMap<_, _> = (0..20).map(|i| (format!("key {i}"), format!("\"välue\"\n{i}"))).collect();
    write_safetensors(&one, &tensors(), &many).expect("write");
    write_safetensors(&two, &tensors(), &many).expect("write");
    assert_eq!(fs::read(&one).expect("one"), fs::read(&two).expect("two"));
    assert_eq!(parsed(&one), (tensors(), many));

    write_safetensors(&one, &tensors(), &strings(&[("format", "pt")])).expect("write");
    let all = tensors();
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("view"))
    });
    let reference = safetensors::serialize(views, Some(strings(&[("format", "pt")]).into_iter().collect()));
    assert_eq!(fs::read(&one).expect("one"), reference.expect("reference"));
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_not_written() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let wrong = BTreeMap::from([("w".to_string(), (Dtype::F16, vec![3], vec![0u8; 4]))]);
    let message = write_safetensors(&tmp.path().join("x"), &wrong, &strings(&[])).expect_err("refused").to_string();
    assert!(message.contains("w: 4 bytes do not make [3] of F16"), "{message}");
    assert_eq!(fs::read_dir(tmp.path()).expect("folder").count(), 0);
}

#[test]
fn every_type_is_read_as_f32_and_reported() {
    let model = Model::new();
    let read = load_tensors(&model.files(), UNET_WEIGHTS).expect("weights");
    assert_eq!(values(&read.tensors["a.f16"]), [1.0, -2.5, 65504.0, 5.960_464_5e-8]);
    assert_eq!(values(&read.tensors["b.bf16"]), [1.0, bf16::from_f32(-3e38).to_f32()]);
    assert_eq!(values(&read.tensors["c.f32"]), [0.1, -7.0, 1e-30]);
    assert_eq!(read.tensors["c.f32"].dims(), [3, 1]);
    assert_eq!(read.tensors["e.scalar"].dims(), [0usize; 0]);
    assert!(!read.tensors.contains_key("d.ids"), "integers are not converted");
    let dtypes: Vec<_> = read.dtypes.values().copied().collect();
    assert_eq!(dtypes, [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::I64, Dtype::F16]);
}

#[test]
fn a_large_tensor_is_converted_element_by_element_at_any_alignment() {
    let model = Model::new();
    let n = 100_003; // several chunks, and a rest
    let expected: Vec<f16> = (0..n).map(|i| f16::from_f32((i as f32).sin() * 10.0)).collect();
    let bytes: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
    let one =
        BTreeMap::from([("odd".into(), (Dtype::U8, vec![1], vec![7])), ("w".into(), (Dtype::F16, vec![n], bytes))]);
    write_safetensors(&model.path(UNET_WEIGHTS), &one, &strings(&[])).expect("write");
    let read = load_tensors(&model.files(), UNET_WEIGHTS).expect("weights");
    let expected: Vec<f32> = expected.iter().map(|x| x.to_f32()).collect();
    assert_eq!(values(&read.tensors["w"]), expected);
}

#[test]
fn the_demo_and_candle_read_the_same() {
    let ours = load_tensors(&hub::demo(), UNET_WEIGHTS).expect("demo");
    let theirs = common::tensors(common::repository("weights/demo").join(UNET_WEIGHTS));
    assert_eq!(ours.tensors.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, tensor) in &theirs {
        assert_eq!(values(&ours.tensors[name]), values(tensor), "{name}");
    }
}

#[test]
fn shards_are_read_as_one() {
    let (whole, sharded) = (Model::new(), Model::new());
    sharded.shard();
    let (whole, parts) = (load_tensors(&whole.files(), UNET_WEIGHTS), load_tensors(&sharded.files(), UNET_WEIGHTS));
    let (whole, parts) = (whole.expect("whole"), parts.expect("shards"));
    assert_eq!(whole.dtypes, parts.dtypes);
    whole.tensors.iter().for_each(|(name, t)| assert_eq!(values(t), values(&parts.tensors[name])));
    assert_eq!(parts.files.name(), INDEX);
}

#[test]
fn broken_sets_of_shards_are_refused() {
    let model = Model::new();
    model.shard();
    let good = fs::read_to_string(model.path(INDEX)).expect("index");
    let cases = [
        (good.replace("00002-of-00002", "00001-of-00002"), "says that d.ids is in unet/"),
        (good.replace("00002-of", "00003-of"), "00003-of-00002.safetensors: no such file"),
        (good.replace("diffusion_pytorch_model-00002", "../../secret"), "only safetensors files beside the index"),
        ("[]".into(), "not an index of shards"),
        (r#"{"weight_map": {}}"#.into(), "names no shard"),
    ];
    for (index, expected) in cases {
        model.put(INDEX, index.as_bytes());
        let message = model.refused();
        assert!(message.contains(expected), "{message}");
    }
    model.put(INDEX, good.as_bytes());
    let (first, second) =
        ("unet/diffusion_pytorch_model-00001-of-00002", "unet/diffusion_pytorch_model-00002-of-00002");
    let copied = fs::copy(model.path(&format!("{first}.safetensors")), model.path(&format!("{second}.safetensors")));
    copied.expect("copy");
    let message = model.refused();
    assert!(message.contains("a.f16 is also in"), "{message}");
}

#[test]
fn the_fp16_variant_is_read_where_the_plain_file_is_absent() {
    let model = Model::new();
    let variant = "unet/diffusion_pytorch_model.fp16.safetensors";
    fs::rename(model.path(UNET_WEIGHTS), model.path(variant)).expect("rename");
    let read = load_tensors(&model.files(), UNET_WEIGHTS).expect("variant");
    assert_eq!((read.tensors.len(), read.files.name()), (4, variant));
}

#[test]
fn each_malformed_file_is_named_with_what_it_is() {
    let model = Model::new();
    let good = fs::read(model.path(UNET_WEIGHTS)).expect("weights");
    let mut more = good.clone();
    more.push(0);
    let mut long_header = good.clone();
    long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut bad_json = good.clone();
    bad_json[8] = b'?';
    let f8 = b"\x3b\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}} \0";
    let cases: [(&[u8], &str); 11] = [
        (b"", "the file is empty; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "an HTML page instead of the file"),
        (b"PK\x03\x04 a zip of pickles", "a PyTorch pickle"),
        (b"abc", "truncated: 3 bytes"),
        (&good[..100], "truncated: the header should have"),
        (&good[..good.len() - 1], "truncated: the tensors should have 50 bytes, but only 49 are there"),
        (&more, "does not end where its tensors end"),
        (&long_header, "not a safetensors file"),
        (&bad_json, "a broken safetensors header"),
        (f8, "w is stored as F8_E4M3"),
    ];
    for (bytes, expected) in cases {
        model.put(UNET_WEIGHTS, bytes);
        let message = model.refused();
        let path = model.path(UNET_WEIGHTS).display().to_string();
        assert!(message.contains(expected) && message.starts_with(&path), "{message}\nlacks {expected}");
    }
    let lfs = "version https://git-lfs.github.com/spec/v1\n";
    model.put("unet/config.json", lfs.as_bytes());
    let message = model.files().read("unet/config.json").expect_err("a pointer").to_string();
    assert!(message.contains("git lfs pull"), "{message}");
}

#[test]
fn missing_weights_say_what_is_there_instead() {
    let model = Model::new();
    fs::remove_file(model.path(UNET_WEIGHTS)).expect("remove");
    let message = model.refused();
    assert!(message.contains("no such file") && message.contains("download the weights"), "{message}");
    model.put("unet/diffusion_pytorch_model.bin", b"pickle");
    let message = model.refused();
    assert!(message.contains("only diffusion_pytorch_model.bin, but safetensors are needed"), "{message}");
    model.put("text_encoder/pytorch_model.bin", b"pickle");
    let message = load_tensors(&model.files(), "text_encoder/model.safetensors").err().expect("refused").to_string();
    assert!(message.contains("only pytorch_model.bin"), "{message}");
    let message = model.files().read("vae/config.json").expect_err("absent").to_string();
    assert!(message.contains("vae/config.json: no such file"), "{message}");
    assert!(model.files().try_read("vae/config.json").expect("no error").is_none());
    assert!(model.files().try_read("../secret").is_err());
}

#[test]
fn nan_and_infinity_are_refused_by_name() {
    for (name, dtype, bytes) in [
        ("a.f16", Dtype::F16, f16::NAN.to_le_bytes().to_vec()),
        ("b.bf16", Dtype::BF16, bf16::NEG_INFINITY.to_le_bytes().to_vec()),
        ("c.f32", Dtype::F32, f32::INFINITY.to_le_bytes().to_vec()),
        ("f.f64", Dtype::F64, 1e300f64.to_le_bytes().to_vec()),
    ] {
        let model = Model::new();
        let mut all = tensors();
        all.insert(name.into(), (dtype, vec![1], bytes));
        write_safetensors(&model.path(UNET_WEIGHTS), &all, &strings(&[])).expect("write");
        let message = model.refused();
        assert!(message.contains(&format!("{name} has a value that is NaN or infinite")), "{message}");
    }
}

#[test]
fn untouched_files_are_identical_and_a_changed_tensor_keeps_its_type() {
    let model = Model::new();
    let left_out = [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.onnx",
        "v1-5-pruned.safetensors",
        "vae_old/x",
        "safety_checker/model.safetensors",
    ];
    left_out.iter().for_each(|rel| model.put(rel, b"the concept"));
    model.put(".git/config", b"hidden");
    model.put("unet/.cache", b"hidden");
    let into = tempfile::tempdir().expect("tempdir");
    // 2049 lies between two halves and goes to the even one, 2048; 257 likewise for bfloat16
    let changed = BTreeMap::from([
        ("a.f16".to_string(), Tensor::new(&[[2049f32, 2051.0], [1.0, 0.1]], &Device::Cpu).expect("tensor")),
        ("b.bf16".to_string(), Tensor::new(&[257f32, 259.0], &Device::Cpu).expect("tensor")),
        ("c.f32".to_string(), Tensor::new(&[[1e-40f32], [0.1], [3.0]], &Device::Cpu).expect("tensor")),
    ]);
    let metadata = strings(&[("erase.method", "scissorhands"), ("erase.seed", "0")]);
    let left = save_edited(&model.files(), &changed, into.path(), &metadata).expect("save");
    let mut expected: Vec<_> = left_out[..4].to_vec();
    expected.extend(["safety_checker/", "vae_old/"]);
    expected.sort();
    assert_eq!(left, expected);

    let saved = ModelFiles::Folder(into.path().to_path_buf());
    assert_eq!(saved.inventory().expect("list").left_out, Vec::<String>::new());
    assert_eq!(saved.list().expect("list"), model.files().list().expect("list"));
    for rel in saved.list().expect("list").iter().filter(|rel| *rel != UNET_WEIGHTS) {
        assert_eq!(fs::read(into.path().join(rel)).expect(rel), fs::read(model.path(rel)).expect(rel), "{rel}");
    }
    assert!(!into.path().join(".git").exists() && !into.path().join("unet/.cache").exists());

    let (after, header) = parsed(&into.path().join(UNET_WEIGHTS));
    let halves = [2048.0, 2052.0, 1.0, 0.1].map(f16::from_f32);
    let brains = [256.0, 260.0].map(bf16::from_f32);
    assert_eq!(after["a.f16"], (Dtype::F16, vec![2, 2], halves.iter().flat_map(|x| x.to_le_bytes()).collect()));
    assert_eq!(after["b.bf16"], (Dtype::BF16, vec![2], brains.iter().flat_map(|x| x.to_le_bytes()).collect()));
    let floats: Vec<u8> = [1e-40f32, 0.1, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(after["c.f32"], (Dtype::F32, vec![3, 1], floats));
    assert_eq!((&after["d.ids"], &after["e.scalar"]), (&tensors()["d.ids"], &tensors()["e.scalar"]));
    let mut expected = metadata;
    expected.extend(strings(&[("format", "pt"), ("origin", "test")]));
    assert_eq!(header, expected);
}

#[test]
fn of_shards_only_the_one_with_the_change_is_rewritten() {
    let model = Model::new();
    model.shard();
    let into = tempfile::tempdir().expect("tempdir");
    let changed = BTreeMap::from([("e.scalar".to_string(), Tensor::new(0.25f32, &Device::Cpu).expect("tensor"))]);
    let left = save_edited(&model.files(), &changed, into.path(), &strings(&[("erase.seed", "1")])).expect("save");
    assert_eq!(left, Vec::<String>::new());
    let files = model.files().list().expect("list");
    let same = |rel: &&String| fs::read(into.path().join(rel)).expect(rel) == fs::read(model.path(rel)).expect(rel);
    let differing: Vec<_> = files.iter().filter(|rel| !same(rel)).collect();
    assert_eq!(differing, ["unet/diffusion_pytorch_model-00002-of-00002.safetensors"]);
    let read = load_tensors(&ModelFiles::Folder(into.path().to_path_buf()), UNET_WEIGHTS).expect("saved");
    assert_eq!(values(&read.tensors["e.scalar"]), [0.25]);
}

#[test]
fn edits_that_cannot_be_stored_are_refused() {
    let model = Model::new();
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).expect("tensor");
    for (name, tensor, expected) in [
        ("absent", tensor(&[1.0]), "has no tensor named absent"),
        ("b.bf16", tensor(&[1.0]), "b.bf16 is [2], but the edited tensor is [1]"),
        ("b.bf16", tensor(&[1.0, f32::NAN]), "b.bf16 has a value that is NaN"),
        ("b.bf16", tensor(&[1.0, f32::MAX]), "b.bf16 has a value too large for BF16"),
        (
            "a.f16",
            tensor(&[0.0, 0.0, 0.0, 65520.0]).reshape((2, 2)).expect("shape"),
            "a.f16 has a value too large for F16",
        ),
        ("d.ids", tensor(&[0.0; 3]).reshape((1, 3)).expect("shape"), "d.ids is stored as I64, which cannot be edited"),
    ] {
        let into = tempfile::tempdir().expect("tempdir");
        let changed = BTreeMap::from([(name.to_string(), tensor)]);
        let result = save_edited(&model.files(), &changed, into.path(), &strings(&[]));
        let message = result.expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_embedded_demo_is_saved_as_the_folder_it_came_from() {
    let into = tempfile::tempdir().expect("tempdir");
    let left = save_edited(&hub::demo(), &BTreeMap::new(), into.path(), &strings(&[])).expect("save");
    assert_eq!(left, Vec::<String>::new());
    for rel in hub::demo().list().expect("list") {
        let original = common::repository("weights/demo").join(&rel);
        assert!(fs::read(into.path().join(&rel)).expect("saved") == fs::read(original).expect("original"), "{rel}");
    }
}

#[test]
fn the_model_hash_is_what_its_documentation_says() {
    let model = Model::new();
    let mut lines = String::new();
    for rel in [
        "LICENSE.txt",
        "README.md",
        "model_index.json",
        "tokenizer/merges.txt",
        "tokenizer/nested/vocab.json",
        "unet/config.json",
        UNET_WEIGHTS,
    ] {
        lines.push_str(&format!("{rel}\0{}\n", sha256_file(model.path(rel)).expect("hash")));
    }
    assert_eq!(base_sha256(&model.files()).expect("hash"), sha256_hex(lines.as_bytes()));
    assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let before = base_sha256(&model.files()).expect("hash");
    model.put("unet/diffusion_pytorch_model.bin", b"not part of the model");
    assert_eq!(base_sha256(&model.files()).expect("hash"), before);
    model.put("unet/config.json", b"{ }");
    assert_ne!(base_sha256(&model.files()).expect("hash"), before);
}

#[test]
fn a_model_index_cannot_lead_outside_its_folder() {
    let model = Model::new();
    model.put("model_index.json", br#"{"../etc": ["a", "b"]}"#);
    let message = model.files().list().expect_err("refused").to_string();
    assert!(message.contains("is not a component's name"), "{message}");
    model.put("model_index.json", b"nonsense");
    let message = model.files().list().expect_err("refused").to_string();
    assert!(message.contains("model_index.json: not a JSON object"), "{message}");
}

#[test]
fn a_models_name_is_resolved_or_the_message_says_what_is_accepted() {
    assert_eq!(hub::resolve("demo").expect("demo"), hub::demo());
    let folder = fixture("tiny-sd21");
    assert_eq!(hub::resolve(&folder.display().to_string()).expect("a folder"), ModelFiles::Folder(folder));
    let readme = common::repository("tests/README.md").display().to_string();
    let message = hub::resolve(&readme).expect_err("no model").to_string();
    assert!(message.contains("tests/README.md: not a safetensors file"), "{message}");
    for (name, expected) in [
        (fixture("goldens").display().to_string(), "without a model_index.json"),
        ("Demo".into(), "did you mean \"demo\"?"),
        ("dmeo".into(), "did you mean \"demo\"?"),
        ("demos".into(), "did you mean \"demo\"?"),
        ("a/b/c".into(), "\"a/b/c\" is not there; a model is either"),
        ("/no/such/place".into(), "\"/no/such/place\" is not there; a model is either \"demo\""),
        ("".into(), "is not there"),
    ] {
        let error = hub::resolve(&name).expect_err(&name);
        let message = error.to_string();
        assert!(matches!(error, erase_concept::Error::Usage(_)), "{name}");
        assert!(message.contains(expected) && message.contains("model_index.json), or a single file"), "{message}");
    }
    for name in ["memo", "mode", "other"] {
        let message = hub::resolve(name).expect_err(name).to_string();
        assert_eq!(message.contains("did you mean"), name == "memo", "{message}");
    }
}
