//! What is done to the disk while a result is written: every write, sync and rename goes through here, so that a test can make
//! the n-th of them fail and see that the target is old or new, never a mixture.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Result, Seek, SeekFrom, Write};
use std::path::Path;

thread_local! {
    /// Operations of this thread so far, and which of them fails.
    static DONE: Cell<u64> = const { Cell::new(0) };
    static FAILS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the `n`-th write, sync or rename of this thread (counted from 1, from now on) fail; `None` lets all of them be. Returns how many there were since the last call. For tests.
#[doc(hidden)]
pub fn fail_at(n: Option<u64>) -> u64 {
    FAILS.set(n);
    DONE.replace(0)
}

fn operation() -> Result<()> {
    let done = DONE.get() + 1;
    DONE.set(done);
    match FAILS.get() {
        Some(n) if done == n => Err(std::io::Error::other("input/output error (made to fail by a test)")),
        _ => Ok(()),
    }
}

/// A file that is being written.
pub(super) struct Writing<'a>(&'a fs::File);

impl<'a> Writing<'a> {
    pub fn new(file: &'a fs::File) -> Self {
        Self(file)
    }
}

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        operation()?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

impl Seek for Writing<'_> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.seek(to)
    }
}

/// A new file with this content. What had its name may be a hard link to somebody's own file, which must stay as it is.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = fs::File::create(path)?;
    Writing::new(&file).write_all(bytes)
}

/// Copies at most `piece` bytes, from where the two files stand; the system does it without our help where it can.
pub(super) fn copy(from: &mut fs::File, piece: u64, to: &mut fs::File) -> Result<u64> {
    operation()?;
    std::io::copy(&mut from.take(piece), to)
}

pub(super) fn create_dir_all(path: &Path) -> Result<()> {
    operation()?;
    fs::create_dir_all(path)
}

/// Makes a file's content durable.
pub(super) fn sync(file: &fs::File) -> Result<()> {
    operation()?;
    file.sync_all()
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    operation()?;
    fs::rename(from, to)
}

/// Two folders change places in one step, where the system can do that.
#[cfg(target_os = "linux")]
pub(super) fn exchange(a: &Path, b: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    operation()?;
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// A new file that shares the blocks of another until one of them is changed, where the file system can do that.
pub(super) fn reflink(from: &Path, to: &Path) -> Result<()> {
    operation()?;
    reflink_copy::reflink(from, to)
}

/// A second name of a file.
pub(super) fn hard_link(from: &Path, to: &Path) -> Result<()> {
    operation()?;
    fs::hard_link(from, to)
}
