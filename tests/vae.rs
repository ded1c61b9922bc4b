//! The VAE against diffusers.

#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_close, goldens, repository, tensors};
use erase_concept::nn::ParamStore;
use erase_concept::sd::{Vae, VaeConfig};
use std::collections::BTreeMap;

fn load(
    change: impl Fn(BTreeMap<String, candle_core::Tensor>) -> BTreeMap<String, candle_core::Tensor>,
) -> erase_concept::Result<Vae> {
    let folder = repository("weights/demo/vae");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: VaeConfig = serde_json::from_str(&config).unwrap();
    Vae::new(&config, &ParamStore::new(change(tensors(folder.join("diffusion_pytorch_model.safetensors")))))
}

#[test]
fn encodes_and_decodes_as_diffusers() {
    let vae = load(|t| t).unwrap();
    let g = goldens("demo");
    let (mean, logvar) = vae.encode(&g["vae.image"]).unwrap();
    assert_close("mean", &mean, &g["vae.mean"], 1e-3);
    assert_close("logvar", &logvar, &g["vae.logvar"], 1e-3);
    assert_close("decoded", &vae.decode(&g["vae.latent"]).unwrap(), &g["vae.decoded"], 1e-3);
    assert_eq!(vae.downsampling(), 4);
}

#[test]
fn takes_the_old_names_and_shapes_of_its_attention() {
    let old = |name: &str| {
        let renames = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        renames.iter().fold(name.to_string(), |name, (new, old)| name.replace(new, old))
    };
    let vae = load(|tensors| {
        let rename = |(name, tensor): (String, candle_core::Tensor)| {
            let square = name.contains("attentions.0.to_") && tensor.rank() == 2;
            let shape = [tensor.dims(), &[1, 1]].concat();
            (old(&name), if square { tensor.reshape(shape).unwrap() } else { tensor })
        };
        tensors.into_iter().map(rename).collect()
    });
    let g = goldens("demo");
    assert_close("decoded", &vae.unwrap().decode(&g["vae.latent"]).unwrap(), &g["vae.decoded"], 1e-3);
}

#[test]
fn a_missing_tensor_is_named() {
    let error = load(|mut t| {
        t.remove("decoder.conv_in.bias");
        t
    });
    assert!(error.err().unwrap().to_string().contains("1 missing: decoder.conv_in.bias"));
}

#[test]
fn the_same_with_lesser_instructions() {
    common::with_lesser_instructions("lesser_instructions");
}
