//! The register tile that all convolutions come down to: packed weights times rows of images.

use pulp::{MemMask, Simd};

use super::simd::{load, store};
use super::weights::Panel;

/// A run of consecutive depths: `len` rows from `input` on, against `len` columns of packed weights from `weight` on.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub weight: usize,
    pub input: usize,
    pub len: usize,
}

/// What a panel of weights is multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// All packed weights.
    pub weights: &'a [f32],
    pub input: &'a [f32],
    pub segments: &'a [Segment],
    /// Images in a row of input and output.
    pub n: usize,
    /// Whether the product is added to what is there.
    pub accumulate: bool,
}

/// The output channels of one panel; `out` begins at its first row.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, panel: &Panel, product: Product<'_>, out: &mut [f32]) {
    let Product { weights, input, segments, n, accumulate } = product;
    let vectors = n.div_ceil(S::F32_LANES);
    let rest = n - (vectors - 1) * S::F32_LANES;
    let mask = simd.mask_between_m32s(0, rest as u32);
    let weights = &weights[panel.start..];
    let input = &input[panel.input * n..];
    let mut vector = 0;
    while vector < vectors {
        let left = vectors - vector;
        let count = if left == 4 { 2 } else { left.min(3) };
        let tail = rest != S::F32_LANES && count == left;
        let first = vector * S::F32_LANES;
        let tile = Tile {
            simd,
            mask,
            weights,
            input: &input[first..],
            stride: n,
            segments,
            out: &mut out[first..],
            rows: panel.rows,
            accumulate,
        };
        match (panel.width, count, tail) {
            (8, 3, false) => tile.run::<8, 3, false>(),
            (8, 2, false) => tile.run::<8, 2, false>(),
            (8, _, false) => tile.run::<8, 1, false>(),
            (8, 3, true) => tile.run::<8, 3, true>(),
            (8, 2, true) => tile.run::<8, 2, true>(),
            (8, _, true) => tile.run::<8, 1, true>(),
            (_, 3, false) => tile.run::<4, 3, false>(),
            (_, 2, false) => tile.run::<4, 2, false>(),
            (_, _, false) => tile.run::<4, 1, false>(),
            (_, 3, true) => tile.run::<4, 3, true>(),
            (_, 2, true) => tile.run::<4, 2, true>(),
            (_, _, true) => tile.run::<4, 1, true>(),
        }
        vector += count;
    }
}

/// `MR` output channels times `NR` vectors of images.
struct Tile<'a, S: Simd> {
    simd: S,
    mask: MemMask<S::m32s>,
    weights: &'a [f32],
    input: &'a [f32],
    /// Between the rows of two channels, in input and output.
    stride: usize,
    segments: &'a [Segment],
    out: &'a mut [f32],
    rows: usize,
    accumulate: bool,
}

impl<S: Simd> Tile<'_, S> {
    /// With `TAIL`, the last vector reaches beyond the row and is masked.
    #[inline(always)]
    fn run<const MR: usize, const NR: usize, const TAIL: bool>(self) {
        let Self { simd, mask, weights, input, stride, segments, out, rows, accumulate } = self;
        let lanes = S::F32_LANES;
        // Floats of a row that are certainly touched; a masked vector touches at least one.
        let width = (NR - usize::from(TAIL)) * lanes + usize::from(TAIL);
        let mut acc = [[simd.splat_f32s(0.0); NR]; MR];
        for segment in segments {
            if segment.len == 0 {
                continue;
            }
            assert!((segment.weight + segment.len) * MR <= weights.len());
            assert!(segment.input + (segment.len - 1) * stride + width <= input.len());
            let mut a = weights[segment.weight * MR..].as_ptr();
            let mut b = input[segment.input..].as_ptr();
            for _ in 0..segment.len {
                let mut row = [simd.splat_f32s(0.0); NR];
                for (j, row) in row.iter_mut().enumerate() {
                    // SAFETY: `b` is at a row of the segment; the assertion above keeps its first `width` floats inside
                    // `input`, and whole vectors or the mask keep the load inside the row.
                    *row = unsafe { load(simd, mask, TAIL && j + 1 == NR, b.wrapping_add(j * lanes)) };
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `a` is at a depth of the segment, which the assertion above keeps inside `weights`.
                    let weight = simd.splat_f32s(unsafe { *a.add(i) });
                    for (acc, &row) in acc.iter_mut().zip(&row) {
                        *acc = simd.mul_add_e_f32s(weight, row, *acc);
                    }
                }
                a = a.wrapping_add(MR);
                b = b.wrapping_add(stride);
            }
        }
        assert!(rows >= 1 && (rows - 1) * stride + width <= out.len());
        for (i, acc) in acc.iter().enumerate().take(rows) {
            for (j, &acc) in acc.iter().enumerate() {
                let at = out[i * stride + j * lanes..].as_mut_ptr();
                let masked = TAIL && j + 1 == NR;
                // SAFETY: rows are `stride` apart, the assertion above covers the last, and whole vectors or the mask keep
                // the access inside the row.
                unsafe {
                    let sum = if accumulate { simd.add_f32s(acc, load(simd, mask, masked, at)) } else { acc };
                    store(simd, mask, masked, at, sum);
                }
            }
        }
    }
}
