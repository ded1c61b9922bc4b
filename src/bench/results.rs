//! Results of a grid, one line each in a file that a run appends to and a later run goes on with.

use crate::audit::Comparison;
use crate::checkpoint::write_file_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What one variant did to one concept with one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Hash of everything that the outcome depends on.
    pub key: String,
    /// Name of the variant.
    pub variant: String,
    /// Name of the concept.
    pub concept: String,
    /// Seed of the job.
    pub seed: u64,
    /// What was counted.
    pub counts: Comparison,
    /// Repair steps whose gradient was projected, as a fraction.
    pub projected: f64,
    /// Mean retain loss of the last tenth of the steps.
    pub retain_loss: f64,
    /// Seconds of scoring, trimming and repair.
    pub seconds: f64,
}

/// The file of results.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Results {
    /// Reads what is there; a last line that was cut off by the end of an earlier run is dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            write_file_atomic(path, &text.as_bytes()[..whole])?;
        }
        let mut outcomes = Vec::new();
        for (i, line) in text[..whole].lines().enumerate() {
            let outcome = serde_json::from_str(line);
            outcomes.push(outcome.map_err(|e| Error::file(path, format!("line {}: {e}", i + 1)))?);
        }
        Ok(Self { path: path.to_path_buf(), outcomes })
    }

    /// The outcome of a key, if it is known.
    pub fn find(&self, key: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.key == key)
    }

    /// Adds an outcome, and writes it down.
    pub fn push(&mut self, outcome: Outcome) -> Result<()> {
        let mut line = serde_json::to_string(&outcome).map_err(|e| Error::file(&self.path, e))?;
        line.push('\n');
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_data()))
            .map_err(Error::write(&self.path, line.len()))?;
        self.outcomes.push(outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn outcome(key: &str) -> Outcome {
        let counts = Comparison { rate: None, synonyms: None, retain: BTreeMap::new(), mean_drop: None };
        let (variant, concept) = ("v".to_string(), "c".to_string());
        Outcome { key: key.into(), variant, concept, seed: 3, counts, projected: 0.5, retain_loss: 0.1, seconds: 1.5 }
    }

    #[test]
    fn a_cut_line_is_dropped_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut results = Results::open(&path).unwrap();
        results.push(outcome("a")).unwrap();
        results.push(outcome("b")).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        let mut results = Results::open(&path).unwrap();
        assert_eq!(results.find("a"), Some(&outcome("a")));
        assert_eq!(results.find("b"), None);
        results.push(outcome("b")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        std::fs::write(&path, "{}\n").unwrap();
        assert!(Results::open(&path).unwrap_err().to_string().contains("line 1"));
    }
}
