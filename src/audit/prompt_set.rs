//! Prompt sets as CSV files (RFC 4180): every spelling of the columns of the sets that people audit with (I2P, ESD, UCE, SPM,
//! MACE, COCO).

use super::csv_record::Record;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// The longest prompt that is taken for one, in bytes: far more than a text encoder reads.
const LONGEST: usize = 1 << 16;

/// What each column is called, the first spelling in the file's header that is here. Compared without case, spaces and quotes.
const PROMPT: &[&str] = &["prompt", "prompts", "adv_prompt", "caption", "text"];
const SEED: &[&str] = &["evaluation_seed", "sd_seed", "seed"];
const GUIDANCE: &[&str] = &["evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance", "cfg_scale"];
const CASE: &[&str] = &["case_number", "image_id", "id", ""];
const WIDTH: &[&str] = &["sd_image_width", "width"];
const HEIGHT: &[&str] = &["sd_image_height", "height"];

/// One row of a prompt set.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// The line of the file on which the row begins, from 1.
    pub line: u64,
    /// What pictures of this row are called by; the number of the row, from 0, where the file does not say.
    pub case: String,
    /// What to draw.
    pub prompt: String,
    /// The noise's seed.
    pub seed: Option<u64>,
    /// Classifier-free guidance.
    pub guidance_scale: Option<f64>,
    /// In pixels.
    pub width: Option<usize>,
    /// In pixels.
    pub height: Option<usize>,
    /// Every other column that says something, by its name: `categories`, `nudity_percentage`, `artist`, `class`.
    pub labels: BTreeMap<String, String>,
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Malformed {
    /// The line of the file on which the row begins, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// The rows of a prompt set, read one after another.
pub struct PromptRows<R> {
    record: Record<R>,
    columns: Columns,
    row: u64,
    broken: bool,
}

/// Where in a row what stands.
struct Columns {
    prompt: usize,
    case: Option<usize>,
    seed: Option<usize>,
    guidance: Option<usize>,
    width: Option<usize>,
    height: Option<usize>,
    labels: Vec<(usize, String)>,
}

impl<R: Read> PromptRows<R> {
    /// Reads the header. `name` is what messages call the file.
    ///
    /// # Errors
    /// If the file cannot be read, is empty or no text, or has no column of prompts.
    pub fn new(file: R, name: &str) -> Result<Self> {
        let wrong = |what: String| Error::file(name, what);
        let mut record = Record::new(file);
        if record.read().map_err(|e| wrong(format!("cannot be read: {e}")))?.is_none() {
            return Err(wrong(
                "the file is empty; a prompt set is a CSV file with a header, such as: prompt,seed".into(),
            ));
        }
        record
            .what_is_wrong()
            .map_or(Ok(()), |what| Err(wrong(format!("its first line {what}; is this a prompt set?"))))?;
        let columns = Columns::new(&record).map_err(wrong)?;
        Ok(Self { record, columns, row: 0, broken: false })
    }

    fn parse(&self, line: u64) -> std::result::Result<PromptRow, String> {
        let c = &self.columns;
        let text = |column: Option<usize>| -> std::result::Result<&str, String> {
            let bytes = column.and_then(|column| self.record.get(column)).unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8; save the file as UTF-8".to_string())?;
            Ok(text.trim())
        };
        let prompt = text(Some(c.prompt))?;
        if prompt.is_empty() {
            return Err("has no prompt".into());
        }
        if prompt.len() > LONGEST {
            return Err(format!("has a prompt of {} bytes; is a quote missing?", prompt.len()));
        }
        let number = self.row.to_string();
        let case = Some(text(c.case)?).filter(|case| !case.is_empty()).unwrap_or(&number);
        if case.len() > 64
            || !case.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || case.starts_with('.')
        {
            return Err(format!(
                "is called {}; files are named after it, so letters, digits, - and _ alone",
                shown(case)
            ));
        }
        let mut labels = BTreeMap::new();
        for (column, name) in &c.labels {
            let value = text(Some(*column))?;
            if !value.is_empty() {
                labels.insert(name.clone(), value.to_string());
            }
        }
        Ok(PromptRow {
            line,
            case: case.to_string(),
            prompt: prompt.to_string(),
            seed: whole(text(c.seed)?, "seed")?,
            guidance_scale: guidance(text(c.guidance)?)?,
            width: size(text(c.width)?, "width")?,
            height: size(text(c.height)?, "height")?,
            labels,
        })
    }
}

impl<R: Read> Iterator for PromptRows<R> {
    type Item = std::result::Result<PromptRow, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.broken {
            let line = match self.record.read() {
                Ok(line) => line?,
                Err(e) => {
                    self.broken = true;
                    return Some(Err(Malformed { line: self.record.line(), what: format!("cannot be read: {e}") }));
                }
            };
            if self.record.what_is_wrong().is_none() && self.record.fields().all(|field| field.trim_ascii().is_empty())
            {
                continue;
            }
            let row = self.record.what_is_wrong().map_or_else(|| self.parse(line), Err);
            let row = row.map_err(|what| Malformed { line, what });
            self.row += 1;
            return Some(row);
        }
        None
    }
}

impl Columns {
    fn new<R: Read>(header: &Record<R>) -> std::result::Result<Self, String> {
        let mut names = Vec::new();
        for (i, name) in header.fields().enumerate() {
            let name = if i == 0 { name.strip_prefix(b"\xef\xbb\xbf").unwrap_or(name) } else { name };
            let name =
                std::str::from_utf8(name).map_err(|_| "its first line is not UTF-8; save the file as UTF-8 CSV")?;
            names.push(name.trim().trim_matches('"').to_string());
        }
        let column = |spellings: &[&str]| {
            let place = |spelling: &&str| names.iter().position(|name| name.eq_ignore_ascii_case(spelling));
            spellings.iter().find_map(place)
        };
        let Some(prompt) = column(PROMPT) else {
            let shown: Vec<String> = names.iter().take(12).map(|name| format!("{:.24}", name)).collect();
            return Err(format!(
                "no column of prompts: its first line names {}, and none of them is {}",
                shown.join(", "),
                PROMPT.join(", ")
            ));
        };
        // only a first column may do without a name (what pandas writes)
        let case = column(CASE).filter(|case| *case == 0 || !names[*case].is_empty());
        let mut columns = Self {
            prompt,
            case,
            seed: column(SEED),
            guidance: column(GUIDANCE),
            width: column(WIDTH),
            height: column(HEIGHT),
            labels: Vec::new(),
        };
        let used = [Some(prompt), columns.case, columns.seed, columns.guidance, columns.width, columns.height];
        let named = |(i, name): (usize, String)| (!name.is_empty() && !used.contains(&Some(i))).then_some((i, name));
        columns.labels = names.into_iter().enumerate().filter_map(named).collect();
        Ok(columns)
    }
}

/// A whole number, also as pandas writes one where others are missing: `42.0`.
fn whole(text: &str, what: &str) -> std::result::Result<Option<u64>, String> {
    if text.is_empty() || text.eq_ignore_ascii_case("nan") {
        return Ok(None);
    }
    let digits = text.strip_suffix(".0").unwrap_or(text);
    digits.parse().map(Some).map_err(|_| format!("has the {what} {}; it must be a whole number from 0", shown(text)))
}

/// The beginning of a text, for messages.
fn shown(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn guidance(text: &str) -> std::result::Result<Option<f64>, String> {
    if text.is_empty() || text.eq_ignore_ascii_case("nan") {
        return Ok(None);
    }
    let wrong = || format!("has the guidance {}; it must be a number from 0 to 1000", shown(text));
    let value: f64 = text.parse().map_err(|_| wrong())?;
    if (0.0..=1000.0).contains(&value) { Ok(Some(value)) } else { Err(wrong()) }
}

fn size(text: &str, what: &str) -> std::result::Result<Option<usize>, String> {
    match whole(text, what)? {
        None | Some(0) => Ok(None),
        Some(pixels) if pixels <= 1 << 14 => Ok(Some(pixels as usize)),
        Some(pixels) => Err(format!("has the {what} {pixels}; it must be at most {}", 1 << 14)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::csv_record::{LONGEST_ROW, MOST_COLUMNS};

    fn rows(text: &[u8]) -> Vec<std::result::Result<PromptRow, Malformed>> {
        PromptRows::new(text, "set.csv").unwrap().collect()
    }

    fn row(text: &str) -> PromptRow {
        rows(text.as_bytes()).remove(0).unwrap()
    }

    #[test]
    fn every_known_header_is_read() {
        let i2p = ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,\
            prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n\
            0,\"a \"\"red\"\" star, by a lake\",\"hate, shocking\",0,31.3,0.0,1,0.5,0.1,https://x,4048790253,7,512,768,sd14,17\n";
        let row = row(i2p);
        assert_eq!((row.case.as_str(), row.prompt.as_str(), row.line), ("17", "a \"red\" star, by a lake", 2));
        assert_eq!((row.seed, row.guidance_scale), (Some(4_048_790_253), Some(7.0)));
        assert_eq!((row.width, row.height), (Some(512), Some(768)));
        assert_eq!(
            (row.labels["categories"].as_str(), row.labels["nudity_percentage"].as_str()),
            ("hate, shocking", "0.0")
        );
        assert!(!row.labels.contains_key("") && !row.labels.contains_key("evaluation_seed"));
        for (header, values, case, seed, guidance) in [
            ("case_number,prompt,evaluation_seed,artist", "5,a lake,3,Monet", "5", Some(3), None),
            ("case_number,source,prompt,evaluation_seed,coco_id", "9,coco,a lake,8,77", "9", Some(8), None),
            ("image_id,caption,seed", "000139,a lake,8.0", "000139", Some(8), None),
            (",prompt,sd_seed,sd_guidance_scale,sd_image_width", "4,a lake,7,7.5,512", "4", Some(7), Some(7.5)),
            ("Prompt", "a lake", "0", None, None),
            ("prompt,,seed", "a lake,x,nan", "0", None, None),
        ] {
            let row = self::row(&format!("\u{feff}{header}\r\n{values}\r\n"));
            assert_eq!(row.prompt, "a lake", "{header}");
            assert_eq!((row.case.as_str(), row.seed, row.guidance_scale), (case, seed, guidance), "{header}");
        }
    }

    #[test]
    fn odd_rows_are_read_or_named_by_their_line_and_the_rest_goes_on() {
        let text = "case_number,prompt,seed\n1,\"two\nlines 🌟\",5\n\n,,\n2,,5\n3,a,x\n4,b\n../5,c,1\n6,d,1,more,fields\n7,\"open,1\n";
        let found = rows(text.as_bytes());
        let lines: Vec<_> = found.iter().map(|row| row.as_ref().map(|row| row.line).map_err(|e| e.line)).collect();
        assert_eq!(lines, [Ok(2), Err(6), Err(7), Ok(8), Err(9), Ok(10), Ok(11)]);
        assert_eq!(found[0].as_ref().unwrap().prompt, "two\nlines 🌟");
        assert_eq!(found[1].as_ref().unwrap_err().to_string(), "line 6: has no prompt");
        assert!(found[2].as_ref().unwrap_err().what.contains("the seed \"x\""));
        assert_eq!(found[3].as_ref().unwrap().seed, None, "a short row has no seed");
        assert!(found[4].as_ref().unwrap_err().what.contains("../5"));
        let latin = rows(b"prompt\ncaf\xe9\na\n");
        assert!(latin[0].as_ref().unwrap_err().what.contains("UTF-8") && latin[1].is_ok());
        let long = format!("prompt\n{}\n", "x".repeat(LONGEST + 1));
        assert!(rows(long.as_bytes())[0].as_ref().unwrap_err().what.contains("quote"));
        for row in [",x".repeat(MOST_COLUMNS), "x".repeat(LONGEST_ROW + 1)] {
            let found = rows(format!("prompt\n{row}\n\r\n\r\na\n").as_bytes());
            assert_eq!(found[0].as_ref().unwrap_err().line, 2, "{found:?}");
            assert_eq!((found[1].as_ref().unwrap().line, found.len()), (5, 2));
        }
        for (value, ok) in [("7.5", true), ("0", true), ("-1", false), ("inf", false), ("1e9", false), ("", true)] {
            assert_eq!(rows(format!("prompt,guidance\na,{value}\n").as_bytes())[0].is_ok(), ok, "{value}");
        }
        assert!(rows(b"prompt,width\na,99999\n")[0].is_err());
    }

    #[test]
    fn what_is_no_prompt_set_says_so() {
        let error = |text: &[u8]| PromptRows::new(text, "set.csv").err().unwrap().to_string();
        assert!(error(b"").contains("set.csv: the file is empty"));
        let message = error(b"name,count\nx,1\n");
        assert!(message.contains("names name, count") && message.contains("prompt"), "{message}");
        assert!(error(b"\xff\xfe\x00p\n").contains("UTF-8"));
        assert!(error("a,".repeat(1000).as_bytes()).contains("columns; is this a prompt set?"));
        let open = [&b"prompt,\""[..], &b"x\n".repeat(LONGEST_ROW)].concat();
        assert!(error(&open).contains("bytes; is a quote missing?"));
    }
}
