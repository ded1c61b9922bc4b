//! What the UNet predicts, the noise or v: shapes do not show it.

use super::names::Architecture;
use crate::diffusion::PredictionType;
use crate::nn::Shapes;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The largest original config that is read; they have about 2 KB.
const LARGEST: u64 = 1 << 20;

/// What was found out.
pub(super) struct Prediction {
    pub kind: PredictionType,
    /// The schedule was changed so that its last step is pure noise.
    pub zero_snr: bool,
    /// What the user should know about how it was found out.
    pub note: Option<String>,
    /// The answer came from a file beside the model.
    pub beside: bool,
}

/// From the original config beside the file (`NAME.yaml`, as A1111 takes it), the file's metadata, marks among its tensors, or
/// else what is usual: v for SD 2.x, the noise for others.
///
/// # Errors
/// If the config cannot be read, or names something else than `eps` and `v`.
pub(super) fn find(
    path: &Path,
    architecture: Architecture,
    shapes: &Shapes,
    metadata: &BTreeMap<String, String>,
) -> Result<Prediction> {
    let found = |kind| Prediction { kind, zero_snr: shapes.contains_key("ztsnr"), note: None, beside: false };
    let config = path.with_extension("yaml");
    if let Some(kind) = original_config(&config)? {
        let note = format!("{} says that the model predicts {}", config.display(), words(kind));
        return Ok(Prediction { note: Some(note), beside: true, ..found(kind) });
    }
    if let Some(kind) = in_metadata(metadata) {
        return Ok(found(kind));
    }
    if shapes.contains_key("v_pred") {
        return Ok(found(PredictionType::VPrediction));
    }
    if architecture != Architecture::Sd2 {
        return Ok(found(PredictionType::Epsilon));
    }
    let note = format!(
        "{}: Stable Diffusion 2.x, taken as a model that predicts v (768-v), as the file does not say. If it predicts the noise \
         (512-base), put its original config (v2-inference.yaml) beside it as {}",
        path.display(),
        config.display()
    );
    Ok(Prediction { note: Some(note), ..found(PredictionType::VPrediction) })
}

fn words(kind: PredictionType) -> &'static str {
    match kind {
        PredictionType::Epsilon => "the noise",
        PredictionType::VPrediction => "v",
    }
}

/// `modelspec.*` (ModelSpec 1.0.1).
fn in_metadata(metadata: &BTreeMap<String, String>) -> Option<PredictionType> {
    let value = |key: &str| metadata.get(key).map(|value| value.trim().to_lowercase());
    match value("modelspec.prediction_type")?.as_str() {
        "epsilon" | "eps" => Some(PredictionType::Epsilon),
        "v" | "v_prediction" => Some(PredictionType::VPrediction),
        _ => None,
    }
}

/// `parameterization` of an original config; `eps` where it does not say; `None` if there is no such file, or it is another's.
fn original_config(path: &Path) -> Result<Option<PredictionType>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= LARGEST => {}
        _ => return Ok(None),
    }
    let text = String::from_utf8_lossy(&fs::read(path).map_err(Error::io(path))?).into_owned();
    if !text.lines().any(|line| line.starts_with("model:")) {
        return Ok(None);
    }
    let value = text.lines().find_map(|line| {
        let (_, value) = line.split('#').next()?.split_once("parameterization:")?;
        Some(value.trim().trim_matches(['"', '\'']).to_string())
    });
    match value.as_deref() {
        None | Some("eps") => Ok(Some(PredictionType::Epsilon)),
        Some("v") => Ok(Some(PredictionType::VPrediction)),
        Some(other) => {
            Err(Error::file(path, format!("parameterization is {other:?}; this program supports eps and v")))
        }
    }
}
