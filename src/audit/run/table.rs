//! `audit.csv`: a row for each picture, for spreadsheets and scripts.

use super::header::Header;
use super::manifest::Entry;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// What separates the labels of a cell.
const BETWEEN: &str = "; ";

/// The table. `path` is what messages call it.
pub(super) fn csv(path: &Path, header: &Header, entries: &[Entry]) -> Result<Vec<u8>> {
    let wrong = |e: csv::Error| Error::file(path, e);
    let columns: BTreeSet<&String> = entries.iter().flat_map(|entry| entry.columns.keys()).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let own =
        ["model", "case_number", "sample", "prompt", "seed", "guidance_scale", "width", "height", "file", "sha256"];
    let detectors = header.detectors.iter().map(|detector| detector.key.as_str());
    let names = own.into_iter().chain(detectors).chain(columns.iter().map(|name| name.as_str()));
    writer.write_record(names).map_err(wrong)?;
    for e in entries {
        let numbers = [e.seed.to_string(), e.guidance_scale.to_string(), e.width.to_string(), e.height.to_string()];
        let mut record = vec![e.model.clone(), e.case.clone(), e.sample.to_string(), e.prompt.clone()];
        record.extend(numbers);
        record.extend([e.file.clone().unwrap_or_default(), e.sha256.clone()]);
        let found = |key: &String| e.labels.get(key).map_or_else(String::new, |labels| labels.join(BETWEEN));
        record.extend(header.detectors.iter().map(|detector| found(&detector.key)));
        record.extend(columns.iter().map(|name| e.columns.get(*name).cloned().unwrap_or_default()));
        writer.write_record(record).map_err(wrong)?;
    }
    writer.into_inner().map_err(|e| Error::file(path, e))
}
