//! Which files a commit has, with their sizes and hashes: as the Hub lists them, or as a cache does.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// What is known of a file before it is there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Bytes.
    pub size: Option<u64>,
    /// Its name in the cache, and its hash: SHA-256 of a large file (LFS), git's SHA-1 of a small one.
    pub etag: Option<String>,
}

/// The files of a commit by their paths. Paths that could lead outside a folder are never among them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing(pub BTreeMap<String, Entry>);

impl Listing {
    /// From the Hub's answer to `/api/models/OWNER/NAME/revision/REV?blobs=true`.
    #[cfg(any(feature = "hub", test))]
    pub fn from_api(answer: &Value) -> Option<Self> {
        let file = |file: &Value| {
            let lfs = file.get("lfs").filter(|lfs| lfs.is_object());
            let etag = lfs.map_or_else(|| file.get("blobId"), |lfs| lfs.get("sha256"));
            let size = lfs.and_then(|lfs| lfs.get("size")).or_else(|| file.get("size"));
            Some((file.get("rfilename")?.as_str()?.to_string(), entry(size, etag)))
        };
        let files = answer.get("siblings")?.as_array()?.iter().filter_map(file);
        Some(Self(files.filter(|(path, _)| is_plain(path)).collect()))
    }

    /// From what Python's huggingface_hub (and this program) keeps beside a cached model: `_tree_cache.py`.
    pub fn from_tree(tree: &Value) -> Option<Self> {
        if tree.get("format_version")? != 1 {
            return None;
        }
        let file = |(path, file): (&String, &Value)| {
            let etag = file.get("lfs_sha256").filter(|hash| hash.is_string()).or_else(|| file.get("blob_id"));
            let size = file.get("lfs_size").filter(|size| size.is_u64()).or_else(|| file.get("size"));
            (path.clone(), entry(size, etag))
        };
        let files = tree.get("files")?.as_object()?.iter().map(file);
        Some(Self(files.filter(|(path, _)| is_plain(path)).collect()))
    }

    /// The other way, for files whose size and hash are known.
    pub fn to_tree(&self) -> Value {
        let file = |(path, entry): (&String, &Entry)| {
            let (size, etag) = (entry.size?, entry.etag.as_ref()?);
            let value = match etag.len() {
                64 => json!({ "size": size, "blob_id": "", "lfs_sha256": etag, "lfs_size": size }),
                _ => json!({ "size": size, "blob_id": etag }),
            };
            Some((path.clone(), value))
        };
        json!({ "format_version": 1, "files": self.0.iter().filter_map(file).collect::<Map<_, _>>() })
    }
}

fn entry(size: Option<&Value>, etag: Option<&Value>) -> Entry {
    let etag = etag.and_then(Value::as_str).filter(|etag| is_hash(etag));
    Entry { size: size.and_then(Value::as_u64), etag: etag.map(str::to_string) }
}

/// Whether this is a git SHA-1 or a SHA-256: an etag by which content can be checked, and that can name a file.
pub(super) fn is_hash(etag: &str) -> bool {
    [40, 64].contains(&etag.len()) && etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path stays inside the folder it is joined to, on every system.
fn is_plain(path: &str) -> bool {
    !path.contains(['\\', ':', '\0'])
        && !path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_comes_back_as_it_was_and_keeps_strangers_paths_out() {
        let (git, lfs) = ("a".repeat(40), "b".repeat(64));
        let answer = json!({ "siblings": [
            { "rfilename": "model_index.json", "size": 7, "blobId": git },
            { "rfilename": "unet/w.safetensors", "size": 134, "blobId": git, "lfs": { "sha256": lfs, "size": 9 } },
            { "rfilename": "unet/no_hash.json", "size": 1, "blobId": "../../x" },
            { "rfilename": "../outside", "size": 1, "blobId": git },
            { "rfilename": "/etc/x", "size": 1, "blobId": git },
            { "rfilename": "a\\b", "size": 1, "blobId": git },
            { "rfilename": "a//b", "size": 1, "blobId": git },
        ] });
        let mut listing = Listing::from_api(&answer).unwrap();
        let known = |size, etag: &str| Entry { size: Some(size), etag: Some(etag.into()) };
        assert_eq!(
            listing.0.keys().collect::<Vec<_>>(),
            ["model_index.json", "unet/no_hash.json", "unet/w.safetensors"]
        );
        assert_eq!(listing.0["model_index.json"], known(7, &git));
        assert_eq!(listing.0["unet/w.safetensors"], known(9, &lfs));
        assert_eq!(listing.0["unet/no_hash.json"], Entry { size: Some(1), etag: None });
        listing.0.remove("unet/no_hash.json");
        assert_eq!(Listing::from_tree(&listing.to_tree()), Some(listing));
        assert_eq!(Listing::from_tree(&json!({ "format_version": 2, "files": {} })), None);
    }
}
