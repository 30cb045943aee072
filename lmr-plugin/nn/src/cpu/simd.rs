//! Loads and stores of vectors whose last lanes may lie beyond a row.

use pulp::{MemMask, Simd};

/// A vector at `at`; if `masked`, only the lanes of `mask`, the others being 0.
///
/// # Safety
/// The lanes that are read must be readable.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(simd: S, mask: MemMask<S::m32s>, masked: bool, at: *const f32) -> S::f32s {
    // SAFETY: the caller's promise.
    unsafe { if masked { simd.mask_load_ptr_f32s(mask, at) } else { at.cast::<S::f32s>().read_unaligned() } }
}

/// Stores a vector at `at`; if `masked`, only the lanes of `mask`.
///
/// # Safety
/// The lanes that are written must be writable.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(simd: S, mask: MemMask<S::m32s>, masked: bool, at: *mut f32, value: S::f32s) {
    // SAFETY: the caller's promise.
    unsafe {
        match masked {
            true => simd.mask_store_ptr_f32s(mask, at, value),
            false => at.cast::<S::f32s>().write_unaligned(value),
        }
    }
}

/// The vector of `row` from `at` on; lanes beyond its end are 0.
#[inline(always)]
pub(crate) fn get<S: Simd>(simd: S, row: &[f32], at: usize) -> S::f32s {
    let rest = &row[at..];
    match S::as_simd_f32s(rest).0.first() {
        Some(&vector) => vector,
        None => simd.partial_load_f32s(rest),
    }
}

/// Writes a vector to `row` from `at` on, up to its end.
#[inline(always)]
pub(crate) fn put<S: Simd>(simd: S, row: &mut [f32], at: usize, value: S::f32s) {
    let rest = &mut row[at..];
    match S::as_mut_simd_f32s(rest).0.first_mut() {
        Some(vector) => *vector = value,
        None => simd.partial_store_f32s(rest, value),
    }
}

/// Asks for the cache line at `at`, which will be needed soon; any address will do.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and never faults, and every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
