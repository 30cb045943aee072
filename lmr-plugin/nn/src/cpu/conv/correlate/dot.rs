//! The gradient with respect to the weights as dot products, for few channels.
//!
//! Rows of both factors run over images, so a product of two channels is a dot product along vectors; a tile of 4 by 4
//! channels is summed in registers over a patch of positions small enough to stay in the first-level cache.

use pulp::{Arch, MemMask, Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::conv::geometry::Geometry;
use crate::cpu::simd::load;

/// Vectors of 16 images that a tile sums before its lanes are added up.
const CHUNK_VECTORS: usize = 32;

/// Partial gradients may take this many floats together; they are what different threads add to.
const PARTIAL_FLOATS: usize = 1 << 20;

/// Output positions of one block of images: rows `y.0..y.1`, columns `x.0..x.1`.
#[derive(Clone, Copy)]
struct Patch {
    g: usize,
    y: (usize, usize),
    x: (usize, usize),
}

/// Consecutive positions of one row: where gradient and input begin, and how many there are.
#[derive(Clone, Copy)]
struct Run {
    dy: usize,
    x: usize,
    len: usize,
}

/// `dW [O,C/groups,kh,kw]` for a gradient `dy` with respect to the convolution's output.
pub(in super::super) fn weight_gradient(x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    assert_eq!((x.len(), dy.len()), (geometry.x.len(), geometry.y.len()));
    let patches = patches(geometry);
    let (c, taps, o) = (geometry.c_group(), geometry.taps(), geometry.y.c);
    // Parts of the positions and blocks of output channels, both fixed by the shape: each task owns one sum.
    let parts = (PARTIAL_FLOATS / geometry.weight_len()).clamp(1, 16).min(patches.len());
    let tile = geometry.o_group().min(4);
    let rows = (o * parts / 16).max(1).next_multiple_of(tile).min(geometry.o_group());
    let rows = if geometry.o_group().is_multiple_of(rows) { rows } else { geometry.o_group() };
    let blocks = o / rows;
    let arch = Arch::new();
    let partial: Vec<Vec<f32>> = (0..parts * blocks)
        .into_par_iter()
        .map(|task| {
            let (part, block) = (task / blocks, task % blocks);
            let patches = &patches[patches.len() * part / parts..patches.len() * (part + 1) / parts];
            let mut sum = vec![0.0; rows * taps * c];
            arch.dispatch(Task { x, dy, geometry, patches, first: block * rows, rows, sum: &mut sum });
            sum
        })
        .collect();
    let mut dw = vec![0.0; geometry.weight_len()];
    dw.par_chunks_mut(c * taps).enumerate().for_each(|(row, dw)| {
        for part in 0..parts {
            let sum = &partial[part * blocks + row / rows][row % rows * taps * c..][..taps * c];
            for (tap, sum) in sum.chunks_exact(c).enumerate() {
                for (i, sum) in sum.iter().enumerate() {
                    dw[i * taps + tap] += sum;
                }
            }
        }
    });
    dw
}

/// Cuts the output into patches of about [`CHUNK_VECTORS`].
fn patches(geometry: &Geometry) -> Vec<Patch> {
    let y = geometry.y;
    let positions = (CHUNK_VECTORS / y.n.div_ceil(16)).max(1);
    let columns = y.w.div_ceil(y.w.div_ceil(positions));
    let rows = (positions / y.w).clamp(1, y.h);
    let mut patches = Vec::new();
    for g in 0..y.g {
        for y0 in (0..y.h).step_by(rows) {
            for x0 in (0..y.w).step_by(columns) {
                patches.push(Patch { g, y: (y0, (y0 + rows).min(y.h)), x: (x0, (x0 + columns).min(y.w)) });
            }
        }
    }
    patches
}

/// A share of the positions for the output channels from `first` on.
struct Task<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    geometry: &'a Geometry,
    patches: &'a [Patch],
    first: usize,
    rows: usize,
    /// `[row][tap][input channel]`.
    sum: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let geometry = self.geometry;
        let (c, taps, n) = (geometry.c_group(), geometry.taps(), geometry.x.n);
        let input = self.first / geometry.o_group() * c;
        let widest = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let vectors = n.div_ceil(S::F32_LANES);
        let rest = n - (vectors - 1) * S::F32_LANES;
        let mask = simd.mask_between_m32s(0, rest as u32);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); taps];
        for patch in self.patches {
            for (tap, runs) in runs.iter_mut().enumerate() {
                find_runs(geometry, patch, tap, runs);
            }
            let mut i = 0;
            while i < c {
                let columns = widest.min(c - i);
                let mut row = 0;
                while row < self.rows {
                    let rows = if self.rows - row >= 4 { 4 } else { 1 };
                    for (tap, runs) in runs.iter().enumerate() {
                        let tile = Tile {
                            simd,
                            mask,
                            full: vectors - usize::from(rest != S::F32_LANES),
                            tail: rest != S::F32_LANES,
                            n,
                            runs,
                            dy: &self.dy[(self.first + row) * n..],
                            dy_step: geometry.y.position_len(),
                            x: &self.x[(input + i) * n..],
                            x_step: geometry.x.position_len() * geometry.config.stride,
                            sum: &mut self.sum[(row * taps + tap) * c + i..],
                            sum_step: taps * c,
                        };
                        match (rows, columns) {
                            (4, 4) => tile.run::<4, 4>(),
                            (4, 3) => tile.run::<4, 3>(),
                            (4, 2) => tile.run::<4, 2>(),
                            (4, _) => tile.run::<4, 1>(),
                            (_, 4) => tile.run::<1, 4>(),
                            (_, 3) => tile.run::<1, 3>(),
                            (_, 2) => tile.run::<1, 2>(),
                            (_, _) => tile.run::<1, 1>(),
                        }
                    }
                    row += rows;
                }
                i += columns;
            }
        }
    }
}

/// The runs of positions in `patch` whose `tap` does not fall on padding.
fn find_runs(geometry: &Geometry, patch: &Patch, tap: usize, runs: &mut Vec<Run>) {
    let (ky, kx) = (tap / geometry.kw, tap % geometry.kw);
    let (x, y) = (geometry.x, geometry.y);
    runs.clear();
    let columns: Vec<(usize, usize)> =
        (patch.x.0..patch.x.1).filter_map(|ox| Some((ox, geometry.column(ox, kx)?))).collect();
    let Some(&(ox, ix)) = columns.first() else { return };
    for oy in patch.y.0..patch.y.1 {
        if let Some(iy) = geometry.row(oy, ky) {
            runs.push(Run {
                dy: ((patch.g * y.h + oy) * y.w + ox) * y.position_len(),
                x: ((patch.g * x.h + iy) * x.w + ix) * x.position_len(),
                len: columns.len(),
            });
        }
    }
}

/// `MR` output channels times `NR` input channels for one tap.
struct Tile<'a, S: Simd> {
    simd: S,
    mask: MemMask<S::m32s>,
    /// Whole vectors in a row.
    full: usize,
    /// Whether a masked vector follows them.
    tail: bool,
    n: usize,
    runs: &'a [Run],
    dy: &'a [f32],
    dy_step: usize,
    x: &'a [f32],
    x_step: usize,
    sum: &'a mut [f32],
    sum_step: usize,
}

impl<S: Simd> Tile<'_, S> {
    #[inline(always)]
    fn run<const MR: usize, const NR: usize>(self) {
        let Self { simd, mask, full, tail, n, runs, dy, dy_step, x, x_step, sum, sum_step } = self;
        let mut acc = [[simd.splat_f32s(0.0); NR]; MR];
        for run in runs {
            assert!(run.dy + (run.len - 1) * dy_step + MR * n <= dy.len());
            assert!(run.x + (run.len - 1) * x_step + NR * n <= x.len());
            let (mut dy, mut x) = (dy[run.dy..].as_ptr(), x[run.x..].as_ptr());
            for _ in 0..run.len {
                for v in 0..full {
                    let offset = v * S::F32_LANES;
                    // SAFETY: the assertions above keep all rows of the run's last position inside the slices, and
                    // whole vectors are inside their rows.
                    unsafe { add_products(simd, mask, false, dy.add(offset), x.add(offset), n, &mut acc) };
                }
                if tail {
                    let offset = full * S::F32_LANES;
                    // SAFETY: as above; the mask leaves out what lies beyond the rows.
                    unsafe { add_products(simd, mask, true, dy.add(offset), x.add(offset), n, &mut acc) };
                }
                dy = dy.wrapping_add(dy_step);
                x = x.wrapping_add(x_step);
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, &acc) in acc.iter().enumerate() {
                sum[i * sum_step + j] += simd.reduce_sum_f32s(acc);
            }
        }
    }
}

/// Adds the products of one vector of `MR` gradient rows and `NR` input rows, all `n` floats apart.
///
/// # Safety
/// A vector, or its unmasked lanes if `masked`, must be readable in every row.
#[inline(always)]
unsafe fn add_products<S: Simd, const MR: usize, const NR: usize>(
    simd: S,
    mask: MemMask<S::m32s>,
    masked: bool,
    dy: *const f32,
    x: *const f32,
    n: usize,
    acc: &mut [[S::f32s; NR]; MR],
) {
    let mut columns = [simd.splat_f32s(0.0); NR];
    for (j, column) in columns.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *column = unsafe { load(simd, mask, masked, x.wrapping_add(j.wrapping_mul(n))) };
    }
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let row = unsafe { load(simd, mask, masked, dy.wrapping_add(i.wrapping_mul(n))) };
        for (acc, &column) in acc.iter_mut().zip(&columns) {
            *acc = simd.mul_add_e_f32s(row, column, *acc);
        }
    }
}
