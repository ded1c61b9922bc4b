//! The program's allocator: mimalloc for what is small, whole pages of the system for tensors.
//!
//! Networks free and take tensors of many sizes in turn. An allocator that gives each back to the system at once pays for page faults
//! (a quarter of the time), one that keeps all has no place for the next size and takes new memory while the old lies idle: mimalloc's
//! process was up to a third larger than what was in use. Here what is free is kept only up to what was in use at the most
//! ([`FreeList`]), so that a process hardly becomes larger than its tensors ever were.

use super::free_list::{Block, FreeList, PAGE};
use mimalloc::MiMalloc;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of so many bytes and more are whole pages.
const LARGE: usize = 1 << 17;

static FREE: Mutex<FreeList> = Mutex::new(FreeList::new());

/// The allocator, for `#[global_allocator]`.
pub struct Allocator;

fn free() -> MutexGuard<'static, FreeList> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_large(layout: &Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= 4096
}

/// Whole pages. `None` if there are no such sizes.
fn pages(size: usize) -> Option<usize> {
    Some(size.checked_add(PAGE - 1)? & !(PAGE - 1))
}

/// New memory of the system, of zeros; null if it has none.
fn map(len: usize) -> *mut u8 {
    // SAFETY: a new mapping anywhere touches nothing that is there.
    let start = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    start.map_or(null_mut(), <*mut _>::cast)
}

/// Gives memory back to the system. If it refuses, for it has too many mappings, the pages stay.
fn unmap(block: Block) {
    // SAFETY: the caller owns these pages, and nothing reads them again.
    let _ = unsafe { munmap(block.start as *mut _, block.len) };
}

/// What is free goes back to the system.
pub fn release() {
    while let Some(block) = { free().anything() } {
        unmap(block);
    }
}

/// Memory of `len` bytes, whole pages, and whether it is of zeros; null if there is none.
fn take(len: usize) -> (*mut u8, bool) {
    let found = free().take(len);
    if let Some(start) = found {
        return (start as *mut u8, false);
    }
    while let Some(block) = { free().surplus() } {
        unmap(block);
    }
    let mut start = map(len);
    if start.is_null() {
        release();
        start = map(len);
    }
    if start.is_null() {
        free().forgo(len);
    }
    (start, true)
}

fn give(start: *mut u8, len: usize) {
    let block = Block { start: start as usize, len };
    let kept = free().give(block);
    if !kept {
        unmap(block);
    }
}

// SAFETY: which of both a block comes from follows from its layout alone, which is the same when it is given back; blocks of the list
// are apart from each other and from those in use.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(&layout) {
            // SAFETY: as the caller says.
            return unsafe { MiMalloc.alloc(layout) };
        }
        pages(layout.size()).map_or(null_mut(), |len| take(len).0)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(&layout) {
            // SAFETY: as the caller says.
            return unsafe { MiMalloc.alloc_zeroed(layout) };
        }
        let Some((start, zeros)) = pages(layout.size()).map(take) else { return null_mut() };
        if !zeros {
            // SAFETY: it was taken just now, of this size.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match pages(layout.size()).filter(|_| is_large(&layout)) {
            Some(len) => give(start, len),
            // SAFETY: as the caller says; it came from there.
            None => unsafe { MiMalloc.dealloc(start, layout) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller says that `size` is valid with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_large(&layout) && !is_large(&wanted) {
            // SAFETY: as the caller says.
            return unsafe { MiMalloc.realloc(start, layout, size) };
        }
        if is_large(&layout) && is_large(&wanted) && pages(layout.size()) == pages(size) {
            return start;
        }
        // SAFETY: as the caller says.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both are at least so large, and apart; the old one is the caller's to give back.
            unsafe {
                new.copy_from_nonoverlapping(start, layout.size().min(size));
                self.dealloc(start, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with a pattern of its own in every page.
    struct Held {
        start: *mut u8,
        layout: Layout,
        mark: u8,
    }

    impl Held {
        fn places(size: usize) -> impl Iterator<Item = usize> {
            (0..size).step_by(4096).chain([size - 1])
        }

        fn write(&self) {
            // SAFETY: within the block.
            Self::places(self.layout.size()).for_each(|i| unsafe { *self.start.add(i) = self.mark });
        }

        fn holds(&self, size: usize) -> bool {
            // SAFETY: as above.
            Self::places(size.min(self.layout.size())).all(|i| unsafe { *self.start.add(i) } == self.mark)
        }
    }

    /// Takes, grows and gives back blocks of all sizes in an order made of `seed`.
    fn churn(seed: u64) {
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut held: Vec<Held> = Vec::new();
        for step in 0..2000 {
            let size = (1 << (10 + random(13))) + random(9999) as usize;
            let mark = (step % 251) as u8 + 1;
            match random(4) {
                0 | 1 if held.len() < 24 => {
                    let layout = Layout::from_size_align(size, 8).unwrap();
                    let zeroed = random(2) == 0;
                    // SAFETY: the size is not 0.
                    let start =
                        unsafe { if zeroed { Allocator.alloc_zeroed(layout) } else { Allocator.alloc(layout) } };
                    assert!(!start.is_null() && start.is_aligned());
                    let block = Held { start, layout, mark };
                    assert!(!zeroed || Held { mark: 0, ..block }.holds(size));
                    block.write();
                    held.push(block);
                }
                2 if !held.is_empty() => {
                    let at = random(held.len() as u64) as usize;
                    let mut block = held.swap_remove(at);
                    // SAFETY: it is in use, and the new size is not 0.
                    block.start = unsafe { Allocator.realloc(block.start, block.layout, size) };
                    let before = block.layout.size();
                    block.layout = Layout::from_size_align(size, 8).unwrap();
                    let kept = Held::places(before.min(size)).take_while(|i| i % 4096 == 0);
                    // SAFETY: within the block.
                    assert!({ kept }.all(|i| unsafe { *block.start.add(i) } == block.mark));
                    block.mark = mark;
                    block.write();
                    held.push(block);
                }
                _ if !held.is_empty() => {
                    let block = held.swap_remove(random(held.len() as u64) as usize);
                    assert!(block.holds(usize::MAX), "another block was written into this one");
                    // SAFETY: it is in use.
                    unsafe { Allocator.dealloc(block.start, block.layout) };
                }
                _ => {}
            }
            if step % 500 == 499 {
                release();
            }
        }
        for block in held {
            assert!(block.holds(usize::MAX));
            // SAFETY: it is in use.
            unsafe { Allocator.dealloc(block.start, block.layout) };
        }
    }

    #[test]
    fn blocks_are_apart_whatever_several_threads_take_and_give() {
        std::thread::scope(|scope| (1..5).for_each(|seed| drop(scope.spawn(move || churn(seed)))));
    }

    #[test]
    fn what_the_system_does_not_have_is_null() {
        for size in [usize::MAX / 2 - PAGE, 1 << 60] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the size is not 0.
            assert!(unsafe { Allocator.alloc(layout) }.is_null());
        }
    }
}
