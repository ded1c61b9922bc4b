//! What the cache is worth: without a network, beside other programs, damaged, and used by several at once.

use super::server::{COMMIT, etag};
use super::{CDN, NEEDED, Setup, Told, UNET, contains_all};
use erase_concept::checkpoint::ModelFiles;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

#[test]
fn without_symbolic_links_there_are_other_files_of_the_same_content() {
    let mut setup = Setup::new();
    setup.hub.symlinks = false;
    let found = setup.fetch().unwrap();
    assert_eq!(found.files, ModelFiles::Folder(setup.snapshot("")));
    setup.check(&found);
    assert!(!setup.snapshot(UNET).is_symlink());
    setup.hub.offline = true;
    setup.check(&setup.fetch().unwrap());
    // where there are no hard links either, there are copies; a damaged one is made anew
    let before = fs::metadata(setup.snapshot(UNET)).unwrap().len();
    fs::remove_file(setup.snapshot(UNET)).unwrap();
    fs::write(setup.snapshot(UNET), vec![0; before as usize]).unwrap();
    setup.check(&setup.fetch().unwrap());
    fs::remove_file(setup.snapshot(UNET)).unwrap();
    fs::copy(setup.blob(UNET), setup.snapshot(UNET)).unwrap();
    setup.check(&setup.fetch().unwrap());
    // content that Python moved into the snapshot
    fs::remove_dir_all(setup.repository().join("blobs")).unwrap();
    setup.check(&setup.fetch().unwrap());
}

#[test]
fn what_other_programs_put_into_a_snapshot_changes_nothing() {
    let setup = Setup::new();
    let before = setup.fetch().unwrap();
    fs::write(setup.snapshot("unet/diffusion_pytorch_model.bin"), "of another program").unwrap();
    fs::create_dir_all(setup.snapshot("safety_checker")).unwrap();
    fs::write(setup.snapshot("safety_checker/config.json"), "{}").unwrap();
    let after = setup.fetch().unwrap();
    assert_eq!(before, after);
    setup.check(&after);
}

#[test]
fn a_cache_without_our_notes_is_used_as_it_is() {
    let mut setup = Setup::new();
    setup.fetch_right();
    fs::remove_dir_all(setup.repository().join(".erase-concept")).unwrap();
    fs::write(setup.snapshot("unet/more.bin"), "x").unwrap();
    setup.hub.offline = true;
    setup.check(&setup.fetch().unwrap());
    // Python's listing tells what is missing
    fs::remove_dir_all(setup.repository().join(".erase-concept")).unwrap();
    let size = |rel: &str| setup.server.file(rel).len();
    let file = |rel: &&str| {
        (rel.to_string(), serde_json::json!({ "size": size(rel), "blob_id": etag("x", setup.server.file(rel)).0 }))
    };
    let files: BTreeMap<_, _> = NEEDED.iter().map(file).collect();
    fs::create_dir(setup.repository().join("trees")).unwrap();
    let tree = serde_json::json!({ "format_version": 1, "files": files }).to_string();
    fs::write(setup.repository().join(format!("trees/{COMMIT}.json")), tree).unwrap();
    fs::remove_file(setup.snapshot("scheduler/scheduler_config.json")).unwrap();
    fs::remove_file(setup.blob("scheduler/scheduler_config.json")).unwrap();
    let message = setup.fetch().unwrap_err();
    contains_all(&message, &["scheduler/scheduler_config.json", "missing or damaged"]);
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_is_used_all_the_same() {
    let setup = Setup::new();
    setup.fetch_right();
    fs::remove_dir_all(setup.repository().join(".erase-concept")).unwrap();
    let status = std::process::Command::new("chmod").args(["-R", "a-w"]).arg(&setup.hub.cache).status().unwrap();
    assert!(status.success());
    // (to root it can be written even so)
    let found = setup.fetch().unwrap();
    let ModelFiles::Folder(root) = &found.files else { panic!("no folder") };
    assert!(fs::read(root.join(UNET)).unwrap() == setup.server.file(UNET));
    let status = std::process::Command::new("chmod").args(["-R", "u+w"]).arg(&setup.hub.cache).status().unwrap();
    assert!(status.success());
}

#[test]
fn offline_uses_what_is_there_or_says_the_ways_on() {
    let mut setup = Setup::new();
    setup.hub.offline = true;
    let ways =
        ["owner/demo: nothing is fetched (offline)", "has no revision \"main\"", "--model FOLDER", "--model demo"];
    contains_all(&setup.fetch().unwrap_err(), &ways);
    assert!(!setup.hub.cache.exists(), "nothing is written");
    setup.hub.offline = false;
    setup.fetch_right();
    setup.server.requests();
    setup.hub.offline = true;
    setup.check(&setup.fetch().unwrap());
    fs::remove_file(setup.blob(UNET)).unwrap();
    contains_all(&setup.fetch().unwrap_err(), &[UNET, "is missing or damaged", "HF_HUB_CACHE"]);
    assert!(setup.server.requests().is_empty());
}

#[test]
fn without_a_network_the_cache_serves() {
    let mut setup = Setup::new();
    setup.fetch_right();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.hub.endpoint = format!("http://{closed}");
    let mut told = Told::default();
    setup.check(&setup.fetch_at(None, &mut told).unwrap());
    assert!(
        told.notes.iter().any(|note| note.contains("what the cache has of owner/demo is used")),
        "{:?}",
        told.notes
    );
    setup.hub.cache = setup.folder.path().join("other");
    let parts = [
        "owner/demo: cannot be fetched: http://127.0.0.1",
        "2 attempts",
        "has no revision",
        "--model demo",
        "HF_HUB_CACHE",
    ];
    contains_all(&setup.fetch().unwrap_err(), &parts);
    setup.hub.endpoint = "http://no-such-host.invalid".into();
    contains_all(&setup.fetch().unwrap_err(), &["no-such-host.invalid: no such host, or no network", "--model FOLDER"]);
}

#[test]
fn a_damaged_file_in_the_cache_is_fetched_again_once() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        (UNET, |bytes| bytes.truncate(1000)),
        (UNET, |bytes| bytes[5000] ^= 1),
        ("unet/config.json", |bytes| bytes[1] = b'\t'),
        ("model_index.json", |bytes| bytes.push(b' ')),
    ];
    for (rel, damage) in damages {
        let mut setup = Setup::new();
        setup.fetch_right();
        let mut bytes = setup.server.file(rel).to_vec();
        damage(&mut bytes);
        std::thread::sleep(Duration::from_millis(20)); // as much as a clock of files may need
        fs::write(setup.blob(rel), bytes).unwrap();
        setup.server.requests();
        setup.hub.offline = true;
        let mut told = Told::default();
        contains_all(
            &setup.fetch_at(None, &mut told).unwrap_err(),
            &[rel, "is missing or damaged", "without --offline"],
        );
        assert!(told.notes.iter().any(|note| note.contains(rel) && note.contains("is damaged (")), "{:?}", told.notes);
        setup.hub.offline = false;
        let mut told = Told::default();
        setup.check(&setup.fetch_at(None, &mut told).unwrap());
        assert!(told.notes.iter().any(|note| note.contains("it is fetched again")), "{:?}", told.notes);
        assert_eq!(told.total, if rel == UNET { 300_000 } else { 0 });
        let asked = setup.asked("GET");
        assert_eq!(
            asked.iter().filter(|(path, _)| path.contains("resolve") && path.ends_with(rel)).count(),
            1,
            "{asked:?}"
        );
    }
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let setup = Setup::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(|| setup.fetch_right())).collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let asked = setup.asked("GET");
    for rel in NEEDED.iter().filter(|rel| **rel != "tokenizer/vocab.json") {
        let path = format!("/owner/demo/resolve/{COMMIT}/{rel}");
        assert_eq!(asked.iter().filter(|(asked, _)| *asked == path).count(), 1, "{rel}");
    }
}

#[test]
fn one_waits_while_another_program_fetches() {
    let setup = Setup::new();
    let locks = setup.hub.cache.join(".locks/models--owner--demo");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("{}.lock", etag(UNET, setup.server.file(UNET)).0))).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut told = Told::default();
            setup.check(&setup.fetch_at(None, &mut told).unwrap());
            told
        });
        while !setup.blob("unet/config.json").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(!setup.blob(UNET).exists());
        fs::write(setup.blob(UNET), setup.server.file(UNET)).unwrap(); // the other program is done
        drop(lock);
        let told = running.join().unwrap();
        assert!(told.notes.iter().any(|note| note.contains("another process is fetching it")), "{:?}", told.notes);
    });
    assert!(setup.asked("GET").iter().all(|(path, _)| !path.contains(CDN)));
}
