//! `tests/fixtures/single_file/keys.tsv.gz`: whole models' names and shapes in both layouts, as diffusers' converter has them.

use super::tiny::{TEXT, UNET, VAE};
use erase_concept::checkpoint::single_file::{Architecture, How, Networks};
use erase_concept::checkpoint::write_safetensors;
use erase_concept::diffusion::Generator;
use erase_concept::nn::ParamStore;
use erase_concept::sd::{TextEncoder, Unet, UnetConfig, Vae};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A parameter in both layouts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub component: String,
    pub diffusers: String,
    pub shape: Vec<usize>,
    pub original: String,
    pub original_shape: Vec<usize>,
    pub how: How,
}

/// One model of full size.
pub struct Model {
    pub name: String,
    pub configs: Value,
    pub pairs: Vec<Pair>,
    /// Original tensors that have no parameter in diffusers.
    pub unused: BTreeMap<String, Vec<usize>>,
}

impl Model {
    /// Name and shape of every original tensor.
    pub fn original(&self) -> BTreeMap<String, Vec<usize>> {
        let used = self.pairs.iter().map(|pair| (pair.original.clone(), pair.original_shape.clone()));
        used.chain(self.unused.clone()).collect()
    }

    pub fn architecture(&self) -> Architecture {
        match self.name.as_str() {
            "sd1" => Architecture::Sd1,
            "sd2" => Architecture::Sd2,
            _ => Architecture::Sdxl,
        }
    }

    pub fn networks(&self) -> Networks {
        let config = |name: &str| self.configs[name].clone();
        Networks {
            architecture: self.architecture(),
            unet: UnetConfig::from_json(&config("unet").to_string()).expect("unet"),
            vae: serde_json::from_value(config("vae")).expect("vae"),
            text_encoder: serde_json::from_value(config("text_encoder")).expect("text encoder"),
            text_encoder_2: serde_json::from_value(config("text_encoder_2")).ok(),
        }
    }
}

/// SD 1.x, SD 2.x and SDXL.
pub fn models() -> Vec<Model> {
    let path = super::fixture("single_file/keys.tsv.gz");
    let mut text = String::new();
    let file = std::fs::File::open(path).expect("keys");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("keys");
    let mut models: Vec<Model> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if let ["#", name, configs] = fields[..] {
            let configs = serde_json::from_str(configs).expect("configs");
            models.push(Model { name: name.into(), configs, pairs: Vec::new(), unused: BTreeMap::new() });
            continue;
        }
        let [component, diffusers, shape, original, original_shape, how] = fields[..] else { panic!("{line}") };
        let model = models.last_mut().expect("a model first");
        if component == "-" {
            model.unused.insert(original.into(), dims(original_shape));
            continue;
        }
        model.pairs.push(Pair {
            component: component.into(),
            diffusers: diffusers.into(),
            shape: dims(shape),
            original: original.into(),
            original_shape: dims(original_shape),
            how: match how {
                "same" => How::Same,
                "squeezed" => How::Squeezed,
                "transposed" => How::Transposed,
                third => How::Third(third.strip_prefix("third:").expect("how").parse().expect("a number")),
            },
        });
    }
    models
}

fn dims(text: &str) -> Vec<usize> {
    text.split('x').filter(|dim| !dim.is_empty()).map(|dim| dim.parse().expect("a number")).collect()
}

/// A file of zeros in f16 (on most file systems without taking room) with these tensors.
pub fn zeros(path: &Path, shapes: &BTreeMap<String, Vec<usize>>, metadata: &[(&str, &str)]) {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let texts: serde_json::Map<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
        header.insert("__metadata__".into(), texts.into());
    }
    let mut offset = 0;
    for (name, shape) in shapes {
        let end = offset + 2 * shape.iter().product::<usize>();
        let row = serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.clone(), row);
        offset = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(path, &bytes).expect("a file");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.set_len((bytes.len() + offset) as u64).expect("a file");
}

/// A folder with a model as small as the known architectures allow: its single file needs no configs.
pub fn smallest(folder: &Path, architecture: Architecture) {
    let sd2 = architecture == Architecture::Sd2;
    let unet = json!({
        "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "block_out_channels": [64, 128],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1, "attention_head_dim": if sd2 { json!([1, 2]) } else { json!(8) },
        "cross_attention_dim": 64, "use_linear_projection": sd2, "sample_size": if sd2 { 96 } else { 64 },
    });
    let vae = json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [32, 64], "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    let text = json!({
        "vocab_size": 49408, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
        "hidden_act": if sd2 { "gelu" } else { "quick_gelu" },
    });
    let shapes = |build: &dyn Fn(&ParamStore)| {
        let recorder = ParamStore::recorder();
        build(&recorder);
        recorder.recorded()
    };
    let parts = [
        (
            UNET,
            &unet,
            shapes(&|store| {
                drop(Unet::new(&UnetConfig::from_json(&unet.to_string()).expect("fits"), store).expect("fits"))
            }),
        ),
        (
            VAE,
            &vae,
            shapes(&|store| drop(Vae::new(&serde_json::from_value(vae.clone()).expect("fits"), store).expect("fits"))),
        ),
        (
            TEXT,
            &text,
            shapes(&|store| {
                drop(TextEncoder::new(&serde_json::from_value(text.clone()).expect("fits"), store).expect("fits"))
            }),
        ),
    ];
    for (rel, config, shapes) in parts {
        let mut made = BTreeMap::new();
        for (i, (name, shape)) in shapes.into_iter().enumerate() {
            let name = if rel == TEXT { format!("text_model.{name}") } else { name };
            let values = Generator::new(i as u64).randn(shape.iter().product());
            let scale =
                |r: f32| if name.contains("norm") && name.ends_with("weight") { 1.0 + 0.1 * r } else { 0.05 * r };
            let bytes = values.into_iter().flat_map(|r| half::f16::from_f32(scale(r)).to_le_bytes()).collect();
            made.insert(name.clone(), (Dtype::F16, shape, bytes));
        }
        let path = folder.join(rel);
        std::fs::create_dir_all(path.parent().expect("fits")).expect("fits");
        write_safetensors(&path, &made, &BTreeMap::new()).expect("fits");
        std::fs::write(path.with_file_name("config.json"), config.to_string()).expect("fits");
    }
    std::fs::create_dir_all(folder.join("scheduler")).expect("fits");
    let scheduler = json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": if sd2 { "v_prediction" } else { "epsilon" }, "steps_offset": 1, "set_alpha_to_one": false,
    });
    std::fs::write(folder.join("scheduler/scheduler_config.json"), scheduler.to_string()).expect("fits");
    let component = ["a", "b"];
    let index = json!({
        "_class_name": "StableDiffusionPipeline", "scheduler": component, "text_encoder": component, "tokenizer": component,
        "unet": component, "vae": component,
    });
    std::fs::write(folder.join("model_index.json"), index.to_string()).expect("fits");
}
