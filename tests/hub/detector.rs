//! Detectors from the Hub: one network at the top of a repository.

use super::server::{COMMIT, Fault, Server, files_of};
use super::{Told, common, hub};
use erase_concept::audit::{DetectorFiles, open_detector};

#[test]
fn a_classifier_is_fetched_once_and_then_needs_no_network() {
    let mut files = files_of(&common::fixture("detectors/vit"));
    files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
    files.insert("onnx/model.onnx".into(), b"large".to_vec());
    let (server, folder) = (Server::new(files), tempfile::tempdir().unwrap());
    let mut hub = hub(&server.endpoint(), folder.path().join("hub"));
    server.fail("model.safetensors", Fault::Cut(1000), 1);

    let mut told = Told::default();
    let found = DetectorFiles::on_hub(&hub, "owner/demo", None, &mut told).unwrap();
    assert_eq!(found.name(), format!("owner/demo at commit {COMMIT}"));
    let asked: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().any(|path| path.contains("model.safetensors")));
    assert!(!asked.iter().any(|path| path.contains(".bin") || path.contains("onnx")), "{asked:?}");

    let ours = open_detector(&found, None).unwrap();
    let local = open_detector(&DetectorFiles::folder(&common::fixture("detectors/vit")).unwrap(), None).unwrap();
    assert_eq!((ours.sha256(), ours.labels()), (local.sha256(), local.labels()));

    hub.offline = true;
    let again = DetectorFiles::on_hub(&hub, "owner/demo", None, &mut told).unwrap();
    assert_eq!(again, found);
    assert!(server.requests().is_empty());
}

#[test]
fn what_is_no_detector_is_said() {
    let mut files = files_of(&common::fixture("detectors/vit"));
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
    let (server, folder) = (Server::new(files), tempfile::tempdir().unwrap());
    let mut hub = hub(&server.endpoint(), folder.path().join("hub"));
    let message = |hub: &erase_concept::hub::Hub, name: &str| {
        DetectorFiles::on_hub(hub, name, None, &mut Told::default()).unwrap_err().to_string()
    };
    let bin = message(&hub, "owner/demo");
    assert!(bin.contains("owner/demo: has no model.safetensors, only pytorch_model.bin"), "{bin}");
    assert!(message(&hub, "no-name").contains("\"no-name\" is neither a folder nor OWNER/NAME"));
    hub.offline = true;
    let offline = message(&hub, "owner/other");
    assert!(
        offline.contains("nothing is fetched (offline)") && offline.contains("or name a folder that has it"),
        "{offline}"
    );
    assert!(!offline.contains("--model"), "{offline}");
}
