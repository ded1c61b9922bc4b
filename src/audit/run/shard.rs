//! Parts of an audit that machines make side by side: `2/8`, or what Slurm or Kubernetes says.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One of several parts, which take the rows of the prompt set in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Shard {
    /// From 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

/// More machines than anyone has.
const MOST: usize = 1_000_000;

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Reads `I/N`, `auto` (a Slurm array's task) or `auto/N` (also a Kubernetes indexed job's pod, which is not told how many
    /// there are). `variable` looks up the environment.
    ///
    /// # Errors
    /// If the text is neither, or the environment does not say which part this is.
    pub fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let wrong = |what: String| Error::usage(format!("--shard {text}: {what}"));
        let number = |text: &str| text.parse::<usize>().ok();
        let count = |text: &str| match number(text) {
            Some(of) if (1..=MOST).contains(&of) => Ok(of),
            _ => Err(wrong(format!("{text:?} is no number of parts"))),
        };
        let (which, of) = match text.split_once('/') {
            Some((which, of)) => (which, Some(count(of)?)),
            None => (text, None),
        };
        if which == "auto" {
            return Self::of_environment(of, variable).map_err(wrong);
        }
        let Some(of) = of else {
            return Err(wrong("is neither I/N, such as 2/8, nor auto".into()));
        };
        match number(which) {
            Some(number) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(wrong(format!("the part must lie between 1 and {of}"))),
        }
    }

    fn of_environment(
        of: Option<usize>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> std::result::Result<Self, String> {
        let number = |name: &str| -> std::result::Result<usize, String> {
            let text = variable(name).ok_or_else(|| format!("{name} is not set"))?;
            text.trim().parse().map_err(|_| format!("{name} is {text:?}, not a number"))
        };
        if variable("SLURM_ARRAY_TASK_ID").is_some() {
            let (id, first, count) =
                (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_MIN")?, number("SLURM_ARRAY_TASK_COUNT")?);
            let last = number("SLURM_ARRAY_TASK_MAX")?;
            let step = variable("SLURM_ARRAY_TASK_STEP").map_or(Ok(1), |_| number("SLURM_ARRAY_TASK_STEP"))?.max(1);
            let regular = id >= first && (id - first).is_multiple_of(step) && id <= last;
            if count == 0 || !regular || Some(last) != first.checked_add(step * (count - 1)) {
                return Err(
                    "the array's numbers do not follow each other (was only a part of it submitted?); name the part, \
                            such as --shard \"$SLURM_ARRAY_TASK_ID/8\""
                        .into(),
                );
            }
            if let Some(of) = of.filter(|of| *of != count) {
                return Err(format!("the array has {count} tasks, not {of}"));
            }
            return Ok(Self { number: (id - first) / step + 1, of: count });
        }
        if variable("JOB_COMPLETION_INDEX").is_some() {
            let index = number("JOB_COMPLETION_INDEX")?;
            let Some(of) = of else {
                return Err(
                    "Kubernetes does not tell a pod how many there are; say auto/N with N as .spec.completions".into(),
                );
            };
            if index >= of {
                return Err(format!("JOB_COMPLETION_INDEX is {index}, but there are {of} parts, from 0"));
            }
            return Ok(Self { number: index + 1, of });
        }
        Err("neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set: this is no task of a Slurm array and no pod of an indexed \
             Kubernetes job; name the part, such as --shard 2/8"
            .into())
    }

    /// Whether it makes the pictures of this row, counted from 0.
    pub fn takes(self, row: usize) -> bool {
        row % self.of == self.number - 1
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text, &|_| None).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> std::result::Result<String, String> {
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        Shard::parse(text, &lookup).map(String::from).map_err(|e| e.to_string())
    }

    fn slurm(id: &'static str, [min, max, count, step]: [&'static str; 4]) -> Vec<(&'static str, &'static str)> {
        vec![
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_MIN", min),
            ("SLURM_ARRAY_TASK_MAX", max),
            ("SLURM_ARRAY_TASK_COUNT", count),
            ("SLURM_ARRAY_TASK_STEP", step),
        ]
    }

    #[test]
    fn parts_are_read_from_text_slurm_and_kubernetes() {
        assert_eq!(parse("2/8", &[]).unwrap(), "2/8");
        assert_eq!(parse("auto", &slurm("3", ["0", "7", "8", "1"])).unwrap(), "4/8");
        assert_eq!(parse("auto", &slurm("20", ["10", "40", "4", "10"])).unwrap(), "2/4");
        assert_eq!(parse("auto/4", &slurm("4", ["1", "4", "4", "1"])).unwrap(), "4/4");
        assert_eq!(parse("auto/8", &[("JOB_COMPLETION_INDEX", "0")]).unwrap(), "1/8");
    }

    #[test]
    fn what_is_no_part_says_why() {
        let none: &[(&str, &str)] = &[];
        for (text, part) in [
            ("0/4", "between 1 and 4"),
            ("5/4", "between 1 and 4"),
            ("1/0", "no number of parts"),
            ("x", "neither I/N"),
            ("1/x", "no number of parts"),
            ("auto", "JOB_COMPLETION_INDEX is set"),
        ] {
            let message = parse(text, none).unwrap_err();
            assert!(message.contains(part) && message.contains("--shard"), "{text}: {message}");
        }
        let kubernetes = [("JOB_COMPLETION_INDEX", "8")];
        assert!(parse("auto", &kubernetes).unwrap_err().contains("auto/N"));
        assert!(parse("auto/8", &kubernetes).unwrap_err().contains("from 0"));
        // --array=1,5 and --array=3 of what was 1-8
        assert!(parse("auto", &slurm("5", ["1", "5", "2", "1"])).unwrap_err().contains("do not follow"));
        assert_eq!(parse("auto", &slurm("3", ["3", "3", "1", "1"])).unwrap(), "1/1");
        assert!(parse("auto/8", &slurm("3", ["3", "3", "1", "1"])).unwrap_err().contains("1 tasks, not 8"));
    }

    #[test]
    fn every_row_is_taken_once() {
        let takers = |row| (1..=3).filter(|number| Shard { number: *number, of: 3 }.takes(row)).count();
        assert!((0..20).all(|row| takers(row) == 1));
    }
}
