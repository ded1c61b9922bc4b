//! What a process that computes sets first: its allocator and its threads.
//!
//! Networks allocate and free large tensors all the time; the system's allocator gives each back to the kernel, and the page
//! faults of taking it again cost more than the arithmetic. So a program should use [`Allocator`] (`#[global_allocator]`), which keeps
//! what is freed; [`release`] gives it back between stages, whose tensors have other sizes.

#[cfg(unix)]
mod allocator;
#[cfg(unix)]
mod free_list;

#[cfg(unix)]
pub use allocator::Allocator;
/// The program's allocator, for `#[global_allocator]`.
#[cfg(not(unix))]
pub use mimalloc::MiMalloc as Allocator;

/// mimalloc's `mi_option_purge_delay`, in milliseconds: how long freed memory is kept for the next tensor.
const PURGE_DELAY: (i32, i64) = (15, 1 << 30);

/// Sets how memory is kept and how many threads compute (`None`: one a core).
///
/// # Safety
/// No other thread may have been started.
pub unsafe fn set_up(threads: Option<usize>) {
    // SAFETY: sets a number in the allocator's table of options; any value is allowed.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY.0, PURGE_DELAY.1 as _) };
    if let Some(threads) = threads {
        // SAFETY: as the caller says. candle and rayon read this when they first compute.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: as above. candle's own pool would spin beside rayon's; what is left to it is small.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

/// Gives freed memory back to the system, which costs page faults when it is taken again.
pub fn release() {
    // SAFETY: may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
    #[cfg(unix)]
    allocator::release();
}
