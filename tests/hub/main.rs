//! Models from the Hugging Face Hub, against a local server that speaks its protocol and misbehaves: every fault ends in the
//! right files or in an error that says what to do, and never in a wrong file.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "hub")]

mod cache;
#[path = "../common/mod.rs"]
mod common;
mod detector;
mod faults;
mod program;
mod server;

use erase_concept::checkpoint::ModelFiles;
use erase_concept::hub::{Found, Hub, find_on};
use erase_concept::progress::{Event, Progress};
use server::{COMMIT, Fault, Server, etag};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
/// Where the server has the UNet after the redirect.
const CDN: &str = "/cdn/unet/";

/// What of [`model`] is needed.
const NEEDED: [&str; 9] = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "unet/config.json",
    UNET,
    VAE,
];

/// The files of a model of no meaning, with much that is not needed.
fn model() -> BTreeMap<String, Vec<u8>> {
    let bytes =
        |seed: u32, length: u32| (0..length).map(|i| (i.wrapping_mul(2654435761) >> (7 + seed)) as u8).collect();
    let index = r#"{"_class_name": "StableDiffusionPipeline", "safety_checker": ["a", "B"], "scheduler": ["a", "B"],
        "text_encoder": ["a", "B"], "tokenizer": ["a", "B"], "unet": ["a", "B"], "vae": ["a", "B"]}"#;
    let mut files: BTreeMap<String, Vec<u8>> = [
        ("model_index.json", index.as_bytes()),
        ("README.md", b"a model"),
        (".gitattributes", b"x"),
        ("scheduler/scheduler_config.json", b"{}"),
        ("text_encoder/config.json", b"{ }"),
        ("tokenizer/vocab.json", b""), // of no length
        ("unet/config.json", b"{  }"),
        ("unet/diffusion_pytorch_model.bin", b"pickle"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", b"half"),
        ("safety_checker/model.safetensors", b"large"),
        ("model.ckpt", b"pickle"),
    ]
    .map(|(rel, content)| (rel.to_string(), content.to_vec()))
    .into();
    files.insert(UNET.into(), bytes(0, 300_000));
    files.insert(VAE.into(), bytes(1, 90_000));
    files.insert("text_encoder/model.safetensors".into(), bytes(2, 5_000));
    files
}

/// A server and a cache.
struct Setup {
    server: Server,
    hub: Hub,
    folder: tempfile::TempDir,
}

/// What was told on the way.
#[derive(Default)]
struct Told {
    notes: Vec<String>,
    received: Vec<u64>,
    total: u64,
}

impl Progress for Told {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Note(text) => self.notes.push(text.into()),
            Event::Transfer { bytes, .. } => self.total = bytes,
            Event::Received { bytes } => self.received.push(bytes),
            _ => {}
        }
    }
}

impl Setup {
    fn new() -> Self {
        Self::with(model())
    }

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let (server, folder) = (Server::new(files), tempfile::tempdir().unwrap());
        let hub = hub(&server.endpoint(), folder.path().join("hub"));
        Self { server, hub, folder }
    }

    fn fetch(&self) -> Result<Found, String> {
        self.fetch_at(None, &mut Told::default())
    }

    fn fetch_at(&self, revision: Option<&str>, told: &mut Told) -> Result<Found, String> {
        find_on(&self.hub, "owner/demo", revision, told).map_err(|error| error.to_string())
    }

    /// Fetches, and checks that exactly the right files are there.
    fn fetch_right(&self) {
        self.check(&self.fetch().unwrap());
    }

    fn check(&self, found: &Found) {
        let ModelFiles::Folder(root) = &found.files else { panic!("no folder") };
        let origin = found.origin.as_ref().unwrap();
        assert_eq!((origin.repo.as_str(), origin.commit.as_str()), ("owner/demo", COMMIT));
        let there: Vec<_> = common::tiny::tree(root).into_iter().filter(|rel| root.join(rel).is_file()).collect();
        assert_eq!(there, NEEDED);
        for rel in NEEDED {
            assert!(fs::read(root.join(rel)).unwrap() == self.server.file(rel), "{rel}");
            assert!(fs::read(self.snapshot(rel)).unwrap() == self.server.file(rel), "{rel}");
        }
        self.check_blobs();
    }

    /// Nothing at a blob's place that is not what its name says.
    fn check_blobs(&self) {
        let blobs = self.repository().join("blobs");
        for entry in fs::read_dir(blobs).into_iter().flatten() {
            let (path, name) = { entry.map(|e| (e.path(), e.file_name().into_string().unwrap())).unwrap() };
            if !name.ends_with(".incomplete") {
                let rel = if name.len() == 64 { "x.safetensors" } else { "x" };
                assert_eq!(etag(rel, &fs::read(&path).unwrap()).0, name);
            }
        }
    }

    fn repository(&self) -> PathBuf {
        self.hub.cache.join("models--owner--demo")
    }

    fn snapshot(&self, rel: &str) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT).join(rel)
    }

    fn blob(&self, rel: &str) -> PathBuf {
        self.repository().join("blobs").join(etag(rel, self.server.file(rel)).0)
    }

    fn incomplete(&self, rel: &str) -> PathBuf {
        self.blob(rel).with_extension("incomplete")
    }

    /// The paths that were asked for with a method, and the parts of them.
    fn asked(&self, method: &str) -> Vec<(String, Option<String>)> {
        let requests = self.server.requests().into_iter().filter(|request| request.method == method);
        requests.map(|request| (request.path.clone(), request.header("range").map(String::from))).collect()
    }
}

/// A hub that does not wait long.
fn hub(endpoint: &str, cache: PathBuf) -> Hub {
    Hub {
        cache,
        endpoint: endpoint.into(),
        token: None,
        offline: false,
        symlinks: true,
        patience: Duration::from_millis(300),
        backoff: Duration::from_millis(10),
        certificates: None,
    }
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text}\nhas no: {part}");
    }
}

#[test]
fn what_is_needed_is_fetched_once_into_pythons_layout() {
    let setup = Setup::new();
    let mut told = Told::default();
    setup.check(&setup.fetch_at(None, &mut told).unwrap());
    let bytes: u64 = NEEDED.iter().map(|rel| setup.server.file(rel).len() as u64).sum();
    let index = setup.server.file("model_index.json").len() as u64; // fetched before the rest is known
    assert_eq!((told.total, told.received.last()), (bytes - index, Some(&(bytes - index))));
    assert!(told.received.is_sorted(), "{:?}", told.received);
    assert_eq!(told.notes, [format!("model owner/demo at commit {COMMIT} (main)")]);

    let asked = setup.asked("GET");
    let mut files: Vec<_> =
        asked.iter().filter_map(|(path, _)| path.split_once(COMMIT)).map(|(_, rel)| &rel[1..]).collect();
    files.sort_unstable();
    assert_eq!(files, [&NEEDED[..5], &NEEDED[6..]].concat(), "each once, but for the empty one");
    let repository = setup.repository();
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    for rel in NEEDED {
        let up = if rel.contains('/') { "../../../blobs" } else { "../../blobs" };
        let target = Path::new(up).join(etag(rel, setup.server.file(rel)).0);
        assert_eq!(fs::read_link(setup.snapshot(rel)).unwrap(), target, "{rel}");
    }
    assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count(), NEEDED.len());

    // the second time only the commit is asked for
    let mut told = Told::default();
    setup.check(&setup.fetch_at(None, &mut told).unwrap());
    assert_eq!(setup.asked("GET").len(), 1);
    assert_eq!(told.total, 0);
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let setup = Setup::new();
    setup.check(&setup.fetch_at(Some("v1/rc"), &mut Told::default()).unwrap());
    assert_eq!(fs::read_to_string(setup.repository().join("refs/v1/rc")).unwrap(), COMMIT);
    setup.server.requests();
    // of a commit that is here nobody is asked
    setup.check(&setup.fetch_at(Some(COMMIT), &mut Told::default()).unwrap());
    assert!(setup.server.requests().is_empty());
    let message = setup.fetch_at(Some("nowhere"), &mut Told::default()).unwrap_err();
    contains_all(&message, &["owner/demo has no revision \"nowhere\"", "owner/demo/refs", "leave --revision out"]);
    for wrong in ["", "../x", "a//b", "a b", "/x"] {
        let message = setup.fetch_at(Some(wrong), &mut Told::default()).unwrap_err();
        assert!(message.contains("is no branch, tag or commit"), "{message}");
    }
}

#[test]
fn a_mirror_may_tell_sizes_and_hashes_file_by_file() {
    let setup = Setup::new();
    setup.server.hide_blobs();
    setup.fetch_right();
    assert_eq!(setup.asked("HEAD").len(), NEEDED.len());
    setup.fetch_right();

    let setup = Setup::new();
    setup.server.hide_blobs();
    setup.server.hide_etags();
    let message = setup.fetch().unwrap_err();
    contains_all(&message, &["tells no size and hash of model_index.json", "could not be verified", "HF_ENDPOINT"]);
}

#[test]
fn a_model_that_cannot_be_used_is_refused_before_its_weights_come() {
    let with = |rel: &str, content: &str| {
        let mut files = model();
        files.insert(rel.into(), content.into());
        let setup = Setup::with(files);
        let message = setup.fetch().unwrap_err();
        assert!(setup.asked("GET").iter().all(|(path, _)| !path.contains("safetensors")));
        message
    };
    let other = with("model_index.json", r#"{"_class_name": "FluxPipeline", "unet": ["a", "B"]}"#);
    contains_all(&other, &["owner/demo", "FluxPipeline"]);
    contains_all(&with("model_index.json", "nonsense"), &["owner/demo (model_index.json)", "not JSON"]);

    let mut files = model();
    files.remove("model_index.json");
    files.insert("v1.safetensors".into(), b"x".to_vec());
    contains_all(&Setup::with(files).fetch().unwrap_err(), &["owner/demo has no model_index.json", "v1.safetensors"]);

    let mut files = model();
    files.retain(|rel, _| !rel.starts_with("unet/") || !rel.ends_with(".safetensors"));
    let setup = Setup::with(files);
    let bin = ["weights of unet are there as unet/diffusion_pytorch_model.bin only", "save_pretrained", "--revision"];
    contains_all(&setup.fetch().unwrap_err(), &bin);
}

#[test]
fn shards_are_fetched_as_their_index_names_them() {
    let mut files = model();
    let unet = files.remove(UNET).unwrap();
    files.remove("unet/diffusion_pytorch_model.fp16.safetensors");
    let parts = ["unet/part-1.safetensors", "unet/part-2.safetensors", "unet/part-of-another.safetensors"];
    parts.iter().for_each(|rel| drop(files.insert(rel.to_string(), unet[rel.len()..].to_vec())));
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    let map = r#"{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}"#;
    files.insert(index.into(), map.into());
    let setup = Setup::with(files);
    let ModelFiles::Folder(root) = setup.fetch().unwrap().files else { panic!("no folder") };
    for rel in &parts[..2] {
        assert!(fs::read(root.join(rel)).unwrap() == setup.server.file(rel), "{rel}");
    }
    assert!(root.join(index).exists() && !root.join(parts[2]).exists() && !setup.snapshot(parts[2]).exists());
}

#[test]
fn a_disk_that_is_too_small_is_said_before_anything_is_fetched() {
    let setup = Setup::new();
    fs::create_dir_all(&setup.hub.cache).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&setup.hub.cache)
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: no right to mount a tmpfs here (run as root)");
        return;
    }
    let message = setup.fetch();
    let asked = setup.asked("GET");
    let unmounted = std::process::Command::new("umount").arg(&setup.hub.cache).status().unwrap();
    contains_all(&message.unwrap_err(), &["owner/demo: 395 kB are to be fetched", "are free in", "HF_HUB_CACHE"]);
    assert!(asked.iter().all(|(path, _)| !path.contains("safetensors")), "{asked:?}");
    assert!(unmounted.success());
}

/// A server to try other programs against, for ten minutes: `cargo test --release --test hub serve -- --ignored --nocapture`.
/// See `python_cache.py`.
#[test]
#[ignore = "runs for ten minutes, for use by hand"]
fn serve() {
    let mut files = server::files_of(&common::repository("weights/demo"));
    files.insert("README.md".into(), b"a model\n".to_vec());
    let server = Server::new(files);
    println!("HF_ENDPOINT={}", server.endpoint());
    std::thread::sleep(Duration::from_secs(600));
    server.fail("", Fault::Cut(0), 0);
}
