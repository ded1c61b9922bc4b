//! Operands copied into the order in which the innermost loops read them.

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Number, Portable, Vector};
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;
use crate::nn::kernels::values::Values;
#[cfg(target_arch = "x86_64")]
use half::f16;

/// `to[p * pitch + i] = from(i, p)` for `i < count`, `p < k`; from a view whose rows are the `i`. With `pitch < count` rounded up
/// to whole vectors, what lies after a group is written and then overwritten by the next; the last reaches `SLACK` elements
/// past the end.
///
/// More rows than `pitch`, in a view whose rows are neighbours, are several panels of `pitch`, which is whole vectors and divides
/// `count`: `to[(i / pitch * k + p) * pitch + i % pitch]`.
///
/// # Safety
/// The view must have `count` rows and `k` columns, and `to` room for `k pitch + SLACK` elements, or of several panels for `k count`.
pub(super) unsafe fn pack(path: Instructions, from: View<'_>, (count, k): (usize, usize), to: *mut f32, pitch: usize) {
    let (values, rs, cs) = from.parts();
    // SAFETY: the caller vouches for sizes and path.
    unsafe {
        match values {
            Values::F32(values) => by_path(path, Strided(values.as_ptr(), rs, cs), (count, k), to, pitch),
            Values::Bf16(values) => by_path(path, Strided(values.as_ptr(), rs, cs), (count, k), to, pitch),
            #[cfg(target_arch = "x86_64")]
            Values::F16(values) if path == Instructions::Avx2 => {
                let from = Strided(values.as_ptr(), rs, cs);
                match std::is_x86_feature_detected!("f16c") {
                    true => avx2_f16(from, (count, k), to, pitch),
                    false => group::<Portable, f16>(from, (count, k), to, pitch),
                }
            }
            Values::F16(values) => by_path(path, Strided(values.as_ptr(), rs, cs), (count, k), to, pitch),
        }
    }
}

/// The first element, and how far rows and columns are apart.
#[derive(Clone, Copy)]
struct Strided<N>(*const N, usize, usize);

unsafe fn by_path<N: Number>(path: Instructions, from: Strided<N>, sizes: (usize, usize), to: *mut f32, pitch: usize) {
    // SAFETY: see `pack`.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx | Instructions::Avx512 => avx512(from, sizes, to, pitch),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => avx2(from, sizes, to, pitch),
            _ => group::<Portable, N>(from, sizes, to, pitch),
        }
    }
}

/// `to[p * pitch + i] = from(i, p)` for `count` rows of a view, as many columns as `to` has room for; `pitch` is `count` or more,
/// and what lies between is anything.
pub fn pack_rows(from: View<'_>, count: usize, to: &mut [f32], pitch: usize) {
    let k = to.len() / pitch;
    assert!(0 < count && count <= pitch && from.has(count, k), "there is less to pack");
    let path = Instructions::used();
    // where vectors would reach past the end, the last rows are written one by one
    let fits = count.next_multiple_of(path.lanes()) <= pitch;
    let whole = if fits { k } else { k.saturating_sub(SLACK.div_ceil(pitch)) };
    // SAFETY: just checked.
    unsafe { pack(path, from, (count, whole), to.as_mut_ptr(), pitch) };
    for (p, to) in to.chunks_exact_mut(pitch).enumerate().skip(whole) {
        for (i, value) in to.iter_mut().enumerate() {
            *value = from.read(i.min(count - 1), p);
        }
    }
}

/// `to[p * pitch + i] = from(i, p)` for `i < count`, `p < k`, and nothing in between.
///
/// # Safety
/// `to` must be valid for `k` rows of `count` elements, which no other thread touches.
pub unsafe fn transpose_onto(from: View<'_>, (count, k): (usize, usize), to: *mut f32, pitch: usize) {
    assert!(from.has(count, k), "there is less to transpose");
    let (_, rs, cs) = from.parts();
    let used = Instructions::used();
    let path = if count.is_multiple_of(used.lanes()) { used } else { used.min(Instructions::Avx2) };
    let squares = cs == 1 && rs > 1 && pitch >= count && count.is_multiple_of(path.lanes());
    let whole = if squares { k - k % path.lanes() } else { 0 };
    // SAFETY: just checked; of whole vectors nothing is written past a row.
    unsafe {
        pack(path, from, (count, whole), to, pitch);
        for p in whole..k {
            for i in 0..count {
                *to.add(p * pitch + i) = from.read(i, p);
            }
        }
    }
}

/// Elements past the end of a packed operand that may be written.
pub(super) const SLACK: usize = 16;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<N: Number>(from: Strided<N>, sizes: (usize, usize), to: *mut f32, pitch: usize) {
    // SAFETY: see `pack`.
    unsafe { group::<Avx512, N>(from, sizes, to, pitch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<N: Number>(from: Strided<N>, sizes: (usize, usize), to: *mut f32, pitch: usize) {
    // SAFETY: see `pack`.
    unsafe { group::<Avx2, N>(from, sizes, to, pitch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_f16(from: Strided<f16>, sizes: (usize, usize), to: *mut f32, pitch: usize) {
    // SAFETY: see `pack`.
    unsafe { group::<Avx2, f16>(from, sizes, to, pitch) }
}

#[inline(always)]
unsafe fn group<T: Vector, N: Number>(
    Strided(source, rs, cs): Strided<N>,
    (count, k): (usize, usize),
    to: *mut f32,
    pitch: usize,
) {
    // SAFETY: the caller vouches for `count` rows and `k` columns, and for `to`.
    unsafe {
        if count > pitch {
            // column by column, as they lie far apart where a matrix is large
            for p in 0..k {
                let mut i = 0;
                while i < count {
                    let (from, to) = (source.add(p * cs + i), to.add(i * k + p * pitch));
                    let mut l = 0;
                    while l < pitch {
                        N::load::<T>(from.add(l)).store(to.add(l));
                        l += T::LANES;
                    }
                    i += pitch;
                }
            }
            return;
        }
        if rs == 1 {
            // Neighbours stay neighbours. What is read and written past the last of them lies before the next row's first
            // and is overwritten with it; not so in the last row.
            let whole = count.next_multiple_of(T::LANES);
            let vectors = if whole <= cs { k.saturating_sub(1) } else { 0 };
            for p in 0..vectors {
                let (from, to) = (source.add(p * cs), to.add(p * pitch));
                let mut i = 0;
                while i < whole {
                    N::load::<T>(from.add(i)).store(to.add(i));
                    i += T::LANES;
                }
            }
            for p in vectors..k {
                for i in 0..pitch {
                    *to.add(p * pitch + i) = if i < count { (*source.add(p * cs + i)).to_f32() } else { 0.0 };
                }
            }
            return;
        }
        let mut p = 0;
        while cs == 1 && p + T::LANES <= k {
            // the last group first: what it writes too far is overwritten by the others
            let mut first = count.next_multiple_of(T::LANES);
            while first > 0 {
                first -= T::LANES;
                let last = (count - 1 - first).min(T::LANES - 1);
                T::transpose(source.add(first * rs + p), rs, last, to.add(p * pitch + first), pitch);
            }
            p += T::LANES;
        }
        while p < k {
            for i in 0..count {
                *to.add(p * pitch + i) = (*source.add(i * rs + p * cs)).to_f32();
            }
            for i in count..pitch {
                *to.add(p * pitch + i) = 0.0;
            }
            p += 1;
        }
    }
}
