//! What a LoRA's file says of itself: ModelSpec 1.0.1, and the least of kohya's `ss_*` by which other programs know it.

use super::super::modelspec::{Kind, ORIGINAL, VERSION};
use super::super::single_file::Architecture;
use super::{Options, Rank, Summary};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// The `__metadata__` of a LoRA for this base.
pub(super) fn metadata(
    base: &Kind,
    path: &Path,
    options: &Options,
    summary: &Summary,
    convolutions: bool,
) -> BTreeMap<String, String> {
    let (architecture, v) = (base.networks.architecture, base.v);
    let version = match (architecture, v) {
        (Architecture::Sd1, false) => "sd_v1",
        (Architecture::Sd1, true) => "sd_v1_v",
        (Architecture::Sd2, false) => "sd_v2",
        (Architecture::Sd2, true) => "sd_v2_v",
        (Architecture::Sdxl, _) => "sdxl_base_v1-0",
    };
    let implementation = match architecture {
        Architecture::Sdxl => ORIGINAL,
        _ => "diffusers",
    };
    let title = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    // kohya's word for layers of several ranks
    let rank = match summary.ranks() {
        (low, high) if low == high => low.to_string(),
        _ => "Dynamic".into(),
    };
    let arguments = match (convolutions, options.rank) {
        (true, Rank::Fixed(_)) => json!({ "conv_dim": rank, "conv_alpha": format!("{:.1}", summary.alpha as f64) }),
        _ => json!({}),
    };
    let mut all = BTreeMap::from(
        [
            ("format", "pt".to_string()),
            ("modelspec.sai_model_spec", VERSION.into()),
            ("modelspec.architecture", format!("{}/lora", base.architecture())),
            ("modelspec.implementation", implementation.into()),
            ("modelspec.title", title),
            ("modelspec.resolution", base.resolution()),
            ("modelspec.prediction_type", base.prediction().into()),
            ("ss_base_model_version", version.into()),
            ("ss_v2", if architecture == Architecture::Sd2 { "True" } else { "False" }.into()),
            ("ss_network_module", "networks.lora".into()),
            ("ss_network_dim", rank),
            ("ss_network_alpha", format!("{:.1}", summary.alpha as f64)),
            ("ss_network_args", arguments.to_string()),
            ("erase.lora_rank", options.rank.to_string()),
            ("erase.lora_strength", options.strength.to_string()),
            ("erase.lora_residual", format!("{:.3e}", summary.residual)),
        ]
        .map(|(key, value)| (key.to_string(), value)),
    );
    if !summary.not_held.is_empty() {
        let names: Vec<&str> = summary.not_held.iter().map(|p| p.parameter.as_str()).collect();
        all.insert("erase.lora_not_held".into(), json!(names).to_string());
    }
    all
}
