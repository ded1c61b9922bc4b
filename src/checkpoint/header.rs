//! What is asked of a safetensors header before the safetensors crate reads it: that crate takes up to 40 bytes of memory for
//! each byte of a header made to hurt, and reads headers of up to 100 MB.

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The most tensors that a file may have. (The largest single-file checkpoint of the kinds that are read has 2,515.)
const TENSORS: usize = 20_000;
/// So many tensors may be in any file; beyond them a tensor needs [`BYTES`] of the file, as it costs memory too.
const FEW: usize = 4_096;
const BYTES: usize = 1_024;
/// The most entries of `__metadata__`.
const ENTRIES: usize = 4_096;
/// The most dimensions of a tensor.
const DIMENSIONS: usize = 8;

/// The most tensors, or members of an archive, that a file of `size` bytes may have.
pub(super) fn most_in(size: usize) -> usize {
    FEW.saturating_add(size / BYTES)
}

/// Checks the JSON of the header of a file of `size` bytes, in memory that does not grow with it. What else may be wrong with it
/// is left to the crate.
///
/// # Errors
/// In words: what no file of weights has.
pub(super) fn check(json: &[u8], size: usize) -> Result<(), String> {
    let header = Header { most: TENSORS.min(most_in(size)) };
    serde_json::Deserializer::from_slice(json).deserialize_map(header).map_err(|e| e.to_string())
}

struct Header {
    most: usize,
}

impl<'de> Visitor<'de> for Header {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut tensors = 0;
        while let Some(name) = map.next_key::<Text>()? {
            if name.metadata {
                map.next_value_seed(Metadata)?;
                continue;
            }
            tensors += 1;
            if tensors > self.most {
                return Err(A::Error::custom(format!("more than {} tensors", self.most)));
            }
            map.next_value_seed(Tensor)?;
        }
        Ok(())
    }
}

/// A key, of which only matters what it is.
struct Text {
    metadata: bool,
    shape: bool,
}

impl<'de> serde::Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Text, E> {
                Ok(Text { metadata: name == "__metadata__", shape: name == "shape" })
            }
        }
        deserializer.deserialize_str(Key)
    }
}

struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts as __metadata__")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut entries = 0;
        while map.next_key::<Text>()?.is_some() {
            map.next_value::<Text>()?;
            entries += 1;
            if entries > ENTRIES {
                return Err(A::Error::custom(format!("more than {ENTRIES} entries of __metadata__")));
            }
        }
        Ok(())
    }
}

struct Tensor;

impl<'de> DeserializeSeed<'de> for Tensor {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tensor {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dtype, shape and data_offsets of a tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut entries = 0;
        while let Some(key) = map.next_key::<Text>()? {
            entries += 1;
            if entries > DIMENSIONS {
                return Err(A::Error::custom("a tensor with more than dtype, shape and data_offsets"));
            }
            // the other two are one text and two numbers, or a list that is too long just the same
            map.next_value_seed(Short { dimensions: key.shape })?;
        }
        Ok(())
    }
}

/// A value that is short: a text, a number, or a list of a few numbers.
struct Short {
    dimensions: bool,
}

impl<'de> DeserializeSeed<'de> for Short {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Short {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of numbers")
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut count = 0;
        while seq.next_element::<u64>()?.is_some() {
            count += 1;
            if count > DIMENSIONS {
                let what = if self.dimensions { "dimensions" } else { "offsets" };
                return Err(A::Error::custom(format!("a tensor of more than {DIMENSIONS} {what}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_weights_have_passes_and_what_hurts_does_not() {
        let tensor = r#"{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#;
        let many = |count: usize, entry: &dyn Fn(usize) -> String| {
            format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","))
        };
        let named = |i: usize| format!("\"n\\u00e9{i}\":{tensor}");
        for good in [
            "{}".to_string(),
            format!(r#"{{"__metadata__":{{"format":"pt","a":"\n{{"}},"x":{tensor}}}"#),
            many(TENSORS, &named),
        ] {
            assert_eq!(check(good.as_bytes(), usize::MAX), Ok(()));
        }
        let many_in = |size| check(many(5_000, &named).as_bytes(), size);
        assert!(many_in(926_000).is_ok() && many_in(924_000).is_err_and(|e| e.contains("more than 4998 tensors")));
        let texts = many(ENTRIES + 1, &|i| format!("\"{i}\":\"\""));
        for (bad, what) in [
            (many(TENSORS + 1, &named), "more than 20000 tensors"),
            (format!("{{\"x\":{}}}", tensor.replace("2,3", "1,1,1,1,1,1,1,1,1")), "more than 8 dimensions"),
            (format!("{{\"x\":{}}}", tensor.replace("0,24", "0,0,0,0,0,0,0,0,0")), "more than 8 offsets"),
            (format!("{{\"__metadata__\":{texts}}}"), "more than 4096 entries"),
            (r#"{"__metadata__":{"a":["b"]}}"#.into(), "a name"),
            (r#"{"x":[[],[]]}"#.into(), "dtype, shape and data_offsets"),
            (r#"{"x":{"shape":[[[]]]}}"#.into(), "u64"),
            ("[]".into(), "an object"),
            ("{\"x\":".into(), "EOF"),
            (String::new(), "EOF"),
        ] {
            let found = check(bad.as_bytes(), usize::MAX);
            assert!(found.as_ref().is_err_and(|e| e.contains(what)), "{what}: {found:?}");
        }
    }
}
