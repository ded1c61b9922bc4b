//! The demo model, as part of the program: trained from nothing by this project, so it may be shipped.

/// A file of `weights/demo`, by its relative path.
macro_rules! embed {
    ($($rel:literal),* $(,)?) => {
        &[$(($rel, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/demo/", $rel)))),*]
    };
}

/// Every file of `weights/demo`, in order of path. A static: each use of a constant may bring its own copy of the bytes.
pub(super) static FILES: &[(&str, &[u8])] = embed![
    "classifier/config.json",
    "classifier/model.safetensors",
    "classifier/preprocessor_config.json",
    "clip/config.json",
    "clip/model.safetensors",
    "clip/preprocessor_config.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

#[cfg(test)]
mod tests {
    use super::FILES;
    use std::path::Path;

    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("weights/demo") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{prefix}{name}/"), found);
            } else if !name.starts_with('.') {
                found.push(format!("{prefix}{name}"));
            }
        }
    }

    #[test]
    fn the_list_is_what_is_in_weights_demo() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
        let mut on_disk = Vec::new();
        walk(&root, "", &mut on_disk);
        on_disk.sort();
        let listed: Vec<_> = FILES.iter().map(|(rel, _)| rel.to_string()).collect();
        assert_eq!(listed, on_disk);
        for (rel, bytes) in FILES {
            assert!(std::fs::read(root.join(rel)).expect("a file") == *bytes, "{rel} differs");
        }
    }
}
