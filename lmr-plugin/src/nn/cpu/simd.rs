//! Loads and stores of vectors whose last lanes may lie beyond a row.

use pulp::{MemMask, Simd};

/// A vector at `at`; if `masked`, only the lanes of `mask`, the others being 0.
///
/// # Safety
/// The lanes that are read must be readable.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(simd: S, mask: MemMask<S::m32s>, masked: bool, at: *const f32) -> S::f32s {
    // SAFETY: the caller's promise.
    unsafe { if masked { simd.mask_load_ptr_f32s(mask, at) } else { at.cast::<S::f32s>().read_unaligned() } }
}

/// Stores a vector at `at`; if `masked`, only the lanes of `mask`.
///
/// # Safety
/// The lanes that are written must be writable.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(simd: S, mask: MemMask<S::m32s>, masked: bool, at: *mut f32, value: S::f32s) {
    // SAFETY: the caller's promise.
    unsafe {
        match masked {
            true => simd.mask_store_ptr_f32s(mask, at, value),
            false => at.cast::<S::f32s>().write_unaligned(value),
        }
    }
}
