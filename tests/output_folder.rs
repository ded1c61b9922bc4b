//! A result appears whole or not at all, and what stands there is not lost.

use erase_concept::checkpoint::{OutputFolder, write_file_atomic};
use std::fs;
use std::path::{Path, PathBuf};

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
    fs::write(path, text).expect("file");
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).expect("file")
}

/// Names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("folder")
        .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

fn refused(target: &Path, overwrite: bool) -> String {
    OutputFolder::create(target, overwrite).expect_err("should be refused").to_string()
}

/// The number of a process that has ended.
fn dead_pid() -> u32 {
    let mut child = std::process::Command::new("true").spawn().expect("a process");
    child.wait().expect("its end");
    child.id()
}

#[test]
fn nothing_is_at_the_target_before_the_commit_and_everything_after() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("new parent/ünï code");
    let out = OutputFolder::create(&target, false).expect("create");
    assert_eq!(out.path().parent(), target.parent());
    assert!(out.path().file_name().expect("name").to_string_lossy().starts_with(".ünï code.partial-"));
    write(out.path().join("unet/config.json"), "{}");
    assert!(!target.exists());
    out.commit().expect("commit");
    assert_eq!(read(target.join("unet/config.json")), "{}");
    assert_eq!(names(target.parent().expect("parent")), ["ünï code"]);
}

#[test]
fn drop_without_commit_leaves_nothing() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("out");
    let out = OutputFolder::create(&target, false).expect("create");
    write(out.path().join("a/b"), "half");
    drop(out);
    assert!(names(tmp.path()).is_empty());
    OutputFolder::create(&target, false).expect("the same target again");
}

#[test]
fn a_folder_with_files_needs_overwrite_and_is_replaced_whole() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("out");
    write(target.join("old"), "old");
    let message = refused(&target, false);
    assert!(message.contains("not empty") && message.contains("--overwrite"), "{message}");

    let out = OutputFolder::create(&target, true).expect("create");
    write(out.path().join("new"), "new");
    assert_eq!(names(&target), ["old"]);
    drop(out);
    assert_eq!(names(&target), ["old"], "an abandoned overwrite must leave the old folder");

    let out = OutputFolder::create(&target, true).expect("create");
    write(out.path().join("new"), "new");
    out.commit().expect("commit");
    assert_eq!(names(&target), ["new"]);
    assert_eq!(names(tmp.path()), ["out"]);
}

#[test]
fn an_empty_folder_is_fine() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("out");
    fs::create_dir(&target).expect("empty");
    let out = OutputFolder::create(&target, false).expect("create");
    write(out.path().join("new"), "new");
    out.commit().expect("commit");
    assert_eq!(names(&target), ["new"]);
}

#[test]
fn a_folder_filled_meanwhile_is_not_replaced() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("out");
    let out = OutputFolder::create(&target, false).expect("create");
    write(out.path().join("new"), "new");
    write(target.join("theirs"), "theirs");
    let message = out.commit().expect_err("should be refused").to_string();
    assert!(message.contains("not empty"), "{message}");
    assert_eq!(names(&target), ["theirs"]);
    assert_eq!(names(tmp.path()), ["out"]);
}

#[test]
fn files_links_and_impossible_places_are_refused() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let file = tmp.path().join("file");
    write(file.clone(), "precious");
    assert!(refused(&file, true).contains("is a file"));
    let message = refused(&file.join("out"), false);
    assert!(message.contains("cannot create a folder here") && message.contains("choose another"), "{message}");
    assert!(refused(&tmp.path().join(".."), true).contains("not a name"));
    assert_eq!(read(file), "precious");
    assert_eq!(names(tmp.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn a_link_is_refused_even_to_a_folder() {
    let tmp = tempfile::tempdir().expect("tempdir");
    write(tmp.path().join("real/model"), "precious");
    std::os::unix::fs::symlink(tmp.path().join("real"), tmp.path().join("link")).expect("link");
    assert!(refused(&tmp.path().join("link"), true).contains("symbolic link"));
    assert_eq!(names(tmp.path()), ["link", "real"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_unwritable_parent_is_refused_even_for_root() {
    let message = refused(Path::new("/proc/out"), false);
    assert!(message.contains("/proc: cannot create a folder here"), "{message}");
}

#[test]
fn the_current_folder_is_never_replaced() {
    let current = std::env::current_dir().expect("current folder");
    for target in [current.as_path(), current.parent().expect("parent")] {
        assert!(refused(target, true).contains("holds the current folder"), "{target:?}");
    }
}

#[test]
fn one_process_cannot_write_the_same_target_twice_at_once() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let target = tmp.path().join("out");
    let first = OutputFolder::create(&target, false).expect("create");
    write(first.path().join("a"), "a");
    assert!(refused(&target, false).contains("already being written"));
    first.commit().expect("the first is not disturbed");
    assert_eq!(names(&target), ["a"]);
}

#[cfg(target_os = "linux")]
#[test]
fn what_dead_processes_left_is_swept_and_what_live_ones_write_is_not() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let dead = dead_pid();
    let ours = std::process::id(); // left by a dead process that had our number, since nothing here is being written
    for stale in [format!(".out.partial-{dead}"), format!(".out.partial-{ours}"), format!(".out.old-{dead}")] {
        write(tmp.path().join(stale).join("x"), "x");
    }
    write(tmp.path().join("out/x"), "current");
    let kept = [".other.partial-1", ".out.partial-1", ".out.partial-x", "out"]; // 1 is alive
    kept[..3].iter().for_each(|name| write(tmp.path().join(name).join("x"), "x"));
    drop(OutputFolder::create(&tmp.path().join("out"), true).expect("create"));
    assert_eq!(names(tmp.path()), kept);
    assert_eq!(read(tmp.path().join("out/x")), "current");
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_dead_processes_left_are_swept_and_those_of_live_ones_are_not() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let dead = dead_pid();
    let kept = [".a.partial-1-x", ".b.partial-x", ".c.partial-1", "d.partial-2-x", "e"]; // 1 is alive
    kept.iter().for_each(|name| write(tmp.path().join(name), "x"));
    for name in [format!(".a.b.partial-{dead}-x"), format!(".a.partial-{}-x", std::process::id())] {
        write(tmp.path().join(name), "x");
    }
    // as a process in another container would have it
    let locked = format!(".l.partial-{dead}-x");
    write(tmp.path().join(&locked), "x");
    let file = fs::File::open(tmp.path().join(&locked)).expect("open");
    file.lock().expect("lock");
    erase_concept::checkpoint::sweep_files(tmp.path()).expect("sweep");
    let mut expected: Vec<&str> = kept.iter().copied().chain([locked.as_str()]).collect();
    expected.sort_unstable();
    assert_eq!(names(tmp.path()), expected);
    drop(file);
    erase_concept::checkpoint::sweep_files(tmp.path()).expect("sweep");
    assert_eq!(names(tmp.path()), kept);
}

#[cfg(target_os = "linux")]
#[test]
fn an_old_folder_comes_back_if_the_new_one_never_arrived() {
    let tmp = tempfile::tempdir().expect("tempdir");
    write(tmp.path().join(format!(".out.old-{}", dead_pid())).join("model"), "precious");
    let message = refused(&tmp.path().join("out"), false);
    assert!(message.contains("not empty"), "{message}");
    assert_eq!(read(tmp.path().join("out/model")), "precious");
    assert_eq!(names(tmp.path()), ["out"]);
}

#[test]
fn a_file_is_written_whole_or_stays_as_it_was() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join("report.json");
    write_file_atomic(&path, b"one").expect("write");
    write_file_atomic(&path, b"two").expect("replace");
    assert_eq!(read(path), "two");
    assert_eq!(names(tmp.path()), ["report.json"]);
    write(tmp.path().join("folder/x"), "x");
    write_file_atomic(&tmp.path().join("folder"), b"three").expect_err("a folder stands there");
    write_file_atomic(&tmp.path().join("absent/file"), b"three").expect_err("no such folder");
    assert_eq!(names(tmp.path()), ["folder", "report.json"]);
}
