//! The gradient with respect to the weights as outer products, for 16 output channels and more.
//!
//! The output gradient of a position is transposed first: then a vector holds output channels, an input value is
//! broadcast, and a tile of the result stays in registers for a whole position.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::conv::geometry::Geometry;
use crate::cpu::conv::transpose::transpose;

/// Output channels of one task: their transposed gradients for 128 images fill two thirds of the first-level cache.
const BLOCK: usize = 64;

/// Images times positions that a tile sums in registers.
const DEPTH: usize = 128;

/// Partial gradients may take this many floats together; they are what different threads add to.
const PARTIAL_FLOATS: usize = 1 << 20;

/// `dW [O,C/groups,kh,kw]` for a gradient `dy` with respect to the convolution's output.
pub(in super::super) fn weight_gradient(x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    assert_eq!((x.len(), dy.len()), (geometry.x.len(), geometry.y.len()));
    let (c, taps, o_group) = (geometry.c_group(), geometry.taps(), geometry.o_group());
    let lines = geometry.y.g * geometry.y.h;
    let blocks_per_group = o_group.div_ceil(BLOCK);
    let blocks = geometry.config.groups * blocks_per_group;
    // Parts of the lines and blocks of output channels, both fixed by the shape: each task owns one sum.
    let parts = (PARTIAL_FLOATS / geometry.weight_len()).clamp(1, 16).max(16 / blocks).min(lines);
    let arch = Arch::new();
    let width = |block: usize| BLOCK.min(o_group - block % blocks_per_group * BLOCK);
    let partial: Vec<Vec<f32>> = (0..parts * blocks)
        .into_par_iter()
        .map(|task| {
            let (part, block) = (task / blocks, task % blocks);
            arch.dispatch(Task {
                x,
                dy,
                geometry,
                lines: (lines * part / parts, lines * (part + 1) / parts),
                first: block / blocks_per_group * o_group + block % blocks_per_group * BLOCK,
                channels: width(block),
                input: block / blocks_per_group * c,
            })
        })
        .collect();
    let mut dw = vec![0.0; geometry.weight_len()];
    dw.par_chunks_mut(c * taps).enumerate().for_each(|(row, dw)| {
        let (group, channel) = (row / o_group, row % o_group);
        let block = group * blocks_per_group + channel / BLOCK;
        for part in 0..parts {
            let sums = &partial[part * blocks + block][channel % BLOCK * taps * c..][..taps * c];
            for (tap, sums) in sums.chunks_exact(c).enumerate() {
                for (dw, sum) in dw[tap..].iter_mut().step_by(taps).zip(sums) {
                    *dw += sum;
                }
            }
        }
    });
    dw
}

/// A share of the lines for some output channels. Returns their sums, `[output channel][tap][input channel]`.
struct Task<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    geometry: &'a Geometry,
    lines: (usize, usize),
    /// First output channel, and how many.
    first: usize,
    channels: usize,
    /// First input channel.
    input: usize,
}

impl WithSimd for Task<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Geometry { x: from, y: to, .. } = *self.geometry;
        let (c, taps, n) = (self.geometry.c_group(), self.geometry.taps(), from.n);
        let padded = self.channels.next_multiple_of(S::F32_LANES);
        let positions = (DEPTH / n).clamp(1, to.w);
        // `[tap][input channel][output channel]`, the output channels padded to whole vectors.
        let mut sums = vec![0.0; taps * c * padded];
        let mut transposed = vec![0.0; positions * n * padded];
        for line in self.lines.0..self.lines.1 {
            for left in (0..to.w).step_by(positions) {
                let right = (left + positions).min(to.w);
                for column in left..right {
                    let at = (line * to.w + column) * to.position_len() + self.first * n;
                    let out = &mut transposed[(column - left) * n * padded..];
                    transpose(simd, &self.dy[at..][..self.channels * n], n, 0..n, out, padded);
                }
                for tap in 0..taps {
                    let Some((from_column, len, x)) = self.source_run(line, left..right, tap) else { continue };
                    let run = Run {
                        rows: &self.x[x..],
                        rows_step: self.geometry.config.stride * from.position_len(),
                        dy: &transposed[(from_column - left) * n * padded..],
                        len,
                        n,
                    };
                    add_products(simd, run, c, padded, &mut sums[tap * c * padded..][..c * padded]);
                }
            }
        }
        let rows = taps * c;
        let stride = rows.next_multiple_of(S::F32_LANES);
        let mut turned = vec![0.0; padded * stride];
        transpose(simd, &sums, padded, 0..padded, &mut turned, stride);
        turned.chunks_exact(stride).take(self.channels).flat_map(|row| &row[..rows]).copied().collect()
    }
}

impl Task<'_> {
    /// Which of the columns of a line read an input through `tap`: the first, their number, and where the input of the
    /// first begins.
    fn source_run(&self, line: usize, columns: std::ops::Range<usize>, tap: usize) -> Option<(usize, usize, usize)> {
        let Geometry { x: from, y: to, kw, .. } = *self.geometry;
        let iy = self.geometry.row(line % to.h, tap / kw)?;
        let mut sources = columns.filter_map(|ox| Some((ox, self.geometry.column(ox, tap % kw)?)));
        let (ox, ix) = sources.next()?;
        let position = (line / to.h * from.h + iy) * from.w + ix;
        Some((ox, 1 + sources.count(), position * from.position_len() + self.input * from.n))
    }
}

/// Positions whose products are summed: input rows (of `n` images each), `rows_step` floats from position to position,
/// and transposed gradients, one after the other.
#[derive(Clone, Copy)]
pub(in super::super) struct Run<'a> {
    pub rows: &'a [f32],
    pub rows_step: usize,
    pub dy: &'a [f32],
    pub len: usize,
    pub n: usize,
}

/// Adds the products of `rows` input rows and `padded` output channels to `sums`.
#[inline(always)]
pub(in super::super) fn add_products<S: Simd>(simd: S, run: Run<'_>, rows: usize, padded: usize, sums: &mut [f32]) {
    let wide = S::REGISTER_COUNT >= 32;
    let vectors = padded / S::F32_LANES;
    let mut vector = 0;
    while vector < vectors {
        let count = (vectors - vector).min(if wide { 4 } else { 2 });
        let mut row = 0;
        while row < rows {
            let tile = Tile { simd, run, padded, vector, row, sums: &mut *sums };
            let left = rows - row;
            row += match (wide, count) {
                (true, 4) if left >= 6 => tile.run::<6, 4>(),
                (true, 4) if left >= 4 => tile.run::<4, 4>(),
                (true, 4) => tile.run::<1, 4>(),
                (true, 3) if left >= 8 => tile.run::<8, 3>(),
                (true, 3) if left >= 4 => tile.run::<4, 3>(),
                (true, 3) => tile.run::<1, 3>(),
                (true, 2) if left >= 12 => tile.run::<12, 2>(),
                (true, 1) if left >= 16 => tile.run::<16, 1>(),
                (false, 2) if left >= 6 => tile.run::<6, 2>(),
                (_, 2) if left >= 4 => tile.run::<4, 2>(),
                (_, 2) => tile.run::<1, 2>(),
                (_, _) if left >= 8 => tile.run::<8, 1>(),
                (_, _) if left >= 4 => tile.run::<4, 1>(),
                (_, _) => tile.run::<1, 1>(),
            };
        }
        vector += count;
    }
}

/// `MR` input rows from `row` on, times `NR` vectors of output channels from `vector` on.
struct Tile<'a, 'b, S: Simd> {
    simd: S,
    run: Run<'a>,
    padded: usize,
    vector: usize,
    row: usize,
    sums: &'b mut [f32],
}

impl<S: Simd> Tile<'_, '_, S> {
    /// Returns `MR`.
    #[inline(always)]
    fn run<const MR: usize, const NR: usize>(self) -> usize {
        let Self { simd, run: Run { rows, rows_step, dy, len, n }, padded, vector, row, sums } = self;
        let lanes = S::F32_LANES;
        assert!(len > 0 && (vector + NR) * lanes <= padded && len * n * padded <= dy.len());
        assert!((len - 1) * rows_step + (row + MR) * n <= rows.len());
        let mut acc = [[simd.splat_f32s(0.0); NR]; MR];
        for position in 0..len {
            let mut x = rows[position * rows_step + row * n..].as_ptr();
            let mut dy = dy[position * n * padded + vector * lanes..].as_ptr();
            for _ in 0..n {
                let mut gradient = [simd.splat_f32s(0.0); NR];
                for (j, gradient) in gradient.iter_mut().enumerate() {
                    // SAFETY: image by image, `dy` walks over the `n` transposed rows of `padded` floats of a position,
                    // of which the first assertion says that they are there, as are the tile's vectors in a row.
                    *gradient = unsafe { dy.add(j * lanes).cast::<S::f32s>().read_unaligned() };
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `x` walks over the `n` images of a row; the second assertion covers `MR` rows of the last
                    // position.
                    let value = simd.splat_f32s(unsafe { *x.wrapping_add(i.wrapping_mul(n)) });
                    for (acc, &gradient) in acc.iter_mut().zip(&gradient) {
                        *acc = simd.mul_add_e_f32s(value, gradient, *acc);
                    }
                }
                x = x.wrapping_add(1);
                dy = dy.wrapping_add(padded);
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            let sums = &mut sums[(row + i) * padded + vector * lanes..][..NR * lanes];
            for (sum, &acc) in S::as_mut_simd_f32s(sums).0.iter_mut().zip(acc) {
                *sum = simd.add_f32s(*sum, acc);
            }
        }
        MR
    }
}
