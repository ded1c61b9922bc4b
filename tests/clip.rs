//! CLIP's two towers against transformers.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{D, Device, Tensor};
use common::pictures::picture;
use common::{assert_close, facts, goldens};
use erase_concept::audit::image_processor::{ImageProcessor, ProcessorKind};
use erase_concept::audit::resample::{Filter, resized};
use erase_concept::audit::{ClipModel, DetectorFiles};
use erase_concept::hub;
use erase_concept::sd::{Clip, ClipConfig};
use serde_json::json;

fn demo() -> ClipModel {
    ClipModel::open(&DetectorFiles::within(hub::demo(), "clip")).unwrap()
}

fn normalised(x: &Tensor) -> Tensor {
    x.broadcast_div(&x.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap()).unwrap()
}

fn tensor(rows: Vec<Vec<f32>>) -> Tensor {
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn embeddings_and_logits_equal_transformers() {
    let (clip, g) = (demo(), goldens("demo"));
    let images = normalised(&clip.clip().image_features(&g["clip.pixels"]).unwrap());
    assert_close("image embeddings", &images, &g["clip.image_embeds"], 1e-4);
    let labels: Vec<String> = serde_json::from_value(facts("demo")["clip_labels"].clone()).unwrap();
    let texts = normalised(&tensor(clip.text_features(&labels).unwrap()));
    assert_close("text embeddings", &texts, &g["clip.text_embeds"], 1e-4);
    let logits = (images.matmul(&texts.t().unwrap()).unwrap() * f64::from(clip.clip().logit_scale())).unwrap();
    assert_close("logits", &logits, &g["clip.logits_per_image"], 1e-3);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let clip = demo();
    let pictures: Vec<_> = (0..37).map(|i| picture(60 + i, 70 - i, i)).collect();
    let together = clip.image_features(&pictures).unwrap();
    for i in [0, 5, 31, 32, 36] {
        assert_eq!(clip.image_features(&pictures[i..=i]).unwrap()[0], together[i], "picture {i}");
    }
    let texts: Vec<String> =
        (0..35).map(|i| format!("a {} star {}", "very ".repeat(i % 7), "large ".repeat(i))).collect();
    let together = clip.text_features(&texts).unwrap();
    for i in [0, 3, 31, 34] {
        assert_eq!(clip.text_features(&texts[i..=i]).unwrap()[0], together[i], "text {i}");
    }
}

#[test]
fn resized_pictures_equal_pillow_to_the_level() {
    let path = common::fixture("detectors/resampling.safetensors");
    let g = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert_eq!(g.len(), 54);
    let mut wrong = Vec::new();
    for (name, expected) in &g {
        let parts: Vec<&str> = name.split('.').collect();
        let size = |text: &str| {
            let (w, h) = text.split_once('x').unwrap();
            (w.parse::<u32>().unwrap(), h.parse::<u32>().unwrap())
        };
        let ((w, h), (to_w, to_h)) = (size(parts[0]), size(parts[1]));
        let seed = ["64x48", "20x15", "50x31", "31x50", "7x5", "97x3", "40x61", "20x24", "41x40"]
            .iter()
            .position(|s| *s == parts[0])
            .unwrap();
        let filter = Filter::of_number(parts[2].parse().unwrap()).unwrap();
        let ours = resized(&picture(w, h, seed as u32), to_w, to_h, filter);
        let theirs: Vec<u8> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let off = ours.as_raw().iter().zip(&theirs).filter(|(a, b)| a != b).count();
        if off > 0 || theirs.len() != ours.as_raw().len() {
            wrong.push(format!("{name} ({filter:?}): {off} of {}", theirs.len()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_crop_that_is_too_large_is_padded_as_transformers_does_it() {
    let g = candle_core::safetensors::load(common::fixture("detectors/goldens.safetensors"), &Device::Cpu).unwrap();
    let sizes = [(64, 64), (90, 67), (50, 120), (131, 100), (20, 24), (33, 33)];
    let pictures: Vec<_> = sizes.iter().enumerate().map(|(i, (w, h))| picture(*w, *h, i as u32)).collect();
    for (name, (height, width)) in [("larger", (33, 28)), ("wider", (15, 41))] {
        let config = json!({"size": {"shortest_edge": 20}, "crop_size": {"height": height, "width": width},
            "do_rescale": false, "do_normalize": false});
        let processor = ImageProcessor::from_value(&config, ProcessorKind::Clip).unwrap();
        let expected = g[&format!("padding.{name}")].to_dtype(candle_core::DType::F32).unwrap();
        assert_close(name, &processor.prepare(&pictures).unwrap(), &expected, 0.0);
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let (config, params) =
        erase_concept::checkpoint::load_component::<serde_json::Value>(&hub::demo(), "clip", "model.safetensors")
            .unwrap();
    let with = |pointer: &str, value: serde_json::Value| {
        let mut config = config.clone();
        *config.pointer_mut(pointer).unwrap() = value;
        let config = ClipConfig::from_value(&config);
        config.and_then(|config| Clip::new(&config, &params)).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(with("/vision_config/patch_size", json!(16)).contains("patch_embedding.weight is [128, 3, 8, 8]"));
    assert!(with("/vision_config/patch_size", json!(128)).contains("patch_size is 128; it must lie between 1 and 64"));
    assert!(with("/vision_config/image_size", json!(0)).contains("image_size is 0"));
    assert!(with("/vision_config/num_hidden_layers", json!(3)).contains("unused: vision_model.encoder.layers.3"));
    assert!(
        with("/vision_config/num_attention_heads", json!(3)).contains("128 features cannot be divided into 3 heads")
    );
    assert!(with("/projection_dim", json!(64)).contains("text_projection.weight is [128, 128]"));
    // more places than there is memory for: refused without asking for it
    let mut huge = config.clone();
    (huge["vision_config"]["image_size"], huge["vision_config"]["patch_size"]) = (json!(8192), json!(1));
    let huge = Clip::new(&ClipConfig::from_value(&huge).unwrap(), &params).err().unwrap().to_string();
    assert!(huge.contains("where the config implies [67108865, 128]"), "{huge}");
    let mut few = params.tensors().clone();
    few.remove("logit_scale");
    let few = erase_concept::nn::ParamStore::new(few);
    let error = Clip::new(&ClipConfig::from_value(&config).unwrap(), &few).err().unwrap().to_string();
    assert!(error.contains("logit_scale is missing"), "{error}");
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
