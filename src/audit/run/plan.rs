//! Which pictures an audit makes: the rows of the prompt set, with what flags and models say where a row says nothing.

use super::Shard;
use crate::audit::{Malformed, PromptRow, PromptRows};
use crate::checkpoint::{ModelFiles, sha256_hex};
use crate::sd::{UnetConfig, VaeConfig};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What is added to a row's seed for each further picture of it.
pub const SAMPLE_SEEDS: u64 = 1_000_000;

/// A column of a prompt set that may be ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Column {
    /// The noise's seed.
    Seed,
    /// Guidance.
    Guidance,
    /// Width and height.
    Size,
}

impl std::str::FromStr for Column {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "seed" => Ok(Self::Seed),
            "guidance" => Ok(Self::Guidance),
            "size" => Ok(Self::Size),
            _ => Err(Error::usage(format!("--ignore {text} is no column to ignore; choose seed, guidance or size"))),
        }
    }
}

/// Which rows are drawn, and how where they do not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// A row without a seed has this one and its number, from 0.
    pub seed: u64,
    /// Guidance of a row that has none.
    pub guidance_scale: f64,
    /// Width of a picture whose row has none; the model's own if `None`.
    pub width: Option<usize>,
    /// The same for its height.
    pub height: Option<usize>,
    /// What rows say and is not listened to.
    pub ignore: Vec<Column>,
    /// Rows of lower numbers are left out.
    pub from_case: Option<u64>,
    /// How many rows are taken at most.
    pub limit: Option<usize>,
    /// Pictures of each row.
    pub samples: usize,
}

/// A row that is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The line of the file on which it begins.
    pub line: u64,
    /// What its pictures are called by; no two rows have the same.
    pub case: String,
    /// What to draw.
    pub prompt: String,
    /// Seed of its first picture.
    pub seed: u64,
    /// Guidance.
    pub guidance_scale: f64,
    /// Width and height in pixels, where they are not the model's own.
    pub size: (Option<usize>, Option<usize>),
    /// Its other columns.
    pub columns: BTreeMap<String, String>,
}

/// A prompt set, as far as it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptSet {
    /// The name of its file.
    pub name: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// The rows that are drawn.
    pub rows: Vec<Row>,
    /// Those that cannot be.
    pub skipped: Vec<Malformed>,
    /// How many rows have the number of an earlier one, and got another.
    pub renamed: usize,
}

/// What sizes a model draws.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Name of the model.
    pub model: String,
    /// Width and height in pixels that it was trained on.
    pub side: usize,
    /// Widths and heights must be multiples of this.
    pub unit: usize,
}

/// A picture to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// Number of the row.
    pub row: usize,
    /// Number among the pictures of the row.
    pub sample: usize,
    /// Its noise's seed.
    pub seed: u64,
    /// Width and height in pixels.
    pub size: (usize, usize),
}

impl PromptSet {
    /// Reads a prompt set for models that draw these `frames`.
    ///
    /// # Errors
    /// If the file cannot be read, has no prompts, or a row that cannot be drawn and `strict`.
    pub fn read(path: &Path, selection: &Selection, frames: &[Frame], strict: bool) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let name = path.display().to_string();
        let mut set = Self {
            name: path.file_name().map_or_else(|| name.clone(), |name| name.to_string_lossy().into_owned()),
            sha256: sha256_hex(&bytes),
            rows: Vec::new(),
            skipped: Vec::new(),
            renamed: 0,
        };
        let mut taken = HashSet::new();
        for (number, row) in PromptRows::new(bytes.as_slice(), &name)?.enumerate() {
            if selection.limit.is_some_and(|limit| set.rows.len() >= limit) {
                break;
            }
            let row = row.and_then(|row| selection.chosen(row));
            match row.and_then(|row| row.map(|row| selection.resolve(row, number, frames)).transpose()) {
                Ok(None) => {}
                Ok(Some(mut row)) => {
                    set.renamed += usize::from(rename(&mut row.case, &mut taken));
                    set.rows.push(row);
                }
                Err(malformed) if strict => {
                    return Err(Error::file(
                        path,
                        format!("{malformed}; correct it, or leave --strict out to skip such rows"),
                    ));
                }
                Err(malformed) => set.skipped.push(malformed),
            }
        }
        if set.rows.is_empty() {
            let why = match (selection.from_case, set.skipped.first()) {
                (Some(from), _) => format!("no row that can be drawn has a number from {from} on (--from-case)"),
                (None, Some(first)) => format!("none of its rows can be drawn; the first: {first}"),
                (None, None) => "has no rows".into(),
            };
            return Err(Error::file(path, why));
        }
        Ok(set)
    }
}

/// Gives a case that is there already (several captions of a picture) the next free name: `139-2`. Says whether.
fn rename(case: &mut String, taken: &mut HashSet<String>) -> bool {
    // some file systems do not tell letters' cases apart
    if taken.insert(case.to_ascii_lowercase()) {
        return false;
    }
    let free = (2u64..).map(|n| format!("{case}-{n}")).find(|name| taken.insert(name.to_ascii_lowercase()));
    *case = free.unwrap_or_default(); // there is always one
    true
}

impl Selection {
    fn ignores(&self, column: Column) -> bool {
        self.ignore.contains(&column)
    }

    /// The row, unless its number is too low.
    fn chosen(&self, row: PromptRow) -> std::result::Result<Option<PromptRow>, Malformed> {
        let Some(from) = self.from_case else { return Ok(Some(row)) };
        match row.case.parse::<u64>() {
            Ok(case) => Ok((case >= from).then_some(row)),
            Err(_) => {
                let what = format!("is called {:?}, which --from-case {from} cannot be compared with", row.case);
                Err(Malformed { line: row.line, what })
            }
        }
    }

    fn resolve(&self, row: PromptRow, number: usize, frames: &[Frame]) -> std::result::Result<Row, Malformed> {
        let listened = |column: Column| !self.ignores(column);
        let size = |own: Option<usize>, default| own.filter(|_| listened(Column::Size)).or(default);
        let size = (size(row.width, self.width), size(row.height, self.height));
        for (side, frame) in
            [size.0, size.1].into_iter().flatten().flat_map(|side| frames.iter().map(move |f| (side, f)))
        {
            if side == 0 || !side.is_multiple_of(frame.unit) {
                let what = format!(
                    "asks for {side} pixels, but {} draws multiples of {}; correct it, or pass --ignore size",
                    frame.model, frame.unit
                );
                return Err(Malformed { line: row.line, what });
            }
        }
        Ok(Row {
            line: row.line,
            case: row.case,
            prompt: row.prompt,
            seed: row.seed.filter(|_| listened(Column::Seed)).unwrap_or(self.seed.wrapping_add(number as u64)),
            guidance_scale: row.guidance_scale.filter(|_| listened(Column::Guidance)).unwrap_or(self.guidance_scale),
            size,
            columns: row.labels,
        })
    }
}

impl Row {
    /// The seed of picture `sample` of the row.
    pub fn seed_of(&self, sample: usize) -> u64 {
        self.seed.wrapping_add(SAMPLE_SEEDS.wrapping_mul(sample as u64))
    }
}

impl Frame {
    /// Reads a model's configs.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn of(files: &ModelFiles, model: &str) -> Result<Self> {
        let text = |rel: &str| -> Result<String> {
            String::from_utf8(files.read(rel)?.into_owned()).map_err(|e| Error::file(files.describe(rel), e))
        };
        let wrong = |rel: &'static str| move |e: String| Error::file(files.describe(rel), e);
        let unet =
            UnetConfig::from_json(&text("unet/config.json")?).map_err(|e| wrong("unet/config.json")(e.to_string()))?;
        let vae: VaeConfig = serde_json::from_str(&text("vae/config.json")?)
            .map_err(|e| wrong("vae/config.json")(format!("{e}; correct it, or download the file again")))?;
        let halvings = |levels: usize| 1usize << levels.saturating_sub(1).min(16);
        let downsampling = halvings(vae.block_out_channels.len());
        let unit = downsampling * halvings(unet.block_out_channels.len());
        Ok(Self { model: model.into(), side: unet.sample_size.unwrap_or(64) * downsampling, unit })
    }
}

/// The pictures of one model that a shard makes, in order.
pub fn shots(set: &PromptSet, frame: &Frame, samples: usize, shard: Shard) -> Vec<Shot> {
    let rows = set.rows.iter().enumerate().filter(|(i, _)| shard.takes(*i));
    let of_row = |(i, row): (usize, &Row)| {
        let size = (row.size.0.unwrap_or(frame.side), row.size.1.unwrap_or(frame.side));
        let shot = |sample| Shot { row: i, sample, seed: row.seed_of(sample), size };
        (0..samples).map(shot).collect::<Vec<_>>()
    };
    rows.flat_map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection() -> Selection {
        Selection {
            seed: 100,
            guidance_scale: 7.5,
            width: None,
            height: None,
            ignore: vec![],
            from_case: None,
            limit: None,
            samples: 2,
        }
    }

    fn frame() -> Frame {
        Frame { model: "m".into(), side: 64, unit: 16 }
    }

    fn read(text: &str, selection: &Selection, strict: bool) -> Result<PromptSet> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.csv");
        std::fs::write(&path, text).unwrap();
        PromptSet::read(&path, selection, &[frame()], strict)
    }

    const SET: &str = "case_number,prompt,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n\
        7,a,5,9,32,64\n8,b,,,,\n9,c,6,x,,\n10,d,6,1,20,16\n7,e,1,1,,\n";

    #[test]
    fn rows_win_over_flags_unless_they_are_ignored() {
        let set = read(SET, &selection(), false).unwrap();
        let facts = |set: &PromptSet| {
            let row = |r: &Row| (r.case.clone(), r.seed, r.guidance_scale, r.size);
            set.rows.iter().map(row).collect::<Vec<_>>()
        };
        let expected = [
            ("7".to_string(), 5, 9.0, (Some(32), Some(64))),
            ("8".into(), 101, 7.5, (None, None)),
            ("7-2".into(), 1, 1.0, (None, None)),
        ];
        assert_eq!((facts(&set), set.renamed), (expected.into(), 1));
        let skipped: Vec<u64> = set.skipped.iter().map(|row| row.line).collect();
        assert_eq!(skipped, [4, 5]);
        assert!(set.skipped[1].what.contains("20 pixels") && set.skipped[1].what.contains("--ignore size"));
        let ignore = vec![Column::Seed, Column::Guidance, Column::Size];
        let set = read(SET, &Selection { ignore, width: Some(48), ..selection() }, false).unwrap();
        // a guidance that cannot be read is still a malformed row
        let expected: Vec<_> = [("7", 0), ("8", 1), ("10", 3), ("7-2", 4)]
            .map(|(case, i)| (case.to_string(), 100 + i, 7.5, (Some(48), None)))
            .into();
        assert_eq!(facts(&set), expected);
    }

    #[test]
    fn strict_from_and_limit() {
        let message = read(SET, &selection(), true).unwrap_err().to_string();
        assert!(message.contains("set.csv: line 4") && message.contains("--strict"), "{message}");
        let some = Selection { from_case: Some(8), limit: Some(1), ..selection() };
        let set = read(SET, &some, true).unwrap();
        assert_eq!(set.rows.iter().map(|row| row.case.as_str()).collect::<Vec<_>>(), ["8"]);
        let none = Selection { from_case: Some(80), ..selection() };
        assert!(read("prompt\na\n", &none, false).unwrap_err().to_string().contains("--from-case"));
        assert!(read("prompt\n", &selection(), false).unwrap_err().to_string().contains("no rows"));
    }

    #[test]
    fn shards_share_the_pictures() {
        let set = read(SET, &selection(), false).unwrap();
        let all = shots(&set, &frame(), 2, Shard::WHOLE);
        assert_eq!(all.len(), 6);
        assert_eq!((all[0].size, all[2].size), ((32, 64), (64, 64)));
        assert_eq!((all[2].seed, all[3].seed), (101, 1_000_101));
        let mut parts: Vec<Shot> =
            (1..=2).flat_map(|number| shots(&set, &frame(), 2, Shard { number, of: 2 })).collect();
        parts.sort_by_key(|shot| (shot.row, shot.sample));
        assert_eq!(parts, all);
    }
}
