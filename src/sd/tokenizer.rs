//! CLIP's byte-pair tokenizer, from `tokenizer.json` or from `vocab.json` and `merges.txt`.

use crate::{Error, Result};
use serde_json::{Value, json};

/// Reads a file of the tokenizer's folder by name; `None` if it is not there.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>> + 'a;

/// Prompts to token ids of a fixed length.
pub struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    max_length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

/// The ids of some prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    /// For each prompt: BOS, its tokens, EOS, padding.
    pub ids: Vec<Vec<u32>>,
    /// Which prompts were too long, and the text that was cut off.
    pub truncated: Vec<(usize, String)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`; special tokens and length from
    /// `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// If neither is there, or a file is malformed or contradicts another.
    pub fn from_files(get: &ReadFile<'_>) -> Result<Self> {
        let json_file = |name: &str| -> Result<Value> {
            let Some(bytes) = get(name)? else { return Ok(Value::Null) };
            serde_json::from_slice(&bytes).map_err(|e| Error::usage(format!("{name}: {e}")))
        };
        let (config, map) = (json_file("tokenizer_config.json")?, json_file("special_tokens_map.json")?);
        let special = |key: &str, default: &str| -> String {
            let found = [&config, &map].into_iter().find_map(|file| {
                let value = file.get(key)?;
                value.as_str().or_else(|| value.get("content")?.as_str()).map(String::from)
            });
            found.unwrap_or_else(|| default.to_string())
        };
        let (bos, eos) = (special("bos_token", "<|startoftext|>"), special("eos_token", "<|endoftext|>"));
        let pad = special("pad_token", &eos);
        let bytes = match get("tokenizer.json")? {
            Some(bytes) => without_decoder(&bytes)?,
            None => {
                let file = |name: &str| {
                    get(name)?.ok_or_else(|| {
                        Error::usage(format!(
                            "{name} is missing; a tokenizer needs tokenizer.json, or vocab.json and merges.txt"
                        ))
                    })
                };
                from_vocabulary(&file("vocab.json")?, &file("merges.txt")?, &bos, &eos)?
            }
        };
        let bpe = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| Error::usage(format!("tokenizer: {e}")))?;
        let id = |token: &str| {
            bpe.token_to_id(token)
                .ok_or_else(|| Error::usage(format!("special token {token:?} is not in the vocabulary")))
        };
        let (bos, eos, pad) = (id(&bos)?, id(&eos)?, id(&pad)?);
        let length = config.get("model_max_length").and_then(Value::as_f64).unwrap_or(77.0);
        // some files hold a huge number for «none»; the text encoder's positions then decide
        let max_length = if (3.0..=1e6).contains(&length) { length as usize } else { 77 };
        Ok(Self { bpe, max_length, bos, eos, pad })
    }

    /// Tokens in a prompt, BOS and EOS included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id at which a prompt ends.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The largest id that a prompt can give.
    pub fn largest_id(&self) -> u32 {
        let vocabulary = self.bpe.get_vocab(true);
        vocabulary.into_values().chain([self.bos, self.eos, self.pad]).max().unwrap_or(0)
    }

    /// The vocabulary's entries that are a whole word of at least three letters, in no order.
    pub fn words(&self) -> Vec<String> {
        let whole = |token: String| token.strip_suffix("</w>").map(str::to_string);
        let word = |word: &String| word.chars().count() > 2 && word.chars().all(char::is_alphabetic);
        self.bpe.get_vocab(false).into_keys().filter_map(whole).filter(word).collect()
    }

    /// The ids of a text, without BOS, EOS and padding.
    pub fn content_ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    fn encoding(&self, prompt: &str) -> Result<tokenizers::Encoding> {
        self.bpe.encode(prompt, false).map_err(|e| Error::usage(format!("prompt {prompt:?}: {e}")))
    }

    /// Lowers the length to what the text encoder has positions for.
    pub fn limit_to(&mut self, positions: usize) {
        self.max_length = self.max_length.min(positions.max(3));
    }

    /// Token ids, padded to [`Tokenizer::max_length`]; what is too long loses its end, as in diffusers, and is reported.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Tokens> {
        let room = self.max_length - 2;
        let mut tokens = Tokens { ids: Vec::with_capacity(prompts.len()), truncated: Vec::new() };
        for (i, prompt) in prompts.iter().enumerate() {
            let prompt = prompt.as_ref();
            let encoded = self.encoding(prompt)?;
            let found = encoded.get_ids();
            if found.len() > room {
                let start = encoded.get_offsets()[room].0;
                tokens.truncated.push((i, prompt.get(start..).unwrap_or_default().to_string()));
            }
            let mut ids = vec![self.bos];
            ids.extend(found.iter().take(room));
            ids.push(self.eos);
            ids.resize(self.max_length, self.pad);
            tokens.ids.push(ids);
        }
        Ok(tokens)
    }
}

/// A `tokenizer.json` without its decoder, which is not needed here, and on which the tokenizers crate panics if it is damaged.
fn without_decoder(bytes: &[u8]) -> Result<Vec<u8>> {
    let file: serde_json::Result<serde_json::Map<String, Value>> = serde_json::from_slice(bytes);
    let mut file = file.map_err(|e| Error::usage(format!("tokenizer.json: {e}")))?;
    file.remove("decoder");
    serde_json::to_vec(&file).map_err(Error::usage)
}

/// The `tokenizer.json` that transformers makes of a CLIP vocabulary.
fn from_vocabulary(vocab: &[u8], merges: &[u8], bos: &str, eos: &str) -> Result<Vec<u8>> {
    let vocab: Value = serde_json::from_slice(vocab).map_err(|e| Error::usage(format!("vocab.json: {e}")))?;
    let merges = std::str::from_utf8(merges).map_err(|e| Error::usage(format!("merges.txt: {e}")))?;
    let mut pairs = Vec::new();
    for (number, line) in merges.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with("#version") {
            continue;
        }
        let wrong = || Error::usage(format!("merges.txt line {}: expected two tokens, found {line:?}", number + 1));
        let (a, b) = line.trim_end().split_once(' ').ok_or_else(wrong)?;
        pairs.push(json!([a, b]));
    }
    let added = |token: &str| -> Result<Value> {
        let id = vocab.get(token).and_then(Value::as_u64);
        let id = id.ok_or_else(|| Error::usage(format!("special token {token:?} is not in vocab.json")))?;
        let (plain, special) = (false, true);
        Ok(json!({"id": id, "content": token, "single_word": plain, "lstrip": plain, "rstrip": plain,
                  "normalized": plain, "special": special}))
    };
    let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let file = json!({
        "version": "1.0",
        "added_tokens": [added(bos)?, added(eos)?],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {"type": "BPE", "unk_token": eos, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": pairs},
    });
    serde_json::to_vec(&file).map_err(Error::usage)
}
