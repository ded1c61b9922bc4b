//! Entries for fuzzers: each reads bytes that a stranger wrote. For `fuzz/` and `tests/fuzz_corpus.rs` alone.

use crate::audit::PromptRows;
use crate::checkpoint;
use crate::concept::Concept;
use crate::counting;
use std::path::Path;

/// What reading may take beyond twice the file, in bytes: buffers, and lists of at most some thousand things that may take more
/// memory than text in the file (a concept file's prompts: 24 to 48 bytes each; the columns of a row).
pub const SLACK: usize = 128 << 10;

/// The same for a safetensors header: what the crate makes of the 4,096 tensors that even a small file may have.
const HEADER_SLACK: usize = 4 << 20;

/// The same for a pickle: what is made of up to 20,000 tensors that are told in few bytes.
const PICKLE_SLACK: usize = 4 << 20;

/// The same for a patch: small files and headers of up to 16 MiB may lie in it, and be what they are in a few bytes.
const PATCH_SLACK: usize = 96 << 20;

/// A fuzzer's name, what it calls, and what that may take beyond twice its input.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All fuzzers.
pub const TARGETS: [Target; 5] = [
    ("safetensors", safetensors, HEADER_SLACK),
    ("pickle", pickle, PICKLE_SLACK),
    ("concept", concept, SLACK),
    ("prompts", prompts, SLACK),
    ("patch", patch, PATCH_SLACK),
];

/// What the fuzzer of this name does with an input.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, ..)| *known == name);
    target.iter().for_each(|(_, read, slack)| measured(data, read, *slack));
}

/// The header of a safetensors file, and what kind of file its tensors make it.
pub fn safetensors(data: &[u8]) {
    let _ = checkpoint::read_header(data);
}

/// A PyTorch checkpoint: an archive, or, so that a fuzzer need not guess checksums, the `data.pkl` of one.
pub fn pickle(data: &[u8]) {
    let _ = checkpoint::single_file::read_pickle(data);
    let _ = checkpoint::single_file::read_pickle_alone(data);
}

/// A concept file.
pub fn concept(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Concept::parse(text, Path::new("fuzzed.toml"));
    }
}

/// A prompt set.
pub fn prompts(data: &[u8]) {
    if let Ok(rows) = PromptRows::new(data, "fuzzed.csv") {
        for row in rows.flatten() {
            assert!(!row.prompt.is_empty() && !row.case.is_empty() && !row.case.contains('/'));
        }
    }
}

/// A patch, and all that it makes of a small file (with which those in the corpus go).
pub fn patch(data: &[u8]) {
    let _ = checkpoint::patch::read_all(data, &patch_base());
}

/// The small file: a safetensors file with a tensor of each width.
pub fn patch_base() -> Vec<u8> {
    const HEADER: &str = "{\"a\":{\"dtype\":\"F32\",\"shape\":[40],\"data_offsets\":[0,160]},\
                          \"b\":{\"dtype\":\"F16\",\"shape\":[2,4],\"data_offsets\":[160,176]},\
                          \"c\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[176,181]}}";
    [&(HEADER.len() as u64).to_le_bytes()[..], HEADER.as_bytes(), &[0x3c; 181]].concat()
}

/// Calls `read`; panics if it takes more memory than twice `data` and `slack`. The program's allocator must be
/// [`counting::Counting`].
pub fn measured(data: &[u8], read: impl FnOnce(&[u8]), slack: usize) {
    let taken = taken(data, read);
    assert!(taken <= 2 * data.len() + slack, "{taken} bytes of memory for {} bytes of input", data.len());
}

/// Calls `read`: the most memory that it had at a time.
pub fn taken(data: &[u8], read: impl FnOnce(&[u8])) -> usize {
    let before = counting::live();
    counting::peak_of(|| read(data)).saturating_sub(before)
}
