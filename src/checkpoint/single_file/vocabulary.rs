//! CLIP's vocabulary: every Stable Diffusion of the known architectures has it, and a single file does not bring it.

use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// `merges.txt` as transformers has it.
pub(super) static MERGES: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/clip-tokenizer/merges.txt"));

/// Tokens in the vocabulary.
pub(super) const TOKENS: usize = 49408;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// `vocab.json`: the ids follow from the merges.
pub(super) fn vocab_json() -> &'static [u8] {
    static VOCAB: LazyLock<Vec<u8>> = LazyLock::new(|| Value::Object(vocabulary()).to_string().into_bytes());
    &VOCAB
}

/// Bytes, bytes that end a word, what the merges make, the two special tokens (OpenAI's `simple_tokenizer.py`).
fn vocabulary() -> Map<String, Value> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256).filter(|byte| !printable(byte)).count() as u32;
    // each byte is written as a letter that can be seen
    let letters = (0..256).filter(printable).chain(256..256 + others).filter_map(char::from_u32);
    let letters: Vec<String> = letters.map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merges = String::from_utf8_lossy(MERGES);
    let merged = merges.lines().skip(1).map(|line| line.replacen(' ', "", 1));
    let tokens = letters.iter().cloned().chain(ends).chain(merged).chain([START.to_string(), END.to_string()]);
    tokens.enumerate().map(|(id, token)| (token, id.into())).collect()
}

/// The small files beside the vocabulary, with this padding token.
pub(super) fn settings(pad: &str) -> [(&'static str, Value); 2] {
    let config = json!({
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
        "do_lower_case": true,
        "add_prefix_space": false,
        "errors": "replace"
    });
    let special = json!({ "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad });
    [("tokenizer_config.json", config), ("special_tokens_map.json", special)]
}

/// What encoders of the CLIP family pad with: the end of the text, or (OpenCLIP) the token of id 0.
pub(super) fn padding(open_clip: bool) -> &'static str {
    if open_clip { "!" } else { END }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sd::Tokenizer;

    fn tokenizer(open_clip: bool) -> Tokenizer {
        let settings = settings(padding(open_clip));
        Tokenizer::from_files(&|name| {
            Ok(match name {
                "vocab.json" => Some(vocab_json().to_vec()),
                "merges.txt" => Some(MERGES.to_vec()),
                name => {
                    settings.iter().find(|(file, _)| *file == name).map(|(_, value)| value.to_string().into_bytes())
                }
            })
        })
        .unwrap()
    }

    #[test]
    fn prompts_have_the_ids_that_transformers_gives_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/single_file/tokens.json");
        let rows: Vec<(String, Vec<u32>)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(rows.len() > 250, "{}", rows.len());
        let tokenizer = tokenizer(false);
        for (prompt, ids) in rows {
            assert_eq!(tokenizer.content_ids(&prompt).unwrap(), ids, "{prompt:?}");
        }
    }

    #[test]
    fn openclip_pads_with_id_0() {
        assert_eq!(vocabulary().len(), TOKENS);
        let row = |open_clip| tokenizer(open_clip).encode(&["cat"]).unwrap().ids[0].clone();
        let (clip, open) = (row(false), row(true));
        assert_eq!(clip.len(), 77);
        assert_eq!((&clip[..4], clip[76]), (&[49406, 2368, 49407, 49407][..], 49407));
        assert_eq!((&open[..4], open[76]), (&[49406, 2368, 49407, 0][..], 0));
    }
}
