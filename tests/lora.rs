//! LoRAs: kohya's names and shapes, what is held and what is lost, there and back, and files that are damaged or of another make.
//!
//! `cargo test --release --test lora -- --ignored` writes what `tests/diffusers/check_outputs.py` looks at, and measures.
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{Tiny, UNET};
use common::{Raw, fixture, original, raw, repository};
use erase_concept::audit::to_images;
use erase_concept::checkpoint::lora::{Options, Rank, Summary, apply, create, text_encoder_name, unet_names};
use erase_concept::checkpoint::single_file::{Architecture, write_single_file};
use erase_concept::checkpoint::{ModelFiles, SingleFile, load_model, save_edited, write_safetensors};
use erase_concept::diffusion::{Generator, Sampler};
use erase_concept::hub;
use erase_concept::progress::{Event, Progress, Silent};
use erase_concept::sd::SampleOptions;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

type Values = BTreeMap<String, candle_core::Tensor>;

fn values(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A model and an edited copy of it, in a folder of their own.
struct Pair {
    folder: tempfile::TempDir,
    base: ModelFiles,
    /// The UNet's tensors in the base.
    old: Values,
}

impl Pair {
    /// `edit` is given each tensor's name and values; those that it changes are saved.
    fn new(model: &str, edit: impl Fn(&str, &[usize], &mut [f32])) -> Self {
        let base = match model {
            "demo" => hub::demo(),
            fixture_name => ModelFiles::Folder(fixture(fixture_name)),
        };
        let root = if model == "demo" { repository("weights/demo") } else { fixture(model) };
        let old = common::tensors(root.join(UNET));
        let pair = Self { folder: tempfile::tempdir().unwrap(), base, old };
        let mut changed = BTreeMap::new();
        for (name, tensor) in &pair.old {
            let mut now = values(tensor);
            edit(name, tensor.dims(), &mut now);
            if now != values(tensor) {
                changed
                    .insert(name.clone(), candle_core::Tensor::from_vec(now, tensor.dims(), tensor.device()).unwrap());
            }
        }
        pair.save(&changed, "edited");
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The base with these tensors, in a folder of this name.
    fn save(&self, changed: &Values, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        save_edited(&self.base, changed, &self.path(name), &BTreeMap::new()).unwrap();
    }

    fn model(&self, name: &str) -> ModelFiles {
        ModelFiles::Folder(self.path(name))
    }

    /// The UNet's tensors in the edited model.
    fn new_values(&self) -> Values {
        common::tensors(self.path("edited").join(UNET))
    }

    fn try_create(&self, options: &Options) -> erase_concept::Result<Summary> {
        let path = self.path("lora.safetensors");
        create(&self.base, &self.model("edited"), &path, options, &BTreeMap::new(), &mut Silent)
    }

    fn create(&self, options: &Options) -> (Summary, PathBuf) {
        (self.try_create(options).unwrap(), self.path("lora.safetensors"))
    }

    /// The change of a parameter, row by row.
    fn change(&self, name: &str) -> Vec<f64> {
        let (old, new) = (values(&self.old[name]), values(&self.new_values()[name]));
        old.iter().zip(new).map(|(a, b)| f64::from(b) - f64::from(*a)).collect()
    }
}

fn fixed(rank: usize) -> Options {
    Options { rank: Rank::Fixed(rank), ..Options::default() }
}

fn alphas(tensors: &Raw) -> Vec<f32> {
    let alpha = |(name, (_, _, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        name.ends_with(".alpha").then(|| f32::from_le_bytes(bytes[..].try_into().unwrap()))
    };
    tensors.iter().filter_map(alpha).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// What an erase job does: attention to the text (and some convolutions) moved a little, one entry in twenty drawn anew.
fn as_if_erased(name: &str, _: &[usize], values: &mut [f32]) {
    if name.ends_with("weight")
        && (name.contains("attn2.to_") || name.contains("conv_shortcut") || name.ends_with("0.conv1.weight"))
    {
        let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut generator = Generator::new(seed);
        let size = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
        let noise = generator.randn(values.len());
        for (value, noise) in values.iter_mut().zip(noise) {
            *value = if generator.below(20) == 0 { size * noise } else { *value + 0.02 * size * noise };
        }
    }
}

fn pictures(model: &ModelFiles) -> Vec<u8> {
    let model = load_model(model).unwrap().model;
    let options = SampleOptions { sampler: Sampler::Ddim, steps: 8, guidance_scale: 4.0, eta: 0.0, size: None };
    let prompts = ["a red star", "a blue circle", "two green rings", "a photo"];
    let latents = model.sample_latents(&model.unet().unwrap(), &options, &prompts, &[""; 4], &[0, 1, 2, 3]).unwrap();
    let images = to_images(&model.decode_latents(&latents).unwrap()).unwrap();
    images.into_iter().flat_map(image::RgbImage::into_raw).collect()
}

/// The lines of `names.tsv.gz` for each model, without the last column.
fn kohya() -> BTreeMap<String, Vec<[String; 5]>> {
    let mut text = String::new();
    let file = std::fs::File::open(fixture("lora/names.tsv.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let (mut models, mut model) = (BTreeMap::<_, Vec<_>>::new(), String::new());
    for line in text.lines() {
        let fields: Vec<String> = line.split('\t').map(ToString::to_string).collect();
        match &fields[..] {
            [_, name] => model.clone_from(name),
            fields => models.entry(model.clone()).or_default().push(fields[..5].to_vec().try_into().unwrap()),
        }
    }
    models
}

#[test]
fn every_layer_of_full_size_models_has_kohyas_name() {
    let expected = kohya();
    let mut checked = Vec::new();
    for model in original::models() {
        let networks = model.networks();
        let names = unet_names(networks.architecture, &networks.unet);
        for [component, module, name, ..] in &expected[&model.name] {
            let ours = match component.as_str() {
                "unet" => names[module].clone(),
                component => text_encoder_name(networks.architecture, component == "text_encoder_2", module),
            };
            assert_eq!(&ours, name, "{}: {module}", model.name);
            let with_root = format!("text_model.{module}");
            if component != "unet" {
                assert_eq!(text_encoder_name(networks.architecture, component == "text_encoder_2", &with_root), ours);
            }
        }
        let distinct: std::collections::BTreeSet<_> = names.values().collect();
        assert_eq!(distinct.len(), names.len(), "{}: two layers of one name", model.name);
        checked.push((model.name.clone(), expected[&model.name].len()));
    }
    assert_eq!(checked, [("sd1", 354), ("sd2", 420), ("sdxl", 1058)].map(|(name, n)| (name.to_string(), n)));
}

#[test]
fn a_lora_of_every_layer_has_kohyas_tensors_and_shapes() {
    let pair =
        Pair::new("demo", |_, _, values| values.iter_mut().enumerate().for_each(|(i, x)| *x += (i % 7) as f32 / 64.0));
    let (summary, path) = pair.create(&fixed(3));
    let (tensors, metadata) = raw(&path);
    let mut expected = BTreeMap::new();
    let dims = |text: &str, rank: usize| -> Vec<usize> {
        text.split('x').map(|dim| if dim == "r" { rank } else { dim.parse().unwrap() }).collect()
    };
    for [_, module, name, up, down] in &kohya()["demo"] {
        let layer = summary.layers.iter().find(|layer| layer.parameter == format!("{module}.weight")).expect(module);
        assert_eq!((&layer.name, layer.rank <= 3), (name, true));
        expected.insert(format!("{name}.lora_up.weight"), (Dtype::F32, dims(up, layer.rank)));
        expected.insert(format!("{name}.lora_down.weight"), (Dtype::F32, dims(down, layer.rank)));
        expected.insert(format!("{name}.alpha"), (Dtype::F32, vec![]));
    }
    let found: BTreeMap<_, _> =
        tensors.iter().map(|(name, (dtype, shape, _))| (name.clone(), (*dtype, shape.clone()))).collect();
    assert_eq!(found, expected);
    let alphas = alphas(&tensors);
    assert!(alphas.len() == 133 && alphas.iter().all(|alpha| *alpha == 3.0), "{alphas:?}");
    // biases and norms changed too
    assert_eq!(summary.layers.len() + summary.not_held.len(), pair.old.len());
    let parameters: usize = tensors.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!(summary.parameters, parameters);
    let unheld: Vec<String> = serde_json::from_str(&metadata["erase.lora_not_held"]).unwrap();
    assert!(unheld.contains(&"conv_in.bias".to_string()) && unheld.len() == summary.not_held.len());
}

#[test]
fn a_full_lora_makes_the_edited_model_and_its_pictures() {
    let pair = Pair::new("demo", as_if_erased);
    let expected = pictures(&pair.model("edited"));
    let far = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(far(&pictures(&pair.base), &expected) > 50, "the edit must show");
    for (options, folder) in [(Options::default(), "full"), (Options { half: true, ..Options::default() }, "half")] {
        let (summary, path) = pair.create(&options);
        println!("{folder}: {}", summary.line());
        assert!(summary.residual < if options.half { 1e-3 } else { 1e-6 }, "{}", summary.residual);
        assert!(summary.layers.iter().all(|layer| layer.residual < 10.0 * summary.residual));
        assert_eq!(summary.ranks(), (64, 128));
        assert!(alphas(&raw(&path).0).iter().all(|alpha| *alpha == 128.0), "diffusers misreads others");
        let changed = apply(&pair.base, &path, 1.0).unwrap();
        assert_eq!(changed.len(), 43);
        pair.save(&changed, folder);
        let far = far(&pictures(&pair.model(folder)), &expected);
        println!("{folder}: pictures differ by at most {far} of 255");
        assert!(far <= 2, "pictures differ by {far} of 255");
        if !options.half {
            // the demo's weights have 16 bits
            assert_eq!(raw(&pair.path(folder).join(UNET)).0, raw(&pair.path("edited").join(UNET)).0);
        }
    }
    // what a single file is read as is what its folder is
    let single = pair.path("demo.safetensors");
    write_single_file(&pair.base, &single, &BTreeMap::new()).unwrap();
    let single = ModelFiles::Single(Arc::new(SingleFile::open(&single).unwrap()));
    let path = pair.path("lora.safetensors");
    let before = pair.create(&Options::default()).1;
    let before = std::fs::read(before).unwrap();
    create(&single, &pair.model("edited"), &path, &Options::default(), &BTreeMap::new(), &mut Silent).unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(apply(&single, &path, 1.0).unwrap().len(), 43);
}

#[test]
fn a_full_lora_is_exact_to_the_rounding_of_f32_for_every_kind_of_model() {
    for (model, name) in [
        ("tiny-sd21", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"),
        ("tiny-sdxl", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"),
    ] {
        let pair = Pair::new(model, as_if_erased);
        let (summary, path) = pair.create(&Options::default());
        assert!(summary.layers.iter().any(|layer| layer.name == name), "{model}: {}", summary.table());
        let (found, expected) = (apply(&pair.base, &path, 1.0).unwrap(), pair.new_values());
        for (parameter, found) in &found {
            let expected: Vec<f64> = values(&expected[parameter]).into_iter().map(f64::from).collect();
            let off: Vec<f64> = values(found).iter().zip(&expected).map(|(a, b)| f64::from(*a) - b).collect();
            let relative = norm(&off) / norm(&expected);
            assert!(relative < 1.2e-7, "{model} {parameter}: {relative}");
        }
        assert_eq!(found.len(), summary.layers.len());
    }
}

#[test]
fn what_a_low_rank_loses_is_the_tail_of_the_singular_values() {
    let pair = Pair::new("demo", as_if_erased);
    let (summary, path) = pair.create(&fixed(4));
    let (mut all, mut lost) = (0.0, 0.0);
    for layer in &summary.layers {
        let rows = pair.old[&layer.parameter].dims()[0];
        let change = pair.change(&layer.parameter);
        // another library's decomposition
        let matrix = nalgebra::DMatrix::from_row_slice(rows, change.len() / rows, &change);
        let mut squares: Vec<f64> = matrix.singular_values().iter().map(|s| s * s).collect();
        squares.sort_by(|a, b| b.total_cmp(a));
        let (sum, tail): (f64, f64) = (squares.iter().sum(), squares[4..].iter().sum());
        let expected = (tail / sum).sqrt();
        assert_eq!(
            (layer.rank, (layer.change - sum.sqrt()).abs() < 1e-9 * sum.sqrt()),
            (4, true),
            "{}",
            layer.parameter
        );
        assert!((layer.residual - expected).abs() < 1e-6, "{}: {} is not {expected}", layer.parameter, layer.residual);
        (all, lost) = (all + sum, lost + tail);
    }
    assert!((summary.residual - (lost / all).sqrt()).abs() < 1e-6 && summary.residual > 0.5, "{}", summary.residual);
    // and that is what is missing from the model
    let applied = apply(&pair.base, &path, 1.0).unwrap();
    let new = pair.new_values();
    let missing = |(name, found): (&String, &candle_core::Tensor)| {
        let off = values(found).into_iter().zip(values(&new[name])).map(|(a, b)| f64::from(a) - f64::from(b));
        off.map(|x| x * x).sum::<f64>()
    };
    let missing: f64 = applied.iter().map(missing).sum();
    assert!((missing / lost - 1.0).abs() < 1e-5, "{missing} is not {lost}");
    let table = summary.table();
    assert_eq!((table.lines().count(), summary.layers.len()), (43 + 2, 43));
    assert!(table.contains("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k  "), "{table}");
}

#[test]
fn an_edit_of_low_rank_is_held_whole_by_as_many_vectors() {
    // weights and changes in steps that f32 adds without rounding
    let step = 1.0 / 4096.0;
    let pair = Pair::new("tiny-sd21", |name, shape, values| {
        if name.ends_with("attn2.to_v.weight") || name.ends_with("0.conv2.weight") {
            let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
            for (i, value) in values.iter_mut().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let change =
                    (row % 5) as f32 * (column % 3) as f32 - ((row * row) % 7) as f32 * ((column / 2) % 4) as f32;
                *value = change * step;
            }
            assert_eq!(rows * columns, values.len());
        }
    });
    // the base's own values must be in the same steps: take the edit to the other side
    let zeros = Pair::new("tiny-sd21", |name, _, values| {
        if name.ends_with("attn2.to_v.weight") || name.ends_with("0.conv2.weight") {
            values.fill(0.0);
        }
    });
    let made = |options: &Options| {
        let path = pair.path("low.safetensors");
        create(&zeros.model("edited"), &pair.model("edited"), &path, options, &BTreeMap::new(), &mut Silent).unwrap()
    };
    for (options, rank) in [(fixed(2), 2), (fixed(16), 2), (Options::default(), 2)] {
        let summary = made(&options);
        assert!(
            summary.layers.len() > 3 && summary.layers.iter().all(|layer| layer.rank == rank),
            "{}",
            summary.table()
        );
        assert!(summary.residual < 2e-7, "{}", summary.residual);
    }
    let summary = made(&fixed(1));
    assert!(summary.residual > 0.1 && summary.layers.iter().all(|layer| layer.rank == 1), "{}", summary.table());
}

#[test]
fn what_no_lora_holds_is_listed_and_counted() {
    let pair = Pair::new("tiny-sd21", |name, _, values| match name {
        "conv_norm_out.weight" => values.iter_mut().for_each(|x| *x += 0.25),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias" => values[0] += 3.0,
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" => values[5] += 1.0,
        _ => {}
    });
    let (summary, _) = pair.create(&Options::default());
    let names: Vec<&str> = summary.not_held.iter().map(|p| p.parameter.as_str()).collect();
    assert_eq!(names, ["conv_norm_out.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"]);
    let outside = norm(&[norm(&pair.change(names[0])), norm(&pair.change(names[1]))]);
    assert!((norm(&[summary.not_held[0].change, summary.not_held[1].change]) - outside).abs() < 1e-9);
    let expected = outside / norm(&[outside, 1.0]);
    assert!((summary.residual - expected).abs() < 1e-6 && summary.layers[0].rank == 1, "{}", summary.table());
    assert!(summary.table().contains("conv_norm_out.weight (no LoRA holds it)"), "{}", summary.table());

    let pair = Pair::new("tiny-sd21", |name, _, values| {
        if name.contains(".norm2.") {
            values[0] += 1.0;
        }
    });
    let message = pair.try_create(&Options::default()).unwrap_err().to_string();
    assert!(message.contains("edited/unet/diffusion_pytorch_model.safetensors: no matrix changed"), "{message}");
    assert!(message.contains(".norm2.bias and 23 more); save the model whole"), "{message}");
    assert!(!pair.path("lora.safetensors").exists());
    let pair = Pair::new("tiny-sd21", |_, _, _| {});
    let message = pair.try_create(&Options::default()).unwrap_err().to_string();
    assert!(message.contains("has the same UNet as the base"), "{message}");
}

#[test]
fn strength_is_folded_in_and_multiplied_on() {
    let pair = Pair::new("tiny-sd21", as_if_erased);
    let applied = |made: f64, weight: f64| {
        let (summary, path) = pair.create(&Options { strength: made, ..Options::default() });
        assert!(summary.residual < 1e-6, "{}", summary.residual);
        apply(&pair.base, &path, weight).unwrap()
    };
    let (once, name) = (applied(1.0, 1.0), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight");
    let distance = |found: &Values, factor: f64| {
        let old = values(&pair.old[name]);
        let off = values(&found[name]).into_iter().zip(old).zip(pair.change(name));
        norm(&off.map(|((now, old), change)| f64::from(now) - f64::from(old) - factor * change).collect::<Vec<_>>())
    };
    for (made, weight) in [(0.5, 2.0), (1.0, 0.5), (2.0, 1.0), (-1.0, 1.0), (1.0, 0.0)] {
        let found = applied(made, weight);
        assert!(distance(&found, made * weight) < 1e-5, "{made} x {weight}: {}", distance(&found, made * weight));
    }
    assert!(distance(&once, 1.0) < 1e-5 && distance(&once, 0.5) > 0.1);
    let path = pair.path("lora.safetensors");
    assert!(apply(&pair.base, &path, f64::NAN).unwrap_err().to_string().contains("--strength is NaN"));
}

/// Counts what is reported.
#[derive(Default)]
struct Counted(Vec<(String, usize)>, usize);

impl Progress for Counted {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Stage { name, steps } => self.0.push((name.to_string(), steps)),
            Event::Step { .. } => self.1 += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_file_is_the_same_for_any_number_of_threads_and_says_what_it_is() {
    let pair = Pair::new("demo", as_if_erased);
    let told = BTreeMap::from(
        [("erase.method", "scissorhands"), ("modelspec.title", "no star")].map(|(k, v)| (k.into(), v.into())),
    );
    let with_threads = |threads: usize| {
        let path = pair.path("some-name.safetensors");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut counted = Counted::default();
        pool.install(|| create(&pair.base, &pair.model("edited"), &path, &fixed(8), &told, &mut counted)).unwrap();
        assert_eq!((counted.0, counted.1), (vec![("finding the LoRA's factors".to_string(), 43)], 43));
        std::fs::read(path).unwrap()
    };
    let one = with_threads(1);
    assert!(one == with_threads(1) && one == with_threads(3));
    let (_, metadata) = raw(&pair.path("some-name.safetensors"));
    let (residual, metadata): (Vec<_>, Vec<_>) =
        metadata.into_iter().partition(|(key, _)| key == "erase.lora_residual");
    assert!(residual[0].1.parse::<f64>().unwrap() > 0.1);
    let expected = [
        ("erase.lora_rank", "8"),
        ("erase.lora_strength", "1"),
        ("erase.method", "scissorhands"),
        ("format", "pt"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.implementation", "diffusers"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.resolution", "64x64"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.title", "no star"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_network_alpha", "8.0"),
        ("ss_network_args", r#"{"conv_dim":"8","conv_alpha":"8.0"}"#),
        ("ss_network_dim", "8"),
        ("ss_network_module", "networks.lora"),
        ("ss_v2", "False"),
    ];
    assert_eq!(metadata, expected.map(|(key, value)| (key.to_string(), value.to_string())));
    for (model, architecture, version, prediction, resolution) in [
        ("tiny-sd21", "stable-diffusion-v2-768-v/lora", "sd_v2_v", "v", "32x32"),
        ("tiny-sdxl", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "epsilon", "32x32"),
    ] {
        let pair = Pair::new(model, as_if_erased);
        let metadata = raw(&pair.create(&fixed(1000)).1).1;
        let found = |key: &str| metadata[key].as_str();
        assert_eq!((found("modelspec.architecture"), found("ss_base_model_version")), (architecture, version));
        assert_eq!((found("modelspec.prediction_type"), found("modelspec.resolution")), (prediction, resolution));
        assert_eq!((found("ss_network_dim"), found("modelspec.title")), ("Dynamic", "lora"));
    }
}

#[test]
fn inspect_says_what_a_lora_is() {
    let pair = Pair::new("demo", as_if_erased);
    pair.create(&fixed(8));
    let tiny = Tiny::new();
    let path = pair.path("lora.safetensors");
    let output = tiny.command(&["inspect", path.to_str().unwrap()]).assert().code(0).get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    for part in [
        "LoRA for a Stable Diffusion of another size, 43 layers of rank 8: changes to a model, not a model",
        "made by erase-concept",
        "erase.lora_residual",
        "ss_network_dim",
        "stable-diffusion-v1/lora",
    ] {
        assert!(text.contains(part), "{text}\nhas no {part}");
    }
}

#[test]
fn loras_of_other_programs_are_applied() {
    let pair = Pair::new("tiny-sd21", |_, _, _| {});
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let original = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k";
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let shape = pair.old[name].dims().to_vec();
    let up: Vec<f32> = (0..2 * shape[0]).map(|i| i as f32).collect();
    let down: Vec<f32> = (0..2 * shape[1]).map(|i| (i % 5) as f32).collect();
    for (layer, ones, alpha, scale) in
        [(layer, false, Some(1.0f32), 0.5), (layer, true, None, 1.0), (original, false, Some(4.0), 2.0)]
    {
        let more: &[usize] = if ones { &[1, 1] } else { &[] };
        let mut tensors = Raw::new();
        let up_shape = [&[shape[0], 2], more].concat();
        tensors.insert(format!("{layer}.lora_up.weight"), (Dtype::F32, up_shape, bytes(&up)));
        let halves = down.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        tensors.insert(format!("{layer}.lora_down.weight"), (Dtype::F16, [&[2, shape[1]], more].concat(), halves));
        if let Some(alpha) = alpha {
            tensors.insert(format!("{layer}.alpha"), (Dtype::F32, vec![], bytes(&[alpha])));
        }
        let path = pair.path("theirs.safetensors");
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let found = apply(&pair.base, &path, 1.0).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [name]);
        let old = values(&pair.old[name]);
        for (i, value) in values(&found[name]).into_iter().enumerate() {
            let (row, column) = (i / shape[1], i % shape[1]);
            let product = up[2 * row] * down[column] + up[2 * row + 1] * down[shape[1] + column];
            assert_eq!(value, old[i] + scale * product, "{layer}: {row}, {column}");
        }
    }
}

#[test]
fn loras_that_are_damaged_or_of_another_make_are_refused() {
    let pair = Pair::new("tiny-sd21", as_if_erased);
    let good = raw(&pair.create(&fixed(4)).1).0;
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let (up, down, alpha) =
        (format!("{layer}.lora_up.weight"), format!("{layer}.lora_down.weight"), format!("{layer}.alpha"));
    let path = pair.path("bad.safetensors");
    let refused = |what: &str| {
        let message = apply(&pair.base, &path, 1.0).err().unwrap_or_else(|| panic!("{what} was taken")).to_string();
        assert!(message.contains("bad.safetensors: ") && message.contains(what), "{message}\ndoes not say {what}");
    };
    let write = |tensors: &Raw| write_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
    let with = |edit: &dyn Fn(&mut Raw), what: &str| {
        let mut tensors = good.clone();
        edit(&mut tensors);
        write(&tensors);
        refused(what);
    };
    let zeros = |shape: &[usize]| (Dtype::F32, shape.to_vec(), vec![0u8; 4 * shape.iter().product::<usize>()]);
    let put = |name: &str, tensor: (Dtype, Vec<usize>, Vec<u8>)| {
        let name = name.to_string();
        move |tensors: &mut Raw| {
            tensors.insert(name.clone(), tensor.clone());
        }
    };
    let f32s = |value: f32| (Dtype::F32, vec![], value.to_le_bytes().to_vec());

    with(&|t| drop(t.remove(&up)), &format!("{layer} has no lora_up.weight; the file is incomplete"));
    with(&|t| drop(t.remove(&down)), &format!("{layer} has no lora_down.weight"));
    let shapes = "which do not make a matrix of [32, 32]; the LoRA was made for another model";
    with(&put(&up, zeros(&[16, 4])), shapes);
    with(&put(&down, zeros(&[4, 768])), shapes);
    with(&put(&down, zeros(&[3, 32])), shapes);
    with(&put(&down, zeros(&[4, 32, 3, 3])), shapes);
    with(&put(&down, zeros(&[128])), shapes);
    with(&|t| drop((t.insert(up.clone(), zeros(&[32, 0])), t.insert(down.clone(), zeros(&[0, 32])))), shapes);
    with(&put(&alpha, zeros(&[2])), "has an alpha of 2 numbers; it must be one");
    with(&put(&alpha, f32s(f32::NAN)), "its alpha has a value that is NaN or infinite");
    with(&put(&up, (Dtype::I32, vec![32, 4], vec![0; 512])), "its lora_up.weight is stored as I32");
    for value in [f32::NAN, f32::INFINITY] {
        let bad: Vec<u8> = (0..128).flat_map(|i| if i == 77 { value } else { 0.0 }.to_le_bytes()).collect();
        with(&put(&up, (Dtype::F32, vec![32, 4], bad)), "its lora_up.weight has a value that is NaN or infinite");
    }
    let large: Vec<u8> = (0..128).flat_map(|_| 1e30f32.to_le_bytes()).collect();
    let huge = |t: &mut Raw| {
        t.insert(up.clone(), (Dtype::F32, vec![32, 4], large.clone()));
        t.insert(down.clone(), (Dtype::F32, vec![4, 32], large.clone()));
    };
    with(&huge, "attn2.to_k.weight too large for f32");
    let other = "lora_unet_down_blocks_3_attentions_0_proj_in";
    let add = |t: &mut Raw| {
        for name in [other, "lora_unet_down_blocks_3_attentions_1_proj_in"] {
            t.insert(format!("{name}.lora_up.weight"), zeros(&[32, 4]));
            t.insert(format!("{name}.lora_down.weight"), zeros(&[4, 32]));
        }
    };
    with(&add, &format!("has a layer {other} and 1 more, which is not in the UNet of"));
    let twice = |t: &mut Raw| {
        let (a, b) = (t[&up].clone(), t[&down].clone());
        t.insert("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.lora_up.weight".into(), a);
        t.insert("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.lora_down.weight".into(), b);
    };
    with(&twice, "has one layer under two names");
    let text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight";
    with(&put(text, zeros(&[32, 4])), "changes a text encoder too");
    with(&put("something.else", zeros(&[1])), "something.else is no part of a LoRA");
    with(&put(&format!("{layer}.diff"), zeros(&[1])), "attn2_to_k.diff is no part of a LoRA");
    for (name, what) in [
        ("lora_unet_x.hada_w1_a", "a LoHa"),
        ("lora_unet_x.lokr_w1", "a LoKr"),
        ("lora_unet_x.dora_scale", "a DoRA"),
        ("lora_unet_x.lora_mid.weight", "Tucker"),
        ("unet.mid_block.attn2.to_k.lora_A.weight", "PEFT's names"),
        ("unet.mid_block.attn2.processor.to_k_lora.down.weight", "diffusers' names"),
    ] {
        with(&put(name, zeros(&[1])), what);
    }
    write(&Raw::new());
    refused("holds no tensor");
    let bytes = std::fs::read(pair.path("lora.safetensors")).unwrap();
    for (cut, what) in
        [(bytes.len() - 1, "truncated: the tensors should have"), (100, "truncated: the header"), (0, "empty")]
    {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        refused(what);
    }
    std::fs::remove_file(&path).unwrap();
    refused("No such file");
    std::fs::create_dir(&path).unwrap();
    refused("a folder, not a LoRA");
    // a whole model
    let model = pair.path("edited").join(UNET);
    let message = apply(&pair.base, &model, 1.0).unwrap_err().to_string();
    assert!(message.contains("conv_in.bias is no part of a LoRA"), "{message}");
}

#[test]
fn models_that_are_not_versions_of_one_another_make_no_lora() {
    let pair = Pair::new("tiny-sd21", as_if_erased);
    let path = pair.path("lora.safetensors");
    let refused = |base: &ModelFiles, edited: &ModelFiles, what: &str| {
        let found = create(base, edited, &path, &Options::default(), &BTreeMap::new(), &mut Silent);
        let message = found.unwrap_err().to_string();
        assert!(message.contains(what), "{message}\ndoes not say {what}");
        assert!(!path.exists());
    };
    refused(&hub::demo(), &pair.model("edited"), "it is no edited version of demo (embedded)/unet");
    let edited = pair.path("edited").join(UNET);
    let good = raw(&edited).0;
    let with = |edit: &dyn Fn(&mut Raw), what: &str| {
        let mut tensors = good.clone();
        edit(&mut tensors);
        write_safetensors(&edited, &tensors, &BTreeMap::new()).unwrap();
        refused(&pair.base, &pair.model("edited"), what);
    };
    with(&|t| drop(t.remove("conv_in.bias")), "has no tensor named conv_in.bias; it is no edited version of");
    with(
        &|t| drop(t.insert("more".into(), (Dtype::F32, vec![1], vec![0; 4]))),
        "has a tensor more, which the base has not",
    );
    with(&|t| t.get_mut("conv_in.bias").unwrap().1 = vec![16, 1], "conv_in.bias is [16, 1], but [16] in the base");
    let nan = |t: &mut Raw| t.get_mut("conv_in.weight").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    with(&nan, "conv_in.weight has a value that is NaN or infinite");
    std::fs::write(&edited, b"no weights").unwrap();
    refused(&pair.base, &pair.model("edited"), "not a safetensors file");
}

/// Writes an edited model into the folder in `OUTPUTS`, as a folder, a single file and LoRAs, with what these make of the base:
/// what `tests/diffusers/check_outputs.py` opens. `BASE` is `demo`, `tiny-sd21` or `tiny-sdxl`.
#[test]
#[ignore = "writes files for a check with Python"]
fn outputs_for_diffusers() {
    let base = std::env::var("BASE").expect("BASE: demo, tiny-sd21 or tiny-sdxl");
    let outputs = PathBuf::from(std::env::var_os("OUTPUTS").expect("OUTPUTS: a folder for the outputs"));
    let pair = Pair::new(&base, as_if_erased);
    std::fs::create_dir_all(&outputs).unwrap();
    let edited = pair.model("edited");
    let folder = outputs.join("diffusers");
    std::fs::create_dir(&folder).expect("OUTPUTS has no outputs yet");
    save_edited(&edited, &BTreeMap::new(), &folder, &BTreeMap::new()).unwrap();
    write_single_file(&edited, &outputs.join("single.safetensors"), &BTreeMap::new()).unwrap();
    for (name, rank, half) in
        [("lora", Rank::Full, false), ("lora-f16", Rank::Full, true), ("lora-rank8", Rank::Fixed(8), false)]
    {
        let options = Options { rank, half, ..Options::default() };
        let path = outputs.join(format!("{name}.safetensors"));
        let summary = create(&pair.base, &edited, &path, &options, &BTreeMap::new(), &mut Silent).unwrap();
        println!("{name}: {}", summary.line());
        let applied = outputs.join(format!("{name}-applied"));
        std::fs::create_dir(&applied).unwrap();
        save_edited(&pair.base, &apply(&pair.base, &path, 1.0).unwrap(), &applied, &BTreeMap::new()).unwrap();
    }
}

/// Time and memory at Stable Diffusion 1.x's size, on made-up weights: `SCOPE` is a part of the parameters' names (`attn2`, or
/// nothing for all matrices), `RANK` a rank.
#[test]
#[ignore = "measures"]
fn full_size() {
    let scope = std::env::var("SCOPE").unwrap_or_else(|_| "attn2".into());
    let rank: Rank = std::env::var("RANK").unwrap_or_else(|_| "16".into()).parse().unwrap();
    let model = original::models().into_iter().find(|model| model.architecture() == Architecture::Sd1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, edited: bool| {
        let root = folder.path().join(name);
        for (component, config) in model.configs.as_object().unwrap() {
            std::fs::create_dir_all(root.join(component)).unwrap();
            std::fs::write(root.join(component).join("config.json"), config.to_string()).unwrap();
        }
        std::fs::create_dir_all(root.join("scheduler")).unwrap();
        std::fs::copy(
            repository("weights/demo/scheduler/scheduler_config.json"),
            root.join("scheduler/scheduler_config.json"),
        )
        .unwrap();
        let mut tensors = Raw::new();
        for (i, pair) in model.pairs.iter().filter(|pair| pair.component == "unet").enumerate() {
            let n: usize = pair.shape.iter().product();
            let change = edited && pair.diffusers.contains(&scope) && pair.shape.len() > 1;
            let mut generator = Generator::new(i as u64);
            let size = (n as f32 / pair.shape[0] as f32).powf(-0.5);
            let mut values: Vec<f32> = generator.randn(n).iter().map(|x| size * x).collect();
            if change {
                values.iter_mut().zip(generator.randn(n)).for_each(|(value, noise)| *value += 0.01 * size * noise);
            }
            let bytes = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
            tensors.insert(pair.diffusers.clone(), (Dtype::F16, pair.shape.clone(), bytes));
        }
        write_safetensors(&root.join(UNET), &tensors, &BTreeMap::new()).unwrap();
        ModelFiles::Folder(root)
    };
    let (base, edited) = (write("base", false), write("edited", true));
    let path = folder.path().join("lora.safetensors");
    let resident = |what: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_default().to_string();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak counts from here
    // of all threads, in hundredths of a second
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    let (start, before, used) = (std::time::Instant::now(), resident("VmRSS"), cpu());
    let options = Options { rank, ..Options::default() };
    let summary = create(&base, &edited, &path, &options, &BTreeMap::new(), &mut Silent).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let size = std::fs::metadata(&path).unwrap().len() as f64 / 1048576.0;
    println!("{scope} {rank}: {}", summary.line());
    println!(
        "{seconds:.1} s ({:.1} s of CPU), peak {:.0} MiB above {before:.0}, file {size:.1} MiB",
        cpu() - used,
        resident("VmHWM") - before
    );
    let (start, used) = (std::time::Instant::now(), cpu());
    let changed = apply(&base, &path, 1.0).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("applied to {} tensors in {seconds:.1} s ({:.1} s of CPU)", changed.len(), cpu() - used);
}
