//! The n-th write, sync or rename fails, for every n: what stands at the target is old or new, never a mixture, and after the next
//! run nothing temporary is left.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::fixture;
use common::tiny::tree;
use erase_concept::Result;
use erase_concept::checkpoint::{
    ModelFiles, OutputFolder, fail_at, save_edited, sweep_files, write_edited_single_file, write_file,
    write_file_atomic,
};
use std::collections::BTreeMap;
use std::path::Path;

type Files = BTreeMap<String, Vec<u8>>;

/// Every file below a folder, hidden ones too.
fn content(folder: &Path) -> Files {
    let names = tree(folder).into_iter().filter(|rel| folder.join(rel).is_file());
    names.map(|rel| (rel.clone(), std::fs::read(folder.join(rel)).unwrap())).collect()
}

/// Lets `write` fail at every one of its operations; returns how many these are.
///
/// `write` puts a result into a folder, in which `old` stands already, if there is an old one.
fn at_every_operation(old: Option<&dyn Fn(&Path)>, write: &dyn Fn(&Path) -> Result<()>) -> u64 {
    let made = |old: Option<&dyn Fn(&Path)>| {
        let folder = tempfile::tempdir().unwrap();
        old.iter().for_each(|old| old(folder.path()));
        folder
    };
    let (before, after) = (made(old), made(old));
    fail_at(None);
    write(after.path()).unwrap();
    let operations = fail_at(None);
    let (before, after) = (content(before.path()), content(after.path()));
    assert!(before != after && operations > 2);
    let mut failed = 0;
    for n in 1..=operations {
        let folder = made(old);
        fail_at(Some(n));
        let result = write(folder.path());
        fail_at(None);
        let found = content(folder.path());
        match &result {
            Ok(()) => assert!(found == after, "operation {n} failed, but it is said that all is well"),
            Err(error) => {
                failed += 1;
                assert!(error.to_string().contains("made to fail"), "operation {n}: {error}");
                // the new result may be complete when the last sync fails
                assert!(found == before || found == after, "operation {n}: {:?}", found.keys());
            }
        }
        write(folder.path()).unwrap();
        assert!(content(folder.path()) == after, "after operation {n} and a second run");
    }
    // where there is another way (a copy, for a file that cannot be shared), it is taken
    assert!(4 * failed > 3 * operations, "only {failed} of {operations} failures are said");
    operations
}

fn model() -> ModelFiles {
    ModelFiles::Folder(fixture("tiny-sd21"))
}

fn changed(value: f64) -> BTreeMap<String, Tensor> {
    let name = "conv_in.bias".to_string();
    let shape = erase_concept::checkpoint::load_tensors(&model(), erase_concept::checkpoint::UNET_WEIGHTS).unwrap();
    let shape = shape.tensors[&name].shape().clone();
    BTreeMap::from([(name, (Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap() * value).unwrap())])
}

fn single_file(value: f64) -> impl Fn(&Path) -> Result<()> {
    move |folder: &Path| {
        sweep_files(folder)?;
        write_edited_single_file(&model(), &changed(value), &folder.join("x.safetensors"), &BTreeMap::new()).map(drop)
    }
}

fn folder(value: f64) -> impl Fn(&Path) -> Result<()> {
    move |parent: &Path| {
        let out = OutputFolder::create(&parent.join("out"), true)?;
        save_edited(&model(), &changed(value), out.path(), &BTreeMap::new())?;
        write_file(&out.path().join("report.json"), format!("{value}").as_bytes())?;
        out.commit()
    }
}

#[test]
fn one_file() {
    let write = |text: &'static str| move |folder: &Path| write_file_atomic(&folder.join("x"), text.as_bytes());
    assert_eq!(at_every_operation(None, &write("new")), 4, "a write, a sync, a rename, a sync of the folder");
    at_every_operation(Some(&|folder| write("old")(folder).unwrap()), &write("new"));
}

#[test]
fn a_single_file_checkpoint() {
    let new = single_file(2.0);
    at_every_operation(None, &new);
    at_every_operation(Some(&|folder| single_file(1.0)(folder).unwrap()), &new);
}

#[test]
fn a_folder() {
    let new = folder(2.0);
    let operations = at_every_operation(None, &new);
    assert!(operations > 30, "{operations}: every file is written and synced");
    at_every_operation(Some(&|parent| folder(1.0)(parent).unwrap()), &new);
}

#[test]
fn the_file_that_is_read_may_be_the_one_that_is_replaced() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    single_file(1.0)(tmp.path()).unwrap();
    let files = ModelFiles::Single(std::sync::Arc::new(erase_concept::checkpoint::SingleFile::open(&path).unwrap()));
    let before = content(tmp.path());
    write_edited_single_file(&files, &BTreeMap::new(), &path, &BTreeMap::new()).unwrap();
    assert!(content(tmp.path()) == before, "what is mapped is not written over");
}
