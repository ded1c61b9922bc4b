//! The command `erase-concept`: parse, dispatch, exit code.

use erase_concept::cli::{ExitCode, Request};
use erase_concept::{checkpoint, progress};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Networks allocate and free large tensors all the time; the system's allocator gives each back to the kernel, and the
/// page faults of taking it again cost more than the arithmetic.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Deep graphs are freed recursively by candle; this is address space, touched only as far as it is needed.
const STACK: usize = 512 << 20;

/// mimalloc's `mi_option_purge_delay`: below 0 it keeps freed memory for the next tensor.
const PURGE_DELAY: i32 = 15;

fn main() -> std::process::ExitCode {
    // SAFETY: sets a number in the allocator's table of options; any value is allowed.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    let request = match Request::from_args(std::env::args_os()) {
        Ok(request) => request,
        Err(code) => return code.into(),
    };
    if let Some(threads) = request.run.threads {
        // SAFETY: no other thread has been started yet. candle and rayon read this when they first compute.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: as above. candle's own pool would spin beside rayon's; what is left to it is small.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
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
