//! The command `erase-concept`: parse, dispatch, exit code.

use erase_concept::cli::{ExitCode, Request};
use erase_concept::{checkpoint, process, progress};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// See [`process`].
#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

/// Deep graphs are freed recursively by candle; this is address space, touched only as far as it is needed.
const STACK: usize = 512 << 20;

fn main() -> std::process::ExitCode {
    let request = match Request::from_args(std::env::args_os()) {
        Ok(request) => request,
        Err(code) => return code.into(),
    };
    // SAFETY: no other thread has been started yet.
    unsafe { process::set_up(request.run.threads) };
    if let Err(error) = ctrlc::set_handler(on_interrupt) {
        say(&format!("warning: Ctrl-C will not stop cleanly: {error}"));
    }
    let worker = std::thread::Builder::new().name("job".into()).stack_size(STACK).spawn(|| request.run());
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code.into(),
        // The panic's message was printed by the panic hook.
        Ok(Err(_)) => ExitCode::CouldNotRun.into(),
        Err(error) => {
            say(&format!("error: cannot start a thread with {} MiB of stack: {error}", STACK >> 20));
            ExitCode::CouldNotRun.into()
        }
    }
}

/// The first signal (Ctrl-C, SIGTERM, SIGHUP) asks the work to stop at its next step; the second removes what is temporary
/// and ends the process.
fn on_interrupt() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if ASKED.swap(true, Ordering::SeqCst) {
        checkpoint::abandon();
        std::process::exit(i32::from(ExitCode::Interrupted.code()));
    }
    progress::interrupt();
    say("\nstopping after this step; Ctrl-C again to stop at once");
}

/// A line on stderr; a closed stderr is nobody's problem.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
