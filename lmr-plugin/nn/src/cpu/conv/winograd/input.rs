//! The transform of a tile's inputs.

use std::ops::Range;

use pulp::Simd;

use super::transform::{IN, both, input};
use crate::cpu::layout::Dims;
use crate::cpu::simd::{load, prefetch, store};

/// Room for the 36 factors of some tiles: `[factor][channel][tile][image]`, the row of a channel padded to whole vectors.
/// What is in the padding is multiplied, too, but never stored.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Floats of a row.
    pub n: usize,
    /// Between factors. Not a multiple of a page, or all factors would share a few sets of the cache.
    pub stride: usize,
}

impl Factors {
    /// Room for `columns` images of tiles.
    pub fn new<S: Simd>(_: S, rows: usize, columns: usize) -> Self {
        let n = columns.next_multiple_of(S::F32_LANES);
        let stride = rows * n;
        Self { n, stride: if stride.is_multiple_of(256) { stride + 16 } else { stride } }
    }

    /// Floats that are half transformed at a time.
    pub fn between(&self) -> usize {
        IN * IN * self.n
    }

    pub fn len(&self) -> usize {
        IN * IN * self.stride
    }
}

/// Fills the columns of `out` from `column` on with `Bᵀ d B` of some channels and images of `x`; positions that are `None`
/// are 0. Up to a vector's end, zeros go into the columns behind, so columns are filled in ascending order. `between` has
/// [`Factors::between`] floats.
#[inline(always)]
pub(super) fn transform_input<S: Simd>(
    simd: S,
    (x, dims): (&[f32], Dims),
    sources: &[[Option<usize>; IN]; IN],
    channels: Range<usize>,
    images: Range<usize>,
    (out, factors, column): (&mut [f32], Factors, usize),
    between: &mut [f32],
) {
    let lanes = S::F32_LANES;
    let vectors = images.len().div_ceil(lanes);
    let rest = images.len() - (vectors - 1) * lanes;
    let mask = simd.mask_between_m32s(0, rest as u32);
    let tight = column + vectors * lanes > factors.n;
    let nothing = vec![0.0; vectors * lanes];
    assert!(channels.end <= dims.c && images.end <= dims.n && images.start < images.end);
    assert!(column + images.len() <= factors.n && factors.stride >= channels.len() * factors.n);
    assert!(out.len() >= factors.len());
    // Where the first row of a source is, and how far it is to the next.
    let rows = sources.map(|row| {
        row.map(|position| match position {
            Some(position) => {
                let position = &x[position * dims.position_len()..][..dims.position_len()];
                (position[channels.start * dims.n + images.start..].as_ptr(), dims.n)
            }
            None => (nothing.as_ptr(), 0),
        })
    });
    let out = out.as_mut_ptr();
    for channel in 0..channels.len() {
        both(
            simd,
            vectors,
            between,
            #[inline(always)]
            |i, j, vector| {
                let (first, step) = rows[i][j];
                let at = first.wrapping_add(channel * step + vector * lanes);
                // The next channel: there are more streams than the hardware foresees.
                prefetch(at.wrapping_add(step));
                // SAFETY: the row is one of the channels of a position inside `x`, or `nothing`, which both have the images
                // of this vector, or its unmasked ones, as the assertion and the slices above say.
                unsafe { load(simd, mask, rest != lanes && vector + 1 == vectors, at) }
            },
            #[inline(always)]
            |d| input(simd, d),
            #[inline(always)]
            |i, j, vector, value| {
                let at = (i * IN + j) * factors.stride + channel * factors.n + column + vector * lanes;
                // SAFETY: inside a row that `out` has, as asserted above; a last vector for which there is no room is masked.
                unsafe { store(simd, mask, tight && vector + 1 == vectors, out.wrapping_add(at), value) };
            },
        );
    }
}
