//! An allocator that counts, for tests and fuzzers of how much memory something takes: what the system tells of a process moves by
//! ten MiB with what the allocator happens to keep.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Another allocator, counting what it gives out.
pub struct Counting<A>(pub A);

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { self.0.dealloc(at, layout) }
    }
}

/// Bytes that are given out.
pub fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// The most bytes that were given out at a time while `work` ran, what was given out before included.
pub fn peak_of(work: impl FnOnce()) -> usize {
    PEAK.store(live(), Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed)
}
