//! What vectors do while tiles multiply: they carry the last sums to where they belong, split what is multiplied next, and ask for what
//! comes from afar.

use super::lines::Lines;
use super::split::{Line, Squares};
use super::tile::{SQUARE, Sums};
use super::{Onto, SIDE};
use crate::nn::kernels::simd::prefetch;
use std::arch::x86_64::*;

/// What is left to do; each step does some of it.
#[derive(Default)]
pub(super) struct Shadow<'a> {
    store: Stored,
    /// Rows that are stored at each step.
    rows: usize,
    split: Option<Squares<'a>>,
    /// Those of a square that was begun.
    lines: Lines,
    /// Lines that are split at each step, and steps to go until the next if squares are split at once.
    pace: usize,
    wait: usize,
    fetch: &'a [Line],
    /// Lines that are asked for at each step.
    fetched: usize,
}

/// Sums that wait, as they are read: rows that are left, where each is, and what is added.
#[derive(Clone, Copy)]
struct Stored {
    left: usize,
    sums: *const f32,
    before: *const f32,
    apart: usize,
    dst: *mut f32,
    stride: usize,
    scale: f32,
    masks: [__mmask16; 2],
}

impl Default for Stored {
    fn default() -> Self {
        let (none, nowhere) = (std::ptr::null(), std::ptr::null_mut());
        Self { left: 0, sums: none, before: none, apart: 0, dst: nowhere, stride: 0, scale: 0.0, masks: [0; 2] }
    }
}

impl Stored {
    /// Number by number, as [`Lines`] are.
    #[inline(always)]
    fn begin(
        &mut self,
        sums: *const Sums,
        (m, n): (usize, usize),
        scale: f32,
        onto: &Onto<'_>,
        (dst, stride): (*mut f32, usize),
    ) {
        let mask = |at: usize| ((1u32 << SIDE.min(n.saturating_sub(at))) - 1) as __mmask16;
        (self.before, self.apart) = onto.place(dst, stride);
        self.left = m;
        self.sums = sums.cast();
        self.scale = scale;
        self.dst = dst;
        self.stride = stride;
        self.masks = [mask(0), mask(SIDE)];
    }

    /// One row of those that are left. Nothing is touched past its columns.
    ///
    /// # Safety
    /// There must be one, and it must be valid.
    #[inline(always)]
    unsafe fn row(&mut self) {
        // SAFETY: the caller vouches for it.
        unsafe {
            let scale = _mm512_set1_ps(self.scale);
            for (j, mask) in [(0, self.masks[0]), (SIDE, self.masks[1])] {
                let sum = _mm512_load_ps(self.sums.add(j));
                let before = _mm512_maskz_loadu_ps(mask, self.before.wrapping_add(j));
                _mm512_mask_storeu_ps(self.dst.wrapping_add(j), mask, _mm512_fmadd_ps(sum, scale, before));
            }
        }
        self.left -= 1;
        self.sums = self.sums.wrapping_add(SQUARE);
        self.before = self.before.wrapping_add(self.apart);
        self.dst = self.dst.wrapping_add(self.stride);
    }
}

impl<'a> Shadow<'a> {
    /// Some of it; what is split line by line has so many parts.
    ///
    /// # Safety
    /// What was given to be done must be valid; the machine must have AVX-512.
    #[inline(always)]
    pub unsafe fn step<const PARTS: usize>(&mut self) {
        // SAFETY: the caller vouches for it.
        unsafe {
            for _ in 0..self.pace {
                if !self.lines.some() {
                    self.step_squares();
                    break;
                }
                self.lines.split::<PARTS>();
            }
            for _ in 0..self.rows {
                if self.store.left == 0 {
                    break;
                }
                self.store.row();
            }
        }
        if let Some((now, later)) = self.fetch.split_at_checked(self.fetched)
            && !now.is_empty()
        {
            now.iter().for_each(|line| prefetch(line));
            self.fetch = later;
        }
    }

    /// What cannot be split line by line is split square by square, when it is its turn.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step_squares(&mut self) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        self.wait = SIDE / self.pace;
        // SAFETY: the caller vouches for it.
        let more = self.split.as_mut().is_some_and(|split| unsafe { split.split() });
        if !more {
            (self.split, self.pace) = (None, 0);
        }
    }

    /// Stores `scale sums + onto`, so many rows and columns, during the next steps; those before them now, if they still wait.
    ///
    /// # Safety
    /// `dst` must be valid for what is stored there until it is.
    #[inline(always)]
    pub unsafe fn store(
        &mut self,
        sums: *const Sums,
        size: (usize, usize),
        scale: f32,
        onto: &Onto<'a>,
        dst: (*mut f32, usize),
    ) {
        // SAFETY: the caller vouched for the sums before, and vouches for these.
        unsafe { self.finish_storing() };
        self.store.begin(sums, size, scale, onto, dst);
    }

    /// Stores now what is left.
    ///
    /// # Safety
    /// What was to be stored must be valid.
    #[inline(always)]
    pub unsafe fn finish_storing(&mut self) {
        while self.store.left > 0 {
            // SAFETY: the caller vouches for it.
            unsafe { self.store.row() };
        }
    }

    /// How many steps there will be until the sums have to be stored.
    pub fn store_within(&mut self, steps: usize) {
        self.rows = SQUARE.div_ceil(steps.max(1));
    }

    /// Splits these during the next `steps`, in `parts` if they are split line by line.
    #[inline(always)]
    pub fn split(&mut self, squares: Squares<'a>, steps: usize, parts: usize) {
        self.pace = (squares.count() * SIDE).div_ceil(steps.max(1));
        self.wait = 0;
        self.split = if self.lines.begin(&squares, parts) { None } else { Some(squares) };
    }

    /// Splits now what is left of them.
    ///
    /// # Safety
    /// What was to be split must be valid.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn finish_splitting(&mut self) {
        // SAFETY: the caller vouches for it.
        unsafe {
            while self.lines.some() {
                if self.lines.parts() == 1 { self.lines.split::<1>() } else { self.lines.split::<3>() }
            }
            if let Some(split) = &mut self.split {
                split.finish();
            }
        }
        (self.split, self.pace) = (None, 0);
    }

    /// Asks for these lines during the next `steps`.
    pub fn fetch(&mut self, lines: &'a [Line], steps: usize) {
        self.fetch = lines;
        self.fetched = lines.len().div_ceil(steps.max(1)).max(1);
    }
}
