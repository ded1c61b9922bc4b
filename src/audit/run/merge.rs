//! Shards to one audit: the same bytes as if one machine had made all of it.

use super::header::{Against, Header, MetricsRecord};
use super::manifest::{Entry, Key, read, text};
use super::reference::REFERENCE;
use super::{MANIFEST, Shard};
use crate::checkpoint::{sha256_hex, write_file};
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What shards hold together.
pub struct Shards {
    /// What one machine's audit would be.
    pub header: Header,
    /// Every picture, in order, and the folder of the shard that has it.
    pub pictures: Vec<(Entry, PathBuf)>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The folder of one of them: what all have in common is taken from there.
    pub first: PathBuf,
}

/// Reads the manifests of shards and checks that they make one audit.
///
/// # Errors
/// If they do not: other settings, a part that is missing, unfinished or there twice.
pub fn read_shards(folders: &[PathBuf]) -> Result<Shards> {
    let mut parts: BTreeMap<usize, (PathBuf, Header, Vec<Entry>)> = BTreeMap::new();
    let mut first: Option<(&PathBuf, Header)> = None;
    for folder in folders {
        let path = folder.join(MANIFEST);
        let (header, entries, _) = read(&path)?;
        let (first_folder, first) = first.get_or_insert_with(|| (folder, header.clone()));
        check_alike(folder, &header, first_folder, first)?;
        let number = header.shard.number;
        if let Some((other, ..)) = parts.get(&number) {
            let what = format!("is part {}, and so is {}; name each part once", header.shard, other.display());
            return Err(Error::file(folder, what));
        }
        parts.insert(number, (folder.clone(), header, entries));
    }
    let Some((first_folder, first)) = first else { return Err(Error::usage("there are no shards to merge")) };
    let of = first.shard.of;
    let missing: Vec<String> =
        (1..=of).filter(|number| !parts.contains_key(number)).map(|number| format!("{number}/{of}")).collect();
    if !missing.is_empty() {
        return Err(Error::usage(format!("of {of} parts, {} missing: {}", is_are(missing.len()), missing.join(", "))));
    }
    let mut instructions: Vec<&str> = parts.values().map(|(_, h, _)| h.settings.instructions.as_str()).collect();
    instructions.sort_unstable();
    instructions.dedup();
    let mut notes = Vec::new();
    if instructions.len() > 1 {
        notes.push(format!(
            "the parts were made with other vector instructions ({}): pictures differ in their last bits from what one machine \
             makes. ERASE_CONCEPT_INSTRUCTIONS={} on every machine avoids that",
            instructions.join(", "),
            instructions.iter().min_by_key(|name| name.len()).unwrap_or(&"avx2")
        ));
    }
    let mut header = Header { shard: Shard::WHOLE, ..first.clone() };
    header.settings.instructions = instructions.join(", ");
    let pictures = interleave(&header, parts)?;
    Ok(Shards { header, pictures, notes, first: first_folder.clone() })
}

fn is_are(n: usize) -> &'static str {
    if n == 1 { "one is" } else { "some are" }
}

/// All but shard and processor must be the same.
fn check_alike(folder: &Path, header: &Header, first_folder: &Path, first: &Header) -> Result<()> {
    let mut like = header.clone();
    like.settings.instructions.clone_from(&first.settings.instructions);
    // the same files, whether from the Hub or a folder
    for (model, first) in like.models.iter_mut().zip(&first.models) {
        model.hub.clone_from(&first.hub);
    }
    if header.shard.of == first.shard.of {
        like.shard = first.shard;
    }
    let differences = like.differences(first);
    if differences.is_empty() {
        return Ok(());
    }
    let what = format!(
        "is a part of another audit than {} (there): {}. Make the parts with the same command",
        first_folder.display(),
        differences.join("; ")
    );
    Err(Error::file(folder, what))
}

/// The pictures in the order of one machine's audit: models, then rows, then pictures of a row.
fn interleave(header: &Header, parts: BTreeMap<usize, (PathBuf, Header, Vec<Entry>)>) -> Result<Vec<(Entry, PathBuf)>> {
    let samples = header.settings.selection.samples;
    let mut pictures = Vec::with_capacity(header.pictures());
    let mut rows: Vec<(PathBuf, std::vec::IntoIter<Entry>)> = Vec::new();
    for (folder, part, entries) in parts.into_values() {
        let mut seen = std::collections::HashSet::<Key>::new();
        if let Some(entry) = entries.iter().find(|entry| !entry.is_judged(&part)) {
            let what = format!(
                "is not finished: nothing has looked at its picture {}_{} yet; run its command again, then merge",
                entry.case, entry.sample
            );
            return Err(Error::file(folder, what));
        }
        if entries.len() != part.pictures() || !entries.iter().all(|entry| seen.insert(entry.key())) {
            let what = format!(
                "is not finished: {} of its {} pictures are there; run its command again, then merge",
                entries.iter().map(Entry::key).collect::<std::collections::HashSet<_>>().len(),
                part.pictures()
            );
            return Err(Error::file(folder, what));
        }
        rows.push((folder, entries.into_iter()));
    }
    for model in &header.models {
        for row in 0..header.prompts.rows {
            let count = rows.len().max(1);
            let Some((folder, entries)) = rows.get_mut(row % count) else { break };
            for sample in 0..samples {
                match entries.next() {
                    Some(entry) if entry.model == model.name && entry.sample == sample => {
                        pictures.push((entry, folder.clone()));
                    }
                    _ => {
                        let what = "its pictures are not in order, because it was not finished or was changed by hand; run \
                                    its command again, then merge";
                        return Err(Error::file(folder.as_path(), what));
                    }
                }
            }
        }
    }
    Ok(pictures)
}

impl Shards {
    /// Writes manifest and pictures into an empty folder; every picture's hash is checked on the way.
    ///
    /// # Errors
    /// If a picture is missing or is not what its shard wrote, or something cannot be written.
    pub fn write(&self, folder: &Path, progress: &mut dyn Progress) -> Result<Vec<Entry>> {
        progress.event(Event::Stage { name: "merging", steps: self.pictures.len() });
        let mut entries = Vec::with_capacity(self.pictures.len());
        for (entry, shard) in &self.pictures {
            check_interrupted()?;
            if let Some(file) = &entry.file {
                let from = shard.join(file);
                let bytes = std::fs::read(&from).map_err(Error::io(&from))?;
                if sha256_hex(&bytes) != entry.sha256 {
                    let what = "is not what its part wrote: its hash differs; run the part's command again, then merge";
                    return Err(Error::file(from, what));
                }
                let to = folder.join(file);
                let parent = to.parent().unwrap_or(folder);
                std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
                write_file(&to, &bytes)?;
            }
            entries.push(entry.clone());
            progress.event(Event::Step { loss: None });
        }
        if matches!(self.header.metrics, MetricsRecord { clip: Some(_), against: Some(Against::Folder { .. }), .. }) {
            let from = self.first.join(REFERENCE);
            let bytes = std::fs::read(&from).map_err(Error::io(&from))?;
            write_file(&folder.join(REFERENCE), &bytes)?;
        }
        let path = folder.join(MANIFEST);
        write_file(&path, text(&path, &self.header, &entries)?.as_bytes())?;
        Ok(entries)
    }
}
