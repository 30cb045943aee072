//! The register tile that all convolutions come down to: packed weights times rows of images.

use pulp::{MemMask, Simd};

use super::weights::Panel;
use crate::cpu::simd::{load, store};

/// A run of consecutive depths: `len` rows from `input` on, against `len` columns of packed weights from `weight` on.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub weight: usize,
    pub input: usize,
    pub len: usize,
}

/// What a panel of weights is multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// All packed weights.
    pub weights: &'a [f32],
    pub input: &'a [f32],
    pub segments: &'a [Segment],
    /// Images in a row of input and output.
    pub n: usize,
    /// Whether the product is added to what is there.
    pub accumulate: bool,
}

/// Panels from which on copying the rows of a tile pays.
const MIN_PANELS: usize = 4;

/// The output channels of `panels`; `out` begins at the first row of the first.
///
/// With 32 registers a tile is large enough to take its rows from wherever they are: 89 to 97% of the peak. With 16 it is
/// not, and rows a power of two apart fall into the same few sets of the first-level cache: there the rows of a tile are
/// copied, one after the other, and all panels pass before the next tile. Every tile is a sum of its own, so the order
/// changes nothing but the speed.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, panels: &[Panel], product: Product<'_>, out: &mut [f32]) {
    let Some(first) = panels.first() else { return };
    let n = product.n;
    let vectors = n.div_ceil(S::F32_LANES);
    let rest = n - (vectors - 1) * S::F32_LANES;
    let mask = simd.mask_between_m32s(0, rest as u32);
    let columns = Columns { simd, mask, whole: rest == S::F32_LANES, vectors };
    let same_rows = panels.iter().all(|panel| panel.input == first.input);
    if S::REGISTER_COUNT < 32 && same_rows && panels.len() >= MIN_PANELS {
        let mut copied = Vec::new();
        let mut segments = Vec::new();
        let mut vector = 0;
        while vector < vectors {
            let source = Product { input: &product.input[first.input * n..], ..product };
            columns.copy(source, vector, &mut copied, &mut segments);
            let rows = Product { input: as_floats::<S>(&copied), segments: &segments, ..product };
            for panel in panels {
                columns.run::<true>(panel, rows, &mut out[(panel.row - first.row) * n..], vector);
            }
            vector += columns.count(vector);
        }
    } else {
        for panel in panels {
            let rows = Product { input: &product.input[panel.input * n..], ..product };
            let mut vector = 0;
            while vector < vectors {
                columns.run::<false>(panel, rows, &mut out[(panel.row - first.row) * n..], vector);
                vector += columns.count(vector);
            }
        }
    }
}

/// The floats in a slice of vectors.
#[inline(always)]
fn as_floats<S: Simd>(vectors: &[S::f32s]) -> &[f32] {
    pulp::bytemuck::cast_slice(vectors)
}

/// How the vectors of a row are cut into tiles.
#[derive(Clone, Copy)]
struct Columns<S: Simd> {
    simd: S,
    /// The lanes of the last vector.
    mask: MemMask<S::m32s>,
    /// Whether these are all.
    whole: bool,
    vectors: usize,
}

impl<S: Simd> Columns<S> {
    /// The most vectors of a tile: accumulators, rows and a weight have to fit the registers.
    const MOST: usize = if S::REGISTER_COUNT >= 32 { 3 } else { 2 };

    /// Vectors of the tile that begins at `vector`.
    #[inline(always)]
    fn count(&self, vector: usize) -> usize {
        match self.vectors - vector {
            // Rather two and two than three and one.
            4 if Self::MOST == 3 => 2,
            left => left.min(Self::MOST),
        }
    }

    /// Whether the tile that begins at `vector` reaches beyond the rows.
    #[inline(always)]
    fn tail(&self, vector: usize) -> bool {
        !self.whole && vector + self.count(vector) == self.vectors
    }

    /// Copies the rows of the tile that begins at `vector`, and says where their segments are now. Lanes beyond the rows are 0.
    #[inline(always)]
    fn copy(&self, product: Product<'_>, vector: usize, copied: &mut Vec<S::f32s>, segments: &mut Vec<Segment>) {
        let (count, tail, lanes) = (self.count(vector), self.tail(vector), S::F32_LANES);
        copied.clear();
        segments.clear();
        for &segment in product.segments {
            segments.push(Segment { input: copied.len() * lanes, ..segment });
            for row in product.input[segment.input..].chunks(product.n).take(segment.len) {
                for j in 0..count {
                    let rest = &row[(vector + j) * lanes..];
                    let masked = tail && j + 1 == count;
                    copied.push(if masked { self.simd.partial_load_f32s(rest) } else { S::as_simd_f32s(rest).0[0] });
                }
            }
        }
    }

    /// The tile of a panel that begins at `vector`; its rows are `COPIED`, or in place.
    #[inline(always)]
    fn run<const COPIED: bool>(self, panel: &Panel, product: Product<'_>, out: &mut [f32], vector: usize) {
        let Product { weights, input, segments, n, accumulate } = product;
        let (count, tail, first) = (self.count(vector), self.tail(vector), vector * S::F32_LANES);
        let tile = Tile::<S, COPIED> {
            simd: self.simd,
            mask: self.mask,
            weights: &weights[panel.start..],
            input: if COPIED { input } else { &input[first..] },
            step: if COPIED { count * S::F32_LANES } else { n },
            segments,
            out: &mut out[first..],
            stride: n,
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
            (6, 2, false) => tile.run::<6, 2, false>(),
            (6, _, false) => tile.run::<6, 1, false>(),
            (6, 2, true) => tile.run::<6, 2, true>(),
            (6, _, true) => tile.run::<6, 1, true>(),
            (_, 3, false) => tile.run::<4, 3, false>(),
            (_, 2, false) => tile.run::<4, 2, false>(),
            (_, _, false) => tile.run::<4, 1, false>(),
            (_, 3, true) => tile.run::<4, 3, true>(),
            (_, 2, true) => tile.run::<4, 2, true>(),
            (_, _, true) => tile.run::<4, 1, true>(),
        }
    }
}

/// `MR` output channels times `NR` vectors of images.
struct Tile<'a, S: Simd, const COPIED: bool> {
    simd: S,
    mask: MemMask<S::m32s>,
    weights: &'a [f32],
    input: &'a [f32],
    /// Between the rows of two channels in the input.
    step: usize,
    segments: &'a [Segment],
    out: &'a mut [f32],
    /// Between the rows of two channels in the output.
    stride: usize,
    rows: usize,
    accumulate: bool,
}

impl<S: Simd, const COPIED: bool> Tile<'_, S, COPIED> {
    /// With `TAIL`, the last vector reaches beyond the row and is masked.
    #[inline(always)]
    fn run<const MR: usize, const NR: usize, const TAIL: bool>(self) {
        let Self { simd, mask, weights, input, step, segments, out, stride, rows, accumulate } = self;
        let lanes = S::F32_LANES;
        // Floats of a row that are certainly touched; a masked vector touches at least one.
        let width = (NR - usize::from(TAIL)) * lanes + usize::from(TAIL);
        let read = if COPIED { NR * lanes } else { width };
        let mut acc = [[simd.splat_f32s(0.0); NR]; MR];
        for segment in segments {
            if segment.len == 0 {
                continue;
            }
            assert!((segment.weight + segment.len) * MR <= weights.len());
            assert!(segment.input + (segment.len - 1) * step + read <= input.len());
            let mut a = weights[segment.weight * MR..].as_ptr();
            let mut b = input[segment.input..].as_ptr();
            for _ in 0..segment.len {
                let mut row = [simd.splat_f32s(0.0); NR];
                for (j, row) in row.iter_mut().enumerate() {
                    // SAFETY: `b` is at a row of the segment; the assertion above keeps its first `read` floats inside
                    // `input`, and whole vectors or the mask keep the load inside the row.
                    *row = unsafe { load(simd, mask, TAIL && !COPIED && j + 1 == NR, b.wrapping_add(j * lanes)) };
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `a` is at a depth of the segment, which the assertion above keeps inside `weights`.
                    let weight = simd.splat_f32s(unsafe { *a.add(i) });
                    for (acc, &row) in acc.iter_mut().zip(&row) {
                        *acc = simd.mul_add_e_f32s(weight, row, *acc);
                    }
                }
                a = a.wrapping_add(MR);
                b = b.wrapping_add(step);
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
