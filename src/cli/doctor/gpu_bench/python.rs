//! PyTorch's half: a script in this program, given to a Python that has torch, diffusers and transformers.

use super::Measured;
use crate::{Error, Result, hub};
use serde::Deserialize;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("../../../../benches/beside_torch_gpu.py");

/// A line of the script.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Versions { versions: String },
    Measured(Measured),
}

/// Whether there is such a Python.
///
/// # Errors
/// If it does not start.
pub(super) fn check(python: &str) -> Result<()> {
    let found = Command::new(python).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::usage(format!("--python {python} does not run: {status}"))),
        Err(error) => {
            Err(Error::usage(format!("--python {python} cannot be started: {error}; name a Python with torch")))
        }
    }
}

/// Measures these pieces; `tell` hears of each as it is done. Returns what versions there are.
///
/// # Errors
/// If Python, or torch or diffusers in it, does not work; what it said is on stderr.
pub(super) fn measure(
    python: &str,
    device: &str,
    pieces: &[&str],
    tell: &mut dyn FnMut(&Measured),
) -> Result<Option<String>> {
    let demo = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    write_demo(demo.path())?;
    let mut command = Command::new(python);
    command.args(["-", "--device", device, "--demo"]).arg(demo.path()).args(pieces);
    let failed = |why: &dyn std::fmt::Display| Error::usage(format!("--python {python}: {why}"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(SCRIPT.as_bytes()).map_err(|error| failed(&error))?;
    }
    let mut versions = None;
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        // anything else is what a library prints
        match serde_json::from_str(&line.map_err(|error| failed(&error))?) {
            Ok(Line::Versions { versions: found }) => versions = Some(found),
            Ok(Line::Measured(measured)) => tell(&measured),
            Err(_) => {}
        }
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    match status.success() {
        true => Ok(versions),
        false => Err(failed(&format!("the script ended with {status}; it needs torch, diffusers and transformers"))),
    }
}

/// The demo model as a folder, for diffusers.
fn write_demo(folder: &Path) -> Result<()> {
    let files = hub::demo();
    for rel in files.list()? {
        let path = folder.join(&rel);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        std::fs::write(&path, files.read(&rel)?).map_err(Error::io(&path))?;
    }
    Ok(())
}
