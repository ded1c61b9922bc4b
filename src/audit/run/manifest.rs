//! `manifest.jsonl`: a line that says what the audit is, and one for each picture that is there, written as it comes.
//!
//! The file is only ever appended to, until all pictures are there and it is put in order. A last line that a killed process left
//! unfinished is cut off by the next.

use super::clip::ClipLook;
use super::header::{Header, SCHEMA};
use super::{IMAGES, MANIFEST};
use crate::audit::Detection;
use crate::checkpoint::{sha256_file, sweep_files, write_file_atomic};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A picture that is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the model.
    pub model: String,
    /// What the row is called.
    pub case: String,
    /// Number among the pictures of the row.
    pub sample: usize,
    /// The line of the prompt set on which the row begins.
    pub line: u64,
    /// What was to be drawn.
    pub prompt: String,
    /// The noise's seed.
    pub seed: u64,
    /// Guidance.
    pub guidance_scale: f64,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// The file, relative to the audit's folder; absent if pictures are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// SHA-256 of the file (of what it would be, if pictures are not kept).
    pub sha256: String,
    /// For each detector, what it found.
    pub labels: BTreeMap<String, Vec<String>>,
    /// For each detector that has scores, those of the labels, or every box.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub scores: BTreeMap<String, Vec<Detection>>,
    /// What CLIP makes of it, if that is asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clip: Option<ClipLook>,
    /// Its structural similarity to the picture of the same row and number of the model that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ssim: Option<f64>,
    /// The row's other columns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub columns: BTreeMap<String, String>,
}

/// Model, case and number of a picture.
pub type Key = (String, String, usize);

impl Entry {
    /// What no two pictures of an audit have in common.
    pub fn key(&self) -> Key {
        (self.model.clone(), self.case.clone(), self.sample)
    }

    /// Whether everything that looks at pictures has looked at this one.
    pub fn is_judged(&self, header: &Header) -> bool {
        let detectors = header.detectors.iter().all(|detector| self.labels.contains_key(&detector.key));
        detectors && (self.clip.is_some() || header.metrics.clip.is_none())
    }

    /// Forgets what is not what `here` asks for.
    fn forget(&mut self, there: &Header, here: &Header) {
        let counts = |key: &str| there.detectors.iter().any(|detector| detector.key == key && here.knows(detector));
        self.labels.retain(|key, _| counts(key));
        self.scores.retain(|key, _| counts(key));
        if there.metrics.clip != here.metrics.clip {
            self.clip = None;
        }
        if there.metrics.against != here.metrics.against {
            self.ssim = None;
        }
    }
}

/// What is found in the folder of an audit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Left {
    /// Pictures that are gone or damaged.
    pub damaged: usize,
    /// Pictures that were not kept and that not everything has looked at which is to look at them now.
    pub unseen: usize,
}

/// The manifest of a folder, which no other process may write meanwhile.
pub struct Manifest {
    path: PathBuf,
    file: File,
    header: Header,
    entries: Vec<Entry>,
    /// Whether entries were written since: they stay in the file, so that an audit of any length needs no more memory.
    behind: bool,
}

impl Manifest {
    /// Opens the audit of a folder, or begins one. Entries whose pictures are gone or damaged are dropped, and what detectors
    /// found that are not to look now is forgotten; how many must be made again is returned too.
    ///
    /// # Errors
    /// If the folder holds something else or an audit of other pictures, another process works in it, or it cannot be written.
    pub fn open(folder: &Path, header: &Header) -> Result<(Self, Left)> {
        let path = folder.join(MANIFEST);
        let mut file = claim(folder, &path)?;
        begin(&file, &path, header)?;
        sweep_files(folder)?;
        let (found, entries, whole) = read(&path)?;
        let differences = header.differences_of_pictures(&found);
        if !differences.is_empty() {
            let what = format!(
                "was begun otherwise, so that it cannot go on: {}. Repeat the command that began it, or choose another --output",
                differences.join("; ")
            );
            return Err(Error::file(path, what));
        }
        if file.metadata().map_err(Error::io(&path))?.len() > whole {
            file.set_len(whole).map_err(Error::io(&path))?;
        }
        let count = entries.len();
        let mut left = Left::default();
        let mut entries: Vec<Entry> = match header.settings.images {
            true => keep_whole(folder, entries)?,
            false => entries,
        };
        left.damaged = count - entries.len();
        if found != *header {
            entries.iter_mut().for_each(|entry| entry.forget(&found, header));
            if !header.settings.images {
                let count = entries.len();
                entries.retain(|entry| entry.is_judged(header));
                left.unseen = count - entries.len();
            }
            write_file_atomic(&path, text(&path, header, &entries)?.as_bytes())?;
            file = claim(folder, &path)?; // a new file, whose lock is its own
        }
        Ok((Self { path, file, header: header.clone(), entries, behind: false }, left))
    }

    /// What the audit is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The pictures that are there; none of them once one was written, until [`Manifest::catch_up`].
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reads what was written since. Of a picture there may be several entries then, the last of which counts.
    ///
    /// # Errors
    /// If the file cannot be read, or somebody else changed it.
    pub fn catch_up(&mut self) -> Result<()> {
        if self.behind {
            self.entries = read(&self.path)?.1;
            self.behind = false;
        }
        Ok(())
    }

    /// Writes down that a picture is there.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        let line = line(&self.path, entry)?;
        self.file.write_all(line.as_bytes()).map_err(Error::write(&self.path, line.len()))?;
        (self.entries, self.behind) = (Vec::new(), true);
        Ok(())
    }

    /// Puts the pictures in order, once all are there, and makes the file durable. `order` gives each picture's place.
    ///
    /// # Errors
    /// If it cannot be written, or pictures are missing.
    pub fn complete(mut self, order: &HashMap<Key, usize>) -> Result<(Header, Vec<Entry>)> {
        self.catch_up()?;
        // the last word on a picture counts: an earlier one's file was damaged
        let mut places: BTreeMap<usize, Entry> = BTreeMap::new();
        for entry in self.entries {
            if let Some(place) = order.get(&entry.key()) {
                places.insert(*place, entry);
            }
        }
        if places.len() != order.len() {
            let what = format!("has {} of {} pictures; run the same command again", places.len(), order.len());
            return Err(Error::file(&self.path, what));
        }
        let entries: Vec<Entry> = places.into_values().collect();
        let text = text(&self.path, &self.header, &entries)?;
        if std::fs::read(&self.path).map_err(Error::io(&self.path))? != text.as_bytes() {
            write_file_atomic(&self.path, text.as_bytes())?;
        }
        Ok((self.header, entries))
    }
}

/// A whole manifest.
pub(super) fn text(path: &Path, header: &Header, entries: &[Entry]) -> Result<String> {
    let mut text = line(path, header)?;
    for entry in entries {
        text.push_str(&line(path, entry)?);
    }
    Ok(text)
}

fn line(path: &Path, value: &impl Serialize) -> Result<String> {
    let mut line = serde_json::to_string(value).map_err(|e| Error::file(path, e))?;
    line.push('\n');
    Ok(line)
}

/// Opens the manifest of a folder, both of which are made if they are not there. What holds other things is left alone.
fn claim(folder: &Path, path: &Path) -> Result<File> {
    let unusable = |e: std::io::Error| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::io(folder)(e),
        _ => Error::file(folder, format!("cannot be used: {e}; choose another --output")),
    };
    std::fs::create_dir_all(folder).map_err(unusable)?;
    if !std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        let ours = |name: &str| name == MANIFEST || name.starts_with(&format!(".{MANIFEST}"));
        let mut names =
            std::fs::read_dir(folder).map_err(unusable)?.filter_map(|entry| entry.ok()).map(|e| e.file_name());
        if names.any(|name| !ours(&name.to_string_lossy())) {
            return Err(Error::file(folder, "is there already and holds no audit; choose another --output"));
        }
    }
    let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(Error::io(path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let what = "another process is working on this audit; wait for it, or choose another --output";
            Err(Error::file(folder, what))
        }
        Err(TryLockError::Error(_)) | Ok(()) => Ok(file), // a file system without locks
    }
}

/// Writes the first line, if there is none or a process was killed while it wrote it.
fn begin(mut file: &File, path: &Path, header: &Header) -> Result<()> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if bytes.contains(&b'\n') {
        return Ok(());
    }
    file.set_len(0).map_err(Error::io(path))?;
    let line = line(path, header)?;
    file.write_all(line.as_bytes()).map_err(Error::write(path, line.len()))
}

/// Header and entries of a manifest, and how long it is without an unfinished last line.
///
/// # Errors
/// If it is no manifest of this version.
pub(super) fn read(path: &Path) -> Result<(Header, Vec<Entry>, u64)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let wrong = |number: usize, e: &dyn std::fmt::Display| {
        Error::file(path, format!("line {number}: {e}; this is no manifest of an audit, or it was changed by hand"))
    };
    let text = std::str::from_utf8(&bytes[..whole]).map_err(|e| wrong(1, &e))?;
    let mut lines = text.lines();
    let first = lines.next().ok_or_else(|| Error::file(path, "is empty; delete it, and what is beside it"))?;
    let value: serde_json::Value = serde_json::from_str(first).map_err(|e| wrong(1, &e))?;
    if let Some(schema) = value["schema"].as_str().filter(|schema| *schema != SCHEMA) {
        let what =
            format!("has the layout {schema}, this version of the program writes {SCHEMA}; choose another --output");
        return Err(Error::file(path, what));
    }
    let header: Header = serde_json::from_value(value).map_err(|e| wrong(1, &e))?;
    let entries: Result<Vec<Entry>> =
        lines.enumerate().map(|(i, line)| serde_json::from_str(line).map_err(|e| wrong(i + 2, &e))).collect();
    Ok((header, entries?, whole as u64))
}

/// Those entries whose files are there and whole.
fn keep_whole(folder: &Path, entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let mut kept = Vec::with_capacity(entries.len());
    for entry in entries {
        check_interrupted()?;
        let file = entry.file.as_ref().filter(|file| file.starts_with(IMAGES)).map(|file| folder.join(file));
        if file.is_some_and(|file| sha256_file(file).is_ok_and(|hash| hash == entry.sha256)) {
            kept.push(entry);
        }
    }
    Ok(kept)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::header::tests::header;
    use super::*;
    use crate::checkpoint::sha256_hex;

    pub fn entry(folder: &Path, case: &str) -> Entry {
        let file = format!("{IMAGES}/{case}_0.png");
        std::fs::create_dir_all(folder.join(IMAGES)).unwrap();
        std::fs::write(folder.join(&file), case).unwrap();
        Entry {
            model: "m".into(),
            case: case.into(),
            sample: 0,
            line: 2,
            prompt: "p\n\"q\"".into(),
            seed: 1,
            guidance_scale: 7.5,
            width: 64,
            height: 64,
            file: Some(file),
            sha256: sha256_hex(case.as_bytes()),
            labels: BTreeMap::from([("classifier".to_string(), vec!["shape: star".to_string()])]),
            scores: BTreeMap::new(),
            clip: None,
            ssim: None,
            columns: BTreeMap::new(),
        }
    }

    fn order(cases: &[&str]) -> HashMap<Key, usize> {
        cases.iter().enumerate().map(|(i, case)| (("m".to_string(), case.to_string(), 0), i)).collect()
    }

    #[test]
    fn an_unfinished_line_is_cut_off_and_a_damaged_picture_made_anew() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("deep/out");
        let (mut manifest, left) = Manifest::open(&folder, &header()).unwrap();
        assert_eq!((manifest.entries().len(), left), (0, Left::default()));
        for case in ["b", "c", "a"] {
            manifest.push(&entry(&folder, case)).unwrap();
        }
        let message = Manifest::open(&folder, &header()).err().unwrap().to_string();
        assert!(message.contains("another process"), "{message}");
        drop(manifest);
        let path = folder.join(MANIFEST);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        std::fs::write(folder.join("images/b_0.png"), "x").unwrap();
        let (mut manifest, dropped) = Manifest::open(&folder, &header()).unwrap();
        assert_eq!(
            (manifest.entries().iter().map(|e| e.case.as_str()).collect::<Vec<_>>(), dropped.damaged),
            (vec!["c"], 1)
        );
        for case in ["a", "b"] {
            manifest.push(&entry(&folder, case)).unwrap();
        }
        assert_eq!(manifest.entries(), [], "what is written is not kept");
        manifest.catch_up().unwrap();
        assert_eq!(manifest.entries().iter().map(|e| e.case.as_str()).collect::<Vec<_>>(), ["b", "c", "a", "b"]);
        // killed once more: what came after the unfinished line can be read
        drop(manifest);
        let (manifest, dropped) = Manifest::open(&folder, &header()).unwrap();
        assert_eq!((manifest.entries().len(), dropped.damaged), (4, 0), "b is there twice, and both are the same");
        let (_, entries) = manifest.complete(&order(&["a", "b", "c"])).unwrap();
        assert_eq!(entries.iter().map(|e| e.case.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let (found, again, _) = read(&path).unwrap();
        assert_eq!((found, again), (header(), entries));
    }

    #[test]
    fn another_detector_keeps_the_pictures_and_forgets_what_the_first_found() {
        for images in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let mut first = header();
            first.settings.images = images;
            let (mut manifest, _) = Manifest::open(folder.path(), &first).unwrap();
            let seen = entry(folder.path(), "a");
            manifest.push(&Entry { ssim: Some(0.5), clip: Some(ClipLook::new(&[1.0], 20.0)), ..seen.clone() }).unwrap();
            drop(manifest);
            let mut second = first.clone();
            second.detectors[0].sha256 = "00".repeat(32);
            second.metrics.against = Some(super::super::Against::Model("m".into()));
            let (manifest, left) = Manifest::open(folder.path(), &second).unwrap();
            assert_eq!(left, Left { damaged: 0, unseen: usize::from(!images) });
            if images {
                let entry = &manifest.entries()[0];
                assert_eq!((entry.labels.len(), entry.ssim, entry.clip.is_some()), (0, None, true));
                assert!(!entry.is_judged(&second) && entry.sha256 == seen.sha256);
            } else {
                assert_eq!(manifest.entries(), [], "it must be made again: it was not kept");
            }
            // the folder says what it holds, and is still locked
            assert_eq!(read(&folder.path().join(MANIFEST)).unwrap().0, second);
            let message = Manifest::open(folder.path(), &second).err().unwrap().to_string();
            assert!(message.contains("another process"), "{message}");
        }
    }

    #[test]
    fn pictures_that_are_missing_are_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (mut manifest, _) = Manifest::open(folder.path(), &header()).unwrap();
        manifest.push(&entry(folder.path(), "a")).unwrap();
        let message = manifest.complete(&order(&["a", "b"])).unwrap_err().to_string();
        assert!(message.contains("1 of 2 pictures"), "{message}");
    }

    #[test]
    fn another_audit_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        drop(Manifest::open(folder.path(), &header()).unwrap());
        let mut other = header();
        other.settings.steps = 8;
        let message = Manifest::open(folder.path(), &other).err().unwrap().to_string();
        assert!(message.contains("settings.steps is 30 there and 8 here"), "{message}");
        let line = |text: &str| {
            std::fs::write(folder.path().join(MANIFEST), text).unwrap();
            Manifest::open(folder.path(), &header()).err().unwrap().to_string()
        };
        assert!(line("{\"schema\":\"erase-concept.manifest/9\"}\n").contains("manifest/9"));
        assert!(line("hello\n").contains("line 1"));
        // killed while it wrote its first line
        std::fs::write(folder.path().join(MANIFEST), "{\"sche").unwrap();
        assert_eq!(Manifest::open(folder.path(), &header()).unwrap().0.entries(), []);
        let strange = tempfile::tempdir().unwrap();
        std::fs::write(strange.path().join("thesis.tex"), "x").unwrap();
        assert!(Manifest::open(strange.path(), &header()).err().unwrap().to_string().contains("holds no audit"));
    }
}
