//! A pickle, run by a machine that imports nothing, calls nothing and copies nothing: a value is the place of the instruction that
//! made it, so that a hostile file costs time in proportion to its size, and less memory than its size and [`ROOM`].

use super::cells::Cells;

/// Values that may be on the stack. (Python puts the entries of a dictionary there a thousand at a time.)
const MOST_STACKED: usize = 1 << 16;
/// Numbers that may be kept beyond a quarter of the file's bytes. (A tensor of a checkpoint is told in some 130 bytes, and
/// takes 25 numbers.)
const ROOM: usize = 1 << 16;
/// Bytes of an integer.
const LONGEST_INTEGER: usize = 8;

/// The classes and functions that checkpoints of Stable Diffusion name. None is imported: they are words.
const GLOBALS: [(&str, &str); 28] = [
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("pytorch_lightning.callbacks.lr_monitor", "LearningRateMonitor"),
    ("pytorch_lightning.utilities.cloud_io", "load"),
    ("torch", "BFloat16Storage"),
    ("torch", "BoolStorage"),
    ("torch", "ByteStorage"),
    ("torch", "CharStorage"),
    ("torch", "DoubleStorage"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch", "IntStorage"),
    ("torch", "LongStorage"),
    ("torch", "ShortStorage"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "float16"),
    ("torch", "float32"),
    ("__builtin__", "set"),
    ("builtins", "set"),
];

/// A value: the place of the instruction that made it (texts, numbers, classes, lists, dictionaries), or a place among the
/// cells (what is made of other values).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Value(u32);

/// Set in values that lie among the cells.
const IN_CELLS: u32 = 1 << 31;
const MARK: Value = Value(u32::MAX);
/// Something of which nothing is asked.
const OTHER: Value = Value(u32::MAX - 1);

/// What a value among the cells is, in the last bits of its first cell; the others say how many more it has.
const TUPLE: u32 = 0;
const REDUCED: u32 = 1;
const PERSISTENT: u32 = 2;
const KINDS: u32 = 2;

/// A pickle that has run.
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    cells: Cells,
    /// Entries of dictionaries, in the order in which they were made: the dictionary, the key, the value.
    entries: Cells,
    /// What the pickle is.
    pub result: Value,
}

/// Runs a pickle.
///
/// # Errors
/// In words without the file's name: if it is damaged, names something that is not a tensor's, or asks for too much.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    if u32::try_from(bytes.len()).is_ok_and(|length| length < IN_CELLS) {
        let pickle = Pickle { bytes, cells: Cells::default(), entries: Cells::default(), result: OTHER };
        Machine { pickle, stack: Vec::new(), memo: Cells::default() }.run()
    } else {
        Err("is larger than is read".into())
    }
}

struct Machine<'a> {
    pickle: Pickle<'a>,
    stack: Vec<Value>,
    /// Values that were given numbers, which Python gives in turn.
    memo: Cells,
}

fn damaged(what: &str) -> String {
    format!("is damaged: {what}")
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Result<Pickle<'a>, String> {
        let bytes = self.pickle.bytes;
        let mut at = 0;
        loop {
            let Some(&code) = bytes.get(at) else { return Err("ends in the middle".into()) };
            let here = Value(at as u32);
            let operand = &bytes[at + 1..];
            at += 1 + operand_length(code, operand)?;
            match code {
                0x80 => {}
                b'.' => {
                    self.pickle.result = self.pop()?;
                    return Ok(self.pickle);
                }
                b'(' => self.push(MARK)?,
                // texts, numbers, truth, nothing, what has no parts yet
                b'X' | b'c' | b'K' | b'M' | b'J' | b'G' | 0x8a | 0x88 | 0x89 | b'N' | b')' | b']' | b'}' => {
                    self.push(here)?;
                }
                b'q' | b'r' => self.put(number(code, operand))?,
                b'h' | b'j' => {
                    let value = self.memo.get(number(code, operand) as usize);
                    self.push(Value(value.ok_or_else(|| damaged("a value that was not stored"))?))?;
                }
                b't' => {
                    let from = self.mark()?;
                    self.tuple(from, from + 1)?;
                }
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(code - 0x84));
                    let from = from.ok_or_else(|| damaged("a value is missing"))?;
                    self.tuple(from, from)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let value = self.cell(PERSISTENT, &[id])?;
                    self.push(value)?;
                }
                b'R' | 0x81 => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    let value = match self.pickle.class(callable) {
                        Some(("collections", "OrderedDict" | "defaultdict")) => here,
                        Some(("torch._utils", _)) => self.cell(REDUCED, &[callable, args])?,
                        _ => OTHER,
                    };
                    self.push(value)?;
                }
                // attributes of an object
                b'b' => drop(self.pop()?),
                b'a' => {
                    self.pop()?;
                    self.expect_list()?;
                }
                b'e' => {
                    let from = self.mark()?;
                    self.stack.truncate(from);
                    self.expect_list()?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.enter(&[key, value])?;
                }
                b'u' => {
                    let from = self.mark()?;
                    let pairs = self.stack.split_off(from + 1);
                    self.stack.truncate(from);
                    self.enter(&pairs)?;
                }
                code => return Err(damaged(&format!("an instruction that is not known ({code:#04x})"))),
            }
        }
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.stack.len() >= MOST_STACKED {
            return Err(format!("has more than {MOST_STACKED} values at a time"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().filter(|value| *value != MARK).ok_or_else(|| damaged("a value is missing"))
    }

    /// Where the last mark is.
    fn mark(&self) -> Result<usize, String> {
        self.stack.iter().rposition(|value| *value == MARK).ok_or_else(|| damaged("a mark is missing"))
    }

    fn put(&mut self, id: u32) -> Result<(), String> {
        let value = self.stack.last().filter(|value| **value != MARK).ok_or_else(|| damaged("a value is missing"))?.0;
        match (id as usize).cmp(&self.memo.len()) {
            std::cmp::Ordering::Less => self.memo.set(id as usize, value),
            std::cmp::Ordering::Equal => self.memo.push(value),
            std::cmp::Ordering::Greater => return Err(damaged("values are not stored in turn")),
        }
        Ok(())
    }

    /// Makes a tuple of what is on the stack from `values` on, and puts it at `from`.
    fn tuple(&mut self, from: usize, values: usize) -> Result<(), String> {
        let values = self.stack.split_off(values);
        self.stack.truncate(from);
        if values.contains(&MARK) {
            return Err(damaged("a value is missing"));
        }
        let tuple = self.cell(TUPLE, &values)?;
        self.push(tuple)
    }

    /// A value that is made of others.
    fn cell(&mut self, kind: u32, parts: &[Value]) -> Result<Value, String> {
        let place = self.pickle.cells.len() as u32;
        self.room(1 + parts.len())?;
        self.pickle.cells.push((parts.len() as u32) << KINDS | kind);
        parts.iter().for_each(|part| self.pickle.cells.push(part.0));
        Ok(Value(place | IN_CELLS))
    }

    /// Entries of the dictionary on top of the stack.
    fn enter(&mut self, pairs: &[Value]) -> Result<(), String> {
        let (pairs, rest) = pairs.as_chunks::<2>();
        let dict = self.stack.last().filter(|top| self.pickle.is_dict(**top));
        let dict = dict.filter(|_| rest.is_empty()).ok_or_else(|| damaged("entries of something else"))?.0;
        self.room(3 * pairs.len())?;
        for [key, value] in pairs {
            [dict, key.0, value.0].into_iter().for_each(|part| self.pickle.entries.push(part));
        }
        Ok(())
    }

    fn room(&self, more: usize) -> Result<(), String> {
        if self.pickle.cells.len() + self.pickle.entries.len() + more > self.pickle.bytes.len() / 4 + ROOM {
            return Err("is so tangled that it must be an attack".into());
        }
        Ok(())
    }

    /// What is put into lists is not looked at.
    fn expect_list(&self) -> Result<(), String> {
        let list = self.stack.last().is_some_and(|top| self.pickle.code(*top) == Some(b']'));
        if list { Ok(()) } else { Err(damaged("parts of something else")) }
    }
}

/// Bytes that belong to an instruction.
fn operand_length(code: u8, operand: &[u8]) -> Result<usize, String> {
    let length = match code {
        b'K' | b'q' | b'h' | 0x80 => 1,
        b'M' => 2,
        b'J' | b'r' | b'j' => 4,
        b'G' => 8,
        0x8a => match operand.first() {
            Some(length) if usize::from(*length) <= LONGEST_INTEGER => 1 + usize::from(*length),
            _ => return Err("has an integer that is too long".into()),
        },
        b'X' => {
            let length = operand.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
            let text = length.and_then(|length| operand[4..].get(..length));
            let text = text.ok_or("has a text that is longer than the file")?;
            std::str::from_utf8(text).map_err(|_| damaged("a text that is not UTF-8"))?;
            4 + text.len()
        }
        b'c' => {
            let class = class(operand).filter(|class| GLOBALS.contains(class));
            class.map(|(module, name)| module.len() + name.len() + 2).ok_or_else(|| asks_for(operand))?
        }
        _ => 0,
    };
    if length > operand.len() { Err(damaged("it ends in the middle")) } else { Ok(length) }
}

/// A module and a name, each a line.
fn class(operand: &[u8]) -> Option<(&str, &str)> {
    // no known name is longer
    let mut lines = operand[..operand.len().min(256)].splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let class = (line()?, line()?);
    lines.next().map(|_| class)
}

fn asks_for(operand: &[u8]) -> String {
    let lines = operand[..operand.len().min(256)].splitn(3, |byte| *byte == b'\n');
    let lines: Vec<_> = lines.take(2).map(String::from_utf8_lossy).collect();
    let shown: String = lines.join(".").chars().filter(|c| !c.is_control()).take(120).collect();
    format!("asks for {shown}, which no tensor needs; it may be an attack. Nothing was run")
}

/// A number of one byte (`q`, `h`) or four.
fn number(code: u8, operand: &[u8]) -> u32 {
    match (code, operand) {
        (b'q' | b'h', [id, ..]) => u32::from(*id),
        _ => operand.first_chunk().map_or(u32::MAX, |id| u32::from_le_bytes(*id)),
    }
}

impl<'a> Pickle<'a> {
    /// The instruction that made a value.
    fn code(&self, value: Value) -> Option<u8> {
        self.bytes.get(value.0 as usize).copied()
    }

    fn operand(&self, value: Value, code: u8) -> Option<&'a [u8]> {
        self.bytes.get(value.0 as usize..).filter(|bytes| bytes.first() == Some(&code)).map(|bytes| &bytes[1..])
    }

    fn is_dict(&self, value: Value) -> bool {
        matches!(self.code(value), Some(b'}' | b'R' | 0x81))
    }

    /// A text.
    pub fn text(&self, value: Value) -> Option<&'a str> {
        let operand = self.operand(value, b'X')?;
        let length = u32::from_le_bytes(*operand.first_chunk()?) as usize;
        std::str::from_utf8(operand[4..].get(..length)?).ok()
    }

    /// A class: its module and its name.
    pub fn class(&self, value: Value) -> Option<(&'a str, &'a str)> {
        class(self.operand(value, b'c')?)
    }

    /// A whole number from 0.
    pub fn number(&self, value: Value) -> Option<usize> {
        let bytes = self.bytes.get(value.0 as usize..)?;
        let number = match bytes {
            [b'K', number, ..] => i64::from(*number),
            [b'M', a, b, ..] => i64::from(u16::from_le_bytes([*a, *b])),
            [b'J', rest @ ..] => i64::from(i32::from_le_bytes(*rest.first_chunk()?)),
            [0x8a, length, rest @ ..] => {
                let number = rest.get(..usize::from(*length))?;
                let negative = number.last().is_some_and(|byte| *byte > 0x7f);
                let mut eight = [if negative { 0xff } else { 0 }; LONGEST_INTEGER];
                eight.get_mut(..number.len())?.copy_from_slice(number);
                i64::from_le_bytes(eight)
            }
            _ => return None,
        };
        usize::try_from(number).ok()
    }

    /// The parts of a tuple, if there are at most `most`.
    pub fn tuple(&self, value: Value, most: usize) -> Option<Vec<Value>> {
        if self.code(value) == Some(b')') {
            return Some(Vec::new());
        }
        self.parts(value, TUPLE, most)
    }

    /// What a function was called with: the function, and a tuple.
    pub fn reduced(&self, value: Value) -> Option<[Value; 2]> {
        self.parts(value, REDUCED, 2)?.try_into().ok()
    }

    /// What names something outside the pickle.
    pub fn persistent(&self, value: Value) -> Option<Value> {
        self.parts(value, PERSISTENT, 1)?.first().copied()
    }

    fn parts(&self, value: Value, kind: u32, most: usize) -> Option<Vec<Value>> {
        if value.0 & IN_CELLS == 0 {
            return None;
        }
        let place = (value.0 & !IN_CELLS) as usize;
        let first = self.cells.get(place)?;
        let count = (first >> KINDS) as usize;
        if first & ((1 << KINDS) - 1) != kind || count > most {
            return None;
        }
        (place + 1..=place + count).map(|place| self.cells.get(place).map(Value)).collect()
    }

    /// The entries of a dictionary, in the order in which they were made.
    pub fn dict(&self, value: Value) -> Option<impl Iterator<Item = (Value, Value)>> {
        let entries = (0..self.entries.len() / 3).filter_map(move |i| {
            let [dict, key, of] = [0, 1, 2].map(|part| self.entries.get(3 * i + part).map(Value));
            (dict == Some(value)).then_some(())?;
            key.zip(of)
        });
        self.is_dict(value).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], expected: &str) {
        let message = read(bytes).map(|pickle| pickle.result).expect_err(expected);
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn a_program_is_refused_by_name() {
        // what `__reduce__` of a malicious object leaves: os.system("true")
        refused(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "asks for posix.system, which no tensor needs");
        for name in ["builtins\neval", "os\nsystem", "torch\nload", "torch._utils\n_rebuild_tensor_v2x", "\n", "a"] {
            refused(format!("\u{2}c{name}\n)R.").replace('\u{2}', "").as_bytes(), "asks for ");
        }
        refused(b"c\x1b[31mred\nx\n.", "asks for [31mred.x");
        refused(b"ctorch\nSize", "asks for torch.Size");
    }

    #[test]
    fn lengths_are_not_believed() {
        refused(b"X\xff\xff\xff\xff", "longer than the file");
        refused(b"X\x04\x00\x00\x00abc", "longer than the file");
        refused(b"X\x04", "longer than the file");
        refused(b"X\x01\x00\x00\x00\xff.", "not UTF-8");
        refused(b"\x8a\xff", "an integer that is too long");
        refused(b"\x8a", "an integer that is too long");
        refused(b"", "ends in the middle");
        refused(b"N", "ends in the middle");
        for wrong in
            [&b"G\x00"[..], b"\xff", b"d", b"h\x00.", b"Nq\x01", b"(q\x00", b"t.", b".", b"(.", b"N\x86", b"N(\x85"]
        {
            refused(wrong, "is damaged");
        }
        for wrong in [&b"NNNs"[..], b"](NNu", b"}(Nu", b"}(NNN", b"}Na", b"}(Ne", b"(R", b"NQR", b"b"] {
            assert!(read(wrong).is_err());
        }
    }

    #[test]
    fn work_and_memory_are_bounded() {
        refused(&b"N".repeat(MOST_STACKED + 1), "more than 65536 values at a time");
        refused(&[&b"N"[..], &[0x85; 100_000], b"."].concat(), "so tangled");
        refused(&[&b"}"[..], &b"NNs".repeat(100_000), b"."].concat(), "so tangled");
        // each line holds the one before twice: 2^200 values, none of which is copied
        let mut doubling = b"NN\x86q\x00".to_vec();
        for i in 0..200u8 {
            doubling.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
        }
        doubling.push(b'.');
        let pickle = read(&doubling).unwrap();
        let [a, b] = pickle.tuple(pickle.result, 2).unwrap()[..] else { panic!("a pair") };
        assert_eq!(a, b);
        assert_eq!(pickle.tuple(pickle.result, 1), None, "longer than was asked for");
        // a list in itself
        assert!(read(b"]q\x00h\x00a.").is_ok());
    }

    #[test]
    fn values_come_through() {
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00b(K\x01M\x00\x01J\xff\xff\xff\xff\x8a\x01\xff\x8a\x02\x01\x01tu\
            X\x01\x00\x00\x00ch\x00s.";
        let pickle = read(bytes).expect("a dict");
        let entries: Vec<_> = pickle.dict(pickle.result).expect("a dict").collect();
        let names: Vec<_> = entries.iter().map(|(key, _)| pickle.text(*key)).collect();
        assert_eq!(names, [Some("a"), Some("b"), Some("c")]);
        assert_eq!(pickle.number(entries[0].1), Some(7));
        let tuple = pickle.tuple(entries[1].1, 8).expect("a tuple");
        let numbers: Vec<_> = tuple.iter().map(|value| pickle.number(*value)).collect();
        assert_eq!(numbers, [Some(1), Some(256), None, None, Some(257)]);
        assert_eq!(entries[2].1, pickle.result, "what is filled after it was stored is one thing");
        for other in [pickle.result, entries[0].0, entries[1].1, OTHER, MARK] {
            assert!(
                pickle.number(other).is_none() && pickle.reduced(other).is_none() && pickle.persistent(other).is_none()
            );
        }
    }

    /// Random bytes, and random changes to a good pickle: an answer, whatever it is, and no panic. The seeds of a longer run are
    /// in `PICKLE_SEEDS` (`0..10000000`).
    #[test]
    fn any_bytes_give_an_answer() {
        let seeds = std::env::var("PICKLE_SEEDS").unwrap_or("0..20000".into());
        let (from, to) = seeds.split_once("..").expect("FROM..TO");
        let good: &[u8] = b"\x80\x02}q\x00(X\x05\x00\x00\x00w.biactorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\x00\x00\x00storageq\x02\
            ctorch\nFloatStorage\nq\x03X\x01\x00\x00\x000q\x04X\x03\x00\x00\x00cpuq\x05K\x04tq\x06QK\x00K\x04\x85q\x07K\x01\x85q\x08\
            \x89ccollections\nOrderedDict\nq\x09)Rq\x0atq\x0bRq\x0cu.";
        for seed in from.parse::<u64>().expect("a seed")..to.parse().expect("a seed") {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let mut bytes = good.to_vec();
            if seed.is_multiple_of(4) {
                bytes = (0..next() % 200).map(|_| next() as u8).collect();
            }
            for _ in 0..next() % 6 {
                let at = next() as usize % (bytes.len() + 1);
                match next() % 3 {
                    0 if at < bytes.len() => bytes[at] = next() as u8,
                    1 => bytes.insert(at, b"()]}hjqrtRQuseabN.cXK\x85\x86\x81"[next() as usize % 24]),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let _ = super::super::read(&bytes);
        }
    }
}
