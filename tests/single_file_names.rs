//! The table of names against diffusers' converter and against the networks, at full size and without memory for weights.
#![allow(clippy::unwrap_used)]

mod common;

use common::original::{Pair, models};
use erase_concept::checkpoint::single_file::{How, NameTable, Spelling};
use erase_concept::nn::{ParamStore, Shapes};
use erase_concept::sd::{TextEncoder, TextEncoderConfig, Unet, Vae};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_name_of_full_size_models_is_what_diffusers_converter_makes_of_it() {
    let mut sizes = Vec::new();
    for model in models() {
        let table = NameTable::new(&model.networks(), Spelling::default());
        let mut found: Vec<_> = table
            .components()
            .flat_map(|(component, entries)| entries.iter().map(move |e| (component.to_string(), e.clone())))
            .map(|(component, e)| (component, e.diffusers, e.original, e.how))
            .collect();
        found.sort();
        let expected =
            model.pairs.iter().map(|p| (p.component.clone(), p.diffusers.clone(), p.original.clone(), p.how));
        let mut expected: Vec<_> = expected.collect();
        expected.sort();
        for (ours, diffusers) in found.iter().zip(&expected) {
            assert_eq!(ours, diffusers, "{}", model.name);
        }
        assert_eq!(found.len(), expected.len(), "{}", model.name);
        sizes.push((model.name.clone(), found.len()));
    }
    // UNet + VAE + text encoders
    let expected = [("sd1", 686 + 248 + 196), ("sd2", 686 + 248 + 372), ("sdxl", 1680 + 248 + 196 + 517)];
    assert_eq!(sizes, expected.map(|(name, size)| (name.to_string(), size)));
}

#[test]
fn the_table_is_a_bijection_in_every_spelling() {
    for model in models() {
        for bits in 0..32 {
            let bit = |i: usize| bits >> i & 1 == 1;
            let spelling = Spelling {
                text_model: bit(0),
                text_model_2: bit(1),
                old_vae_attention: bit(2),
                original_text_model: bit(3),
                position_ids: bit(4),
            };
            let table = NameTable::new(&model.networks(), spelling);
            let mut ours = BTreeSet::new();
            let mut theirs: BTreeMap<&str, Vec<How>> = BTreeMap::new();
            for (component, entries) in table.components() {
                for entry in entries {
                    assert!(ours.insert((component, &entry.diffusers)), "{entry:?} twice");
                    theirs.entry(&entry.original).or_default().push(entry.how);
                }
            }
            for (original, mut parts) in theirs {
                parts.sort();
                let whole = parts.len() == 1 && !matches!(parts[0], How::Third(_));
                let thirds = parts == [How::Third(0), How::Third(1), How::Third(2)];
                assert!(whole || thirds, "{original} is {parts:?}");
            }
        }
    }
}

#[test]
fn the_networks_ask_for_what_diffusers_has_in_name_and_shape() {
    for model in models() {
        let networks = model.networks();
        let expected = |component: &str| -> Shapes {
            let pairs = model.pairs.iter().filter(|pair| pair.component == component);
            let plain = |p: &Pair| p.diffusers.strip_prefix("text_model.").unwrap_or(&p.diffusers).to_string();
            pairs.map(|pair| (plain(pair), pair.shape.clone())).collect()
        };
        let recorder = ParamStore::recorder();
        Unet::new(&networks.unet, &recorder).unwrap();
        assert_eq!(recorder.recorded(), expected("unet"), "{}", model.name);
        let recorder = ParamStore::recorder();
        Vae::new(&networks.vae, &recorder).unwrap();
        assert_eq!(recorder.recorded(), expected("vae"), "{}", model.name);
        let encoder = |config: &TextEncoderConfig| {
            let recorder = ParamStore::recorder();
            TextEncoder::new(config, &recorder).unwrap();
            recorder.recorded()
        };
        assert_eq!(encoder(&networks.text_encoder), expected("text_encoder"), "{}", model.name);
        if let Some(config) = &networks.text_encoder_2 {
            let mut expected = expected("text_encoder_2");
            let projection = expected.remove("text_projection.weight");
            assert_eq!(projection, Some(vec![config.projection_dim, config.hidden_size]));
            assert_eq!(encoder(config), expected, "{}", model.name);
        }
    }
}

#[test]
fn other_spellings_differ_only_where_they_say() {
    let models = models();
    let table = |spelling: Spelling| NameTable::new(&models[0].networks(), spelling);
    let usual = table(Spelling::default());
    let old = table(Spelling { old_vae_attention: true, ..Spelling::default() });
    assert_eq!(usual.component("unet"), old.component("unet"));
    let renamed: Vec<_> = usual.component("vae").iter().zip(old.component("vae")).filter(|(a, b)| a != b).collect();
    assert_eq!(renamed.len(), 16, "weight and bias of four layers in two attentions");
    for (a, b) in renamed {
        assert_eq!((&a.original, a.how), (&b.original, b.how));
        let new = b.diffusers.replace("query", "to_q").replace("key", "to_k").replace("value", "to_v");
        assert_eq!(a.diffusers, new.replace("proj_attn", "to_out.0"));
    }
    let first = table(Spelling { original_text_model: false, ..Spelling::default() });
    for (a, b) in usual.component("text_encoder").iter().zip(first.component("text_encoder")) {
        assert_eq!(a.diffusers, b.diffusers);
        assert_eq!(a.original.replacen("transformer.text_model.", "transformer.", 1), b.original);
    }
}
