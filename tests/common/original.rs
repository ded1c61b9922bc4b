//! `tests/fixtures/single_file/keys.tsv.gz`: whole models' names and shapes in both layouts, as diffusers' converter has them.

use erase_concept::checkpoint::single_file::{Architecture, How, Networks};
use erase_concept::sd::UnetConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;

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
