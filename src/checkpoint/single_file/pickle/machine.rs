//! A pickle, read by candle's machine, which builds a tree of values and neither imports nor calls anything; watched here step by
//! step, so that a hostile file can cost neither much time nor much memory.

use candle_core::pickle::{Object, Stack};
use std::collections::HashMap;

/// Instructions in a pickle; a checkpoint with an optimizer's state has about 10^5.
const MOST_STEPS: usize = 2_000_000;
/// Values that may be copied over the whole run: the machine copies what it stores and what it fetches.
const MOST_COPIES: usize = 2_000_000;
/// Values that may be looked at.
const MOST_LOOKS: usize = 50_000_000;
/// How deep values may be nested.
const DEEPEST: usize = 48;
/// Bytes of an integer.
const LONGEST_INTEGER: u8 = 8;

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

/// Reads a pickle.
///
/// # Errors
/// In words without the file's name: if it is damaged, names something that is not a tensor's, or asks for too much.
pub(super) fn read(bytes: &[u8]) -> Result<Object, String> {
    let mut rest = bytes;
    let mut stack = Stack::empty();
    let mut budget = Budget { copies: MOST_COPIES, looks: MOST_LOOKS };
    let mut sizes: HashMap<u32, usize> = HashMap::new();
    for _ in 0..MOST_STEPS {
        let Some((&code, operand)) = rest.split_first() else { return Err("ends in the middle".into()) };
        check_operand(code, operand)?;
        let id = memo_id(code, operand);
        match (code, id, stack.stack().last()) {
            (b'h' | b'j', Some(id), _) => budget.copy(sizes.get(&id).copied().unwrap_or(0))?,
            (b'q' | b'r', Some(id), Some(top)) => {
                let size = budget.measure(top, 0)?;
                budget.copy(size)?;
                sizes.insert(id, size);
            }
            _ => {}
        }
        let done = stack.read(&mut rest).map_err(|e| format!("is damaged: {e}"))?;
        if done {
            return stack.finalize().map_err(|e| format!("is damaged: {e}"));
        }
        if let Some(top) = stack.stack().last().filter(|_| builds(code)) {
            budget.measure(top, 0)?;
        }
    }
    Err(format!("has more than {MOST_STEPS} instructions"))
}

/// Instructions after which the uppermost value may be deeper than before.
fn builds(code: u8) -> bool {
    matches!(code, b't' | b'R' | b'b' | b'Q' | b's' | b'u' | b'a' | b'e' | 0x81 | 0x85..=0x87)
}

fn memo_id(code: u8, operand: &[u8]) -> Option<u32> {
    match code {
        b'h' | b'q' => operand.first().map(|id| u32::from(*id)),
        b'j' | b'r' => operand.first_chunk().map(|id| u32::from_le_bytes(*id)),
        _ => None,
    }
}

/// What the machine takes on trust.
fn check_operand(code: u8, operand: &[u8]) -> Result<(), String> {
    match code {
        b'X' => match operand.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
            Some(length) if length <= operand.len() - 4 => Ok(()),
            _ => Err("has a text that is longer than the file".into()),
        },
        0x8a => match operand.first() {
            Some(length) if *length <= LONGEST_INTEGER => Ok(()),
            _ => Err("has an integer that is too long".into()),
        },
        b'c' => {
            let mut lines = operand.splitn(3, |byte| *byte == b'\n');
            let mut line = || lines.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
            let (module, name) = (line(), line());
            if GLOBALS.contains(&(module, name)) {
                return Ok(());
            }
            let shown: String = format!("{module}.{name}").chars().filter(|c| !c.is_control()).take(120).collect();
            Err(format!("asks for {shown}, which no tensor needs; it may be an attack. Nothing was run"))
        }
        // candle takes it for an empty dictionary
        b'd' => Err("has an instruction that is not known (d)".into()),
        _ => Ok(()),
    }
}

struct Budget {
    copies: usize,
    looks: usize,
}

impl Budget {
    fn copy(&mut self, values: usize) -> Result<(), String> {
        self.copies = self.copies.checked_sub(values).ok_or("copies values so often that it must be an attack")?;
        Ok(())
    }

    /// How many values there are in one.
    fn measure(&mut self, object: &Object, depth: usize) -> Result<usize, String> {
        if depth > DEEPEST {
            return Err(format!("has values nested more than {DEEPEST} deep"));
        }
        let mut sum = |parts: &mut dyn Iterator<Item = &Object>| -> Result<usize, String> {
            let mut sum = 1;
            for part in parts {
                sum += self.measure(part, depth + 1)?;
            }
            Ok(sum)
        };
        let size = match object {
            Object::Tuple(parts) | Object::List(parts) => sum(&mut parts.iter())?,
            Object::Dict(pairs) => sum(&mut pairs.iter().flat_map(|(key, value)| [key, value]))?,
            Object::Reduce { callable, args } | Object::Build { callable, args } => {
                sum(&mut [&**callable, &**args].into_iter())?
            }
            Object::PersistentLoad(id) => sum(&mut std::iter::once(&**id))?,
            Object::Unicode(text) => 1 + text.len() / 16,
            Object::Class { .. } | Object::Int(_) | Object::Long(_) | Object::Float(_) | Object::Bool(_) => 1,
            Object::None | Object::Mark => 1,
        };
        self.looks = self.looks.checked_sub(1).ok_or("is so tangled that it must be an attack")?;
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], expected: &str) {
        let message = read(bytes).expect_err(expected);
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
    }

    #[test]
    fn lengths_are_not_believed() {
        refused(b"X\xff\xff\xff\xff", "longer than the file");
        refused(b"X\x04\x00\x00\x00abc", "longer than the file");
        refused(b"X\x04", "longer than the file");
        refused(b"\x8a\xff", "an integer that is too long");
        refused(b"\x8a", "an integer that is too long");
        refused(b"", "ends in the middle");
        refused(b"N", "ends in the middle");
        refused(b"G\x00", "is damaged");
        refused(b"\xff", "is damaged");
        refused(b"h\x00.", "is damaged");
        refused(b"t.", "is damaged");
        refused(b".", "is damaged");
    }

    #[test]
    fn depth_and_work_are_bounded() {
        refused(&[&b"N"[..], &[0x85; 100_000], b"."].concat(), "nested more than 48 deep");
        refused(&[&b"]"[..], &b"]".repeat(1000), &b"a".repeat(1000), b"."].concat(), "nested more than 48 deep");
        // each line holds the one before twice: 2^40 values, of which the machine makes a copy
        let mut doubling = b"NN\x86q\x00".to_vec();
        for i in 0..40u8 {
            doubling.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
        }
        doubling.push(b'.');
        refused(&doubling, "copies values so often");
        refused(&b"N".repeat(MOST_STEPS + 1), "more than 2000000 instructions");
    }

    #[test]
    fn values_come_through() {
        let read = read(b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00b(K\x01M\x00\x01tu.").expect("a dict");
        let text = |text: &str| Object::Unicode(text.into());
        let tuple = Object::Tuple(vec![Object::Int(1), Object::Int(256)]);
        let Object::Dict(mut pairs) = read else { panic!("{read:?}") };
        pairs.sort_by_key(|(key, _)| format!("{key:?}"));
        assert_eq!(pairs, [(text("a"), Object::Int(7)), (text("b"), tuple)]);
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
            let _ = read(&bytes);
        }
    }
}
