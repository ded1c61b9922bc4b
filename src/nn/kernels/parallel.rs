//! Loops over blocks, on rayon's threads if there is more than one block.
//!
//! What is computed never depends on the number of threads: blocks are cut by sizes alone. [`shares`] runs whole pieces of
//! work side by side (rows of a batch through a small network), within which the loops of the kernels run on one thread:
//! each core then works on what lies in its own cache, and waits for nobody.

use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    /// Whether this thread works on a share of its own.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread works on a share of its own: its loops are not cut for other threads.
pub fn alone() -> bool {
    ALONE.get()
}

/// Lets this thread work as the one did that started it.
pub fn work_alone(alone: bool) {
    ALONE.set(alone);
}

/// Puts the flag back, on a panic too.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        ALONE.set(self.0);
    }
}

/// `f()`, whose loops this thread runs alone: for what is made once while others wait. A thread that waits for its loop takes other
/// work meanwhile, and that may wait for what the loop is to make.
pub fn on_this_thread<T>(f: impl FnOnce() -> T) -> T {
    let _restore = Restore(ALONE.replace(true));
    f()
}

/// `f(i)` for `i` in `0..count`, side by side, in order of `i` in the result. If there are enough shares for all threads,
/// the loops inside `f` are not cut further.
pub fn shares<T: Send>(count: usize, f: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    if count <= 1 || alone() {
        return (0..count).map(f).collect();
    }
    let enough = count >= rayon::current_num_threads();
    let share = |i| {
        let _restore = Restore(ALONE.replace(enough || alone()));
        f(i)
    };
    (0..count).into_par_iter().with_max_len(1).map(share).collect()
}

/// `f(i, chunk i of out)` for chunks of `size` elements (the last may be shorter).
pub fn chunks(out: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if out.len() <= size {
        return f(0, out);
    }
    if alone() {
        return out.chunks_mut(size.max(1)).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
    out.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, chunk)| f(i, chunk));
}

/// `f(i)` for `i` in `0..tasks`.
pub fn tasks(tasks: usize, f: impl Fn(usize) + Send + Sync) {
    if tasks <= 1 || alone() {
        return (0..tasks).for_each(f);
    }
    (0..tasks).into_par_iter().for_each(f);
}

/// A vector for values that the caller writes, every one, before anything reads one. Fresh memory is not zeroed first,
/// which cost a tenth of a forward pass. Tests get NaN, so that an element that nobody writes is seen.
pub fn unwritten(n: usize) -> Vec<f32> {
    if cfg!(any(test, debug_assertions)) {
        return vec![f32::NAN; n];
    }
    let mut values = Vec::with_capacity(n);
    // SAFETY: the capacity is `n`; any bits are an `f32`, and the caller overwrites them all before a value is read.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(n);
    }
    values
}

/// The first `n` elements of a buffer that grows as needed; their values are left from earlier.
pub fn grown(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// A zeroed vector; the zeros (and the page faults of fresh memory) are shared among the threads.
pub fn zeros(n: usize) -> Vec<f32> {
    const BLOCK: usize = 1 << 16;
    if n < 2 * BLOCK || alone() {
        return vec![0.0; n];
    }
    let mut values = Vec::with_capacity(n);
    values.spare_capacity_mut()[..n].par_chunks_mut(BLOCK).for_each(|chunk| {
        chunk.iter_mut().for_each(|value| {
            value.write(0.0);
        });
    });
    // SAFETY: the first `n` elements were just written.
    unsafe { values.set_len(n) };
    values
}

/// Adds `parts`, slices of `out.len()` elements, to `out`, in order.
pub fn add_parts(parts: &[f32], out: &mut [f32]) {
    const BLOCK: usize = 8192;
    let n = out.len();
    chunks(out, BLOCK, |i, out| {
        for part in parts.chunks_exact(n.max(1)) {
            for (o, p) in out.iter_mut().zip(&part[i * BLOCK..]) {
                *o += p;
            }
        }
    });
}

/// A pointer that tasks share to write to parts of a slice that do not overlap.
#[derive(Clone, Copy)]
pub struct SharedMut<T = f32> {
    data: *mut T,
    len: usize,
}

// SAFETY: `SharedMut::at` is unsafe and demands that no two threads touch the same elements.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `data`, which must outlive every use.
    pub fn new(data: &mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// The pointer to element `offset`, checked to have `extent` elements from there.
    pub fn at(self, offset: usize, extent: usize) -> *mut T {
        assert!(offset + extent <= self.len, "a task reaches past the end of its output");
        self.data.wrapping_add(offset)
    }

    /// The elements from `offset` on.
    pub fn from(self, offset: usize) -> Self {
        assert!(offset <= self.len, "a task reaches past the end of its output");
        Self { data: self.data.wrapping_add(offset), len: self.len - offset }
    }

    /// The `extent` elements from `offset` on.
    ///
    /// # Safety
    /// No other task may touch them meanwhile, and the shared slice must be alive.
    pub unsafe fn slice<'a>(self, offset: usize, extent: usize) -> &'a mut [T] {
        // SAFETY: `at` checks the bounds; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, extent), extent) }
    }
}
