//! A row of a CSV file (RFC 4180) at a time, in bounded memory whatever the file is.

use std::io::{BufRead, BufReader, Read};

/// More columns than any prompt set has.
pub(super) const MOST_COLUMNS: usize = 256;
/// The longest row, in bytes, so that an open quote does not take the whole file for one.
pub(super) const LONGEST_ROW: usize = 1 << 17;

/// A row as CSV has it; so long that it is read in little memory, whatever it is.
pub(super) struct Record<R> {
    file: BufReader<R>,
    csv: csv_core::Reader,
    /// The fields, one after another.
    text: Vec<u8>,
    /// Where each ends.
    ends: [usize; MOST_COLUMNS],
    count: usize,
    too_many: bool,
    too_long: bool,
}

impl<R: Read> Record<R> {
    /// Of a file, from its beginning.
    pub(super) fn new(file: R) -> Self {
        Self {
            file: BufReader::new(file),
            csv: csv_core::Reader::new(),
            text: vec![0; 1024],
            ends: [0; MOST_COLUMNS],
            count: 0,
            too_many: false,
            too_long: false,
        }
    }

    /// Reads the next row: the line on which it begins, or nothing at the end of the file.
    pub(super) fn read(&mut self) -> std::io::Result<Option<u64>> {
        // lines without anything are no rows
        while let Some(b'\n' | b'\r') = self.file.fill_buf()?.first() {
            let lines = u64::from(self.file.buffer().first() == Some(&b'\n'));
            self.csv.set_line(self.csv.line() + lines);
            self.file.consume(1);
        }
        let line = self.csv.line();
        (self.count, self.too_many, self.too_long) = (0, false, false);
        let mut length = 0;
        loop {
            let input = self.file.fill_buf()?;
            let (found, read, wrote, ended) =
                self.csv.read_record(input, &mut self.text[length..], &mut self.ends[self.count..]);
            self.file.consume(read);
            (length, self.count) = (length + wrote, self.count + ended);
            match found {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull if self.text.len() < LONGEST_ROW => {
                    self.text.resize((2 * self.text.len()).min(LONGEST_ROW), 0);
                }
                // the rest of the row is read and forgotten
                csv_core::ReadRecordResult::OutputFull => (length, self.too_long) = (0, true),
                csv_core::ReadRecordResult::OutputEndsFull => (self.count, self.too_many) = (0, true),
                csv_core::ReadRecordResult::Record => return Ok(Some(line)),
                csv_core::ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Why the row is not what was written.
    pub(super) fn what_is_wrong(&self) -> Option<String> {
        if self.too_many {
            return Some(format!("has more than {MOST_COLUMNS} columns"));
        }
        self.too_long.then(|| format!("has more than {LONGEST_ROW} bytes; is a quote missing?"))
    }

    /// A field of the row.
    pub(super) fn get(&self, field: usize) -> Option<&[u8]> {
        let start = field.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(start..*self.ends[..self.count].get(field)?)
    }

    /// All of them.
    pub(super) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map_while(|field| self.get(field))
    }

    /// The line that is read next, from 1.
    pub(super) fn line(&self) -> u64 {
        self.csv.line()
    }
}
