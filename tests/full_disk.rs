//! A disk that is full at each kind of write: exit code 2, the file and the remedy are named, nothing is left. Needs to be
//! allowed to mount a tmpfs (root); says so where it is not.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use common::tiny::{TEXT, Tiny, UNET, VAE, assert_same, result, tree};
use std::io::Write;
use std::path::Path;
use std::process::Command;

const PAGE: u64 = 4096;

/// A little disk.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where nothing may be mounted.
    fn mount(pages: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={}", pages * PAGE);
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                // past the capture of the test harness
                let _ = writeln!(std::io::stderr(), "SKIPPED: full_disk: no right to mount a tmpfs here (run as root)");
                None
            }
        }
    }

    /// Another size, for what is there and what comes.
    fn resize(&self, pages: u64) {
        let size = format!("remount,size={}", pages * PAGE);
        let output = Command::new("mount").args(["-o", &size]).arg(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE)
}

/// Size of a file in pages.
fn size(path: &Path) -> u64 {
    pages(std::fs::metadata(path).unwrap().len())
}

/// The order in which the erase job writes its files.
fn in_order_of_writing(out: &Path) -> Vec<String> {
    let mut files: Vec<String> = tree(out).into_iter().filter(|rel| out.join(rel).is_file()).collect();
    let rank = |rel: &String| match rel.as_str() {
        rel if rel.starts_with("images/training") => 0,
        rel if rel.starts_with("images/before") => 2,
        rel if rel.starts_with("images/after") => 3,
        "report.json" => 4,
        "report.html" => 5,
        "grid.png" => 6,
        "README.md" => 7,
        "run.json" => 8,
        _ => 1,
    };
    files.sort_by_key(|rel| (rank(rel), rel.clone()));
    files
}

#[test]
fn the_erase_job_names_the_file_for_which_there_is_no_room() {
    let tiny = Tiny::new();
    tiny.command(&tiny.erase(&["--output", "whole", "--keep-images"])).assert().code(0);
    let whole = tiny.root().join("whole");
    let mut before = 0;
    let mut tried = 0;
    for rel in in_order_of_writing(&whole) {
        let size = size(&whole.join(&rel));
        let evidence = ["grid.png", "report.json", "report.html", "run.json"];
        let chosen = [&[TEXT, UNET, VAE, "scheduler/scheduler_config.json"][..], &evidence].concat();
        let picture = rel.contains("before/concept-00000_") || rel.ends_with("training/retain-00000.png");
        if before > 0 && (picture || chosen.contains(&rel.as_str())) {
            let Some(disk) = Disk::mount(before + size / 2) else { return };
            let output = disk.path("out");
            let name = rel.rsplit('/').next().unwrap();
            let args = tiny.erase(&["--output", &output, "--keep-images"]);
            tiny.refused(&args, &[name, "disk full, free at least", "or choose another --output"]);
            assert_eq!(tree(disk.0.path()), [""; 0], "{rel} left something behind");
            tried += 1;
        }
        before += size;
    }
    assert!(tried >= 10, "{tried} kinds of files");
    let Some(disk) = Disk::mount(before + 16) else { return };
    tiny.command(&tiny.erase(&["--output", &disk.path("out"), "--keep-images"])).assert().code(0);
}

#[test]
fn a_model_in_another_format_needs_room_too_and_a_place_that_can_be_written() {
    let tiny = Tiny::new();
    let (unet, all) = (size(&tiny.file(UNET)), [UNET, VAE, TEXT].map(|rel| size(&tiny.file(rel))).iter().sum::<u64>());
    for (format, file, room) in [("single-file", "x.safetensors", all / 2), ("diffusers", UNET, unet / 2)] {
        let Some(disk) = Disk::mount(room) else { return };
        let output = disk.path("x.safetensors");
        let export = ["export", "model", "--format", format, "--output", &output];
        let name = file.rsplit('/').next().unwrap();
        tiny.refused(&export, &[name, "disk full, free at least"]);
        assert_eq!(tree(disk.0.path()), [""; 0], "{format} left something behind");
        let remount = ["-o", "remount,ro"];
        assert!(Command::new("mount").args(remount).arg(disk.0.path()).status().unwrap().success());
        let said = tiny.refused(&export, &[]);
        let said = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
        assert!(said.contains("Read-only file system") && said.contains("choose"), "{said}");
    }
}

#[test]
fn an_audit_goes_on_once_there_is_room() {
    let tiny = Tiny::new();
    let set: String = (0..12).map(|i| format!("{i},a red star\n")).collect();
    std::fs::write(tiny.root().join("set.csv"), format!("case_number,prompt\n{set}")).unwrap();
    let args = ["audit", "--model", "model", "--prompts", "set.csv", "--steps", "1", "--batch-size", "2", "--output"];
    tiny.command(&[&args[..], &["whole"]].concat()).assert().code(0);
    // no room for the manifest, for pictures, for the results
    let mut pictures = 0;
    for room in [2, 5, 9, 16] {
        let Some(disk) = Disk::mount(room) else { return };
        let output = disk.path("out");
        let args = [&args[..], &[&output]].concat();
        let refused = tiny.refused(&args, &["disk full, free", "or choose another --output"]);
        pictures += usize::from(String::from_utf8_lossy(&refused.get_output().stderr).contains("_0.png: disk full"));
        disk.resize(100);
        tiny.command(&args).assert().code(0);
        assert_same(
            &result(&tiny.root().join("whole")),
            &result(Path::new(&output)),
            &format!("room for {room} pages"),
        );
    }
    assert!(pictures > 0, "a picture for which there is no room is named");
}

#[test]
fn the_cache_sample_and_bench_say_so_too() {
    let tiny = Tiny::new();
    for room in [1, 8] {
        let Some(disk) = Disk::mount(room) else { return };
        let cache = disk.path("cache");
        let args = tiny.erase(&["--output", "out", "--cache", &cache]);
        tiny.refused(&args, &[&format!("{cache}/"), ": disk full, free at least", "another --cache"]);
        assert!(tree(disk.0.path()).iter().all(|name| !name.contains("partial")), "{:?}", tree(disk.0.path()));
    }
    let Some(disk) = Disk::mount(4) else { return };
    let output = disk.path("deep/out");
    let prompt = ["sample", "--model", "model", "--prompt", "x", "-n", "20", "--steps", "1"];
    tiny.refused(&[&prompt[..], &["--output", &output]].concat(), &[".png: disk full, free at least"]);
    assert_eq!(tree(disk.0.path()), [""; 0]);

    let grid = "[[variant]]\nname = \"a\"\nset = { repair_steps = 1, score_batches = 1, \"data.forget\" = 1, \"data.retain\" = 1 }";
    std::fs::write(tiny.root().join("grid.toml"), grid).unwrap();
    let output = disk.path("bench");
    let args =
        ["bench", "--model", "model", "--grid", "grid.toml", "--concepts", "star", "--steps", "1", "--output", &output];
    let few = ["--verify-images", "1", "--synonym-images", "1", "--retain-images", "1"];
    tiny.refused(&[&args[..], &few].concat(), &["disk full, free"]);
    assert!(tree(disk.0.path()).iter().all(|name| !name.contains("partial")), "{:?}", tree(disk.0.path()));
}
