//! A folder of pictures that an audit's are compared with: what CLIP makes of each, kept in `reference.jsonl`, so that shards can
//! be merged where the folder is not at hand.

use super::clip::{ClipEye, from_hex, to_hex};
use super::header::{Against, UsedClip};
use super::judge::TOGETHER;
use crate::checkpoint::{sha256_file, sha256_hex, write_file_atomic};
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file in the audit's folder.
pub const REFERENCE: &str = "reference.jsonl";
/// What is read.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// A folder of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    folder: PathBuf,
    /// File within the folder, and SHA-256.
    files: Vec<(String, String)>,
}

/// The first line: what the features are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    clip: UsedClip,
    against: Against,
}

/// The other lines.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    file: String,
    sha256: String,
    features: String,
}

impl Reference {
    /// Lists and hashes the pictures that lie in the folder itself.
    ///
    /// # Errors
    /// If the folder or a picture cannot be read, or there is none.
    pub fn find(folder: &Path, progress: &mut dyn Progress) -> Result<Self> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            let is_picture = ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) && path.is_file();
            if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| is_picture) {
                names.push(name.to_string());
            }
        }
        names.sort();
        if names.is_empty() {
            return Err(Error::file(folder, "has no pictures (.png, .jpg); name the folder that they lie in"));
        }
        progress.event(Event::Stage { name: "hashing the pictures to compare with", steps: names.len() });
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            check_interrupted()?;
            let sha256 = sha256_file(folder.join(&name))?;
            files.push((name, sha256));
            progress.event(Event::Step { loss: None });
        }
        Ok(Self { folder: folder.to_path_buf(), files })
    }

    /// What the manifest says of it.
    pub fn against(&self) -> Against {
        let name = self.folder.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned());
        let lines: String = self.files.iter().map(|(file, sha256)| format!("{file}\0{sha256}\n")).collect();
        Against::Folder { name, pictures: self.files.len(), sha256: sha256_hex(lines.as_bytes()) }
    }

    /// Writes what CLIP makes of the pictures into an audit's folder, unless that is there.
    ///
    /// # Errors
    /// If interrupted, a picture cannot be read or was changed meanwhile, or the file cannot be written.
    pub fn write(&self, output: &Path, eye: &ClipEye, progress: &mut dyn Progress) -> Result<()> {
        let (path, head) = (output.join(REFERENCE), Head { clip: eye.used.clone(), against: self.against() });
        if path.is_file() && read_as(&path, &head).is_ok() {
            return Ok(());
        }
        progress.event(Event::Stage { name: "looking at the pictures to compare with", steps: self.files.len() });
        let wrong = |e: serde_json::Error| Error::file(&path, e);
        let mut text = serde_json::to_string(&head).map_err(wrong)? + "\n";
        for batch in self.files.chunks(TOGETHER) {
            check_interrupted()?;
            for (file, sha256) in batch {
                let from = self.folder.join(file);
                let bytes = std::fs::read(&from).map_err(Error::io(&from))?;
                if sha256_hex(&bytes) != *sha256 {
                    return Err(Error::file(from, "was changed while it was read; run again"));
                }
                let image = image::load_from_memory(&bytes)
                    .map_err(|e| Error::file(&from, format!("{e}; take it out of the folder, or replace it")))?;
                let features = eye.model.image_features(&[image.into_rgb8()])?;
                let features = features.first().map(|row| to_hex(row)).unwrap_or_default();
                let line = Line { file: file.clone(), sha256: sha256.clone(), features };
                text.push_str(&serde_json::to_string(&line).map_err(wrong)?);
                text.push('\n');
                progress.event(Event::Step { loss: None });
            }
        }
        write_file_atomic(&path, text.as_bytes())
    }
}

/// The features in an audit's folder, which must be by this CLIP and of these pictures.
///
/// # Errors
/// If they are not there, of something else, or damaged.
pub(super) fn features(output: &Path, clip: &UsedClip, against: &Against) -> Result<Vec<Vec<f32>>> {
    read_as(&output.join(REFERENCE), &Head { clip: clip.clone(), against: against.clone() })
}

fn read_as(path: &Path, head: &Head) -> Result<Vec<Vec<f32>>> {
    let wrong = |what: &str| Error::file(path, format!("{what}; delete it and run the audit's command again"));
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut lines = text.lines();
    let found = lines.next().and_then(|line| serde_json::from_str::<Head>(line).ok());
    if found.as_ref() != Some(head) {
        return Err(wrong("is of other pictures, or by another CLIP"));
    }
    let lines: Option<Vec<Line>> = lines.map(|line| serde_json::from_str(line).ok()).collect();
    let lines = lines.ok_or_else(|| wrong("is damaged"))?;
    let listed: String = lines.iter().map(|line| format!("{}\0{}\n", line.file, line.sha256)).collect();
    let features: Option<Vec<Vec<f32>>> = lines.iter().map(|line| from_hex(&line.features)).collect();
    match (&head.against, features) {
        (Against::Folder { sha256, .. }, Some(features)) if sha256_hex(listed.as_bytes()) == *sha256 => Ok(features),
        _ => Err(wrong("is damaged")),
    }
}
