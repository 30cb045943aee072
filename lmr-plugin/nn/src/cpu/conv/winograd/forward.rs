//! Convolution, and its gradient with respect to the input.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::input::{Factors, transform_input};
use super::tiling::Tiling;
use super::transform::{IN, OUT, both, output};
use crate::cpu::conv::finish::Finish;
use crate::cpu::conv::product::{Product, Segment, multiply};
use crate::cpu::conv::weights::Packed;
use crate::cpu::scratch::Workspace;
use crate::cpu::simd::{load, store};

/// Columns, that is images of tiles, that are multiplied with the weights at once. Fewer would keep the factors of many
/// channels in the second-level cache, but read the weights more often; that loses.
const COLUMNS: usize = 128;

/// Output channels of one task.
const ROWS: usize = 128;

/// Tasks that the tiles are spread over.
const TASKS: usize = 64;

/// A convolution ready to run.
pub(super) struct Winograd<'a> {
    pub input: &'a [f32],
    pub tiling: Tiling,
    /// 36 taps.
    pub weights: &'a Packed,
    pub finish: Finish<'a>,
}

/// The output, of which tasks write different parts.
#[derive(Clone, Copy)]
struct Shared {
    at: *mut f32,
    len: usize,
}

// SAFETY: tasks differ in tile, images or channels, and write only the values of theirs.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Winograd<'_> {
    /// Fills `out`. With [`Finish::Statistics`], returns the sums and then the sums of squares per channel, for every task.
    pub fn run(&self, out: &mut [f32]) -> Vec<Vec<f64>> {
        let Tiling { from, to, .. } = self.tiling;
        assert_eq!((self.input.len(), out.len()), (from.len(), to.len()));
        let blocks = to.n.div_ceil(COLUMNS);
        let block = to.n.div_ceil(blocks).next_multiple_of(16).min(to.n);
        let images: Vec<Range<usize>> = (0..to.n).step_by(block).map(|i| i..(i + block).min(to.n)).collect();
        let panels = &self.weights.panels;
        let rows = ROWS / panels.first().map_or(1, |p| p.width);
        let panels: Vec<Range<usize>> =
            (0..panels.len()).step_by(rows).map(|i| i..(i + rows).min(panels.len())).collect();
        let tiles = self.tiling.tiles();
        let run = (tiles * images.len() * panels.len()).div_ceil(TASKS).max(COLUMNS / block).min(tiles);
        let runs: Vec<Range<usize>> = (0..tiles).step_by(run).map(|t| t..(t + run).min(tiles)).collect();
        let shared = Shared { at: out.as_mut_ptr(), len: out.len() };
        let arch = Arch::new();
        (0..runs.len() * images.len() * panels.len())
            .into_par_iter()
            .map(|task| {
                let (run, rest) = (task / (images.len() * panels.len()), task % (images.len() * panels.len()));
                arch.dispatch(Task {
                    conv: self,
                    tiles: runs[run].clone(),
                    images: images[rest / panels.len()].clone(),
                    panels: panels[rest % panels.len()].clone(),
                    out: shared,
                })
            })
            .collect()
    }
}

struct Task<'a, 'b> {
    conv: &'a Winograd<'b>,
    tiles: Range<usize>,
    images: Range<usize>,
    panels: Range<usize>,
    out: Shared,
}

impl WithSimd for Task<'_, '_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Winograd { input, tiling, weights, finish } = *self.conv;
        let Self { tiles, images, panels, .. } = &self;
        let panels = &weights.panels[panels.clone()];
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return Vec::new() };
        let rows = first.row..last.row + last.rows;
        // Few images are multiplied together with those of the next tiles.
        let groups = tiles.len().div_ceil((COLUMNS / images.len()).max(1));
        let group = tiles.len().div_ceil(groups);
        let factors = Factors::new(simd, tiling.from.c, group * images.len());
        let products = Factors::new(simd, rows.len(), group * images.len());
        let lens = [factors.len(), products.len(), factors.between()];
        let mut work = Workspace::take(lens.iter().sum());
        let [v, m, between] = work.split(lens);
        let mut statistics = finish.statistics(simd, rows.len());
        for first in tiles.clone().step_by(group) {
            let tiles = first..(first + group).min(tiles.end);
            for (slot, tile) in tiles.clone().enumerate() {
                transform_input(
                    simd,
                    (input, tiling.from),
                    &tiling.sources(tile),
                    0..tiling.from.c,
                    images.clone(),
                    (v, factors, slot * images.len()),
                    between,
                );
            }
            for i in 0..IN * IN {
                let depth = weights.depth;
                let segments = &[Segment { weight: i * depth, input: i * factors.stride, len: depth }];
                let product = Product { weights: &weights.data, input: v, segments, n: factors.n, accumulate: false };
                multiply(simd, panels, product, &mut m[i * products.stride..]);
            }
            for (slot, tile) in tiles.enumerate() {
                let targets = tiling.targets(tile);
                for (index, channel) in rows.clone().enumerate() {
                    let m = &m[index * products.n + slot * images.len()..];
                    self.write(simd, (m, products), channel, &targets, between);
                    for &position in targets.iter().flatten().flatten() {
                        let at = self.row(position, channel);
                        // SAFETY: this task alone works on these images of this channel and position, and `at` was checked
                        // to be inside the output.
                        let row = unsafe { std::slice::from_raw_parts_mut(self.out.at.add(at), images.len()) };
                        finish.row(simd, (row, at), channel, (&mut statistics, index));
                    }
                }
            }
        }
        let mut totals = vec![0.0; 2 * tiling.to.c];
        for (statistics, channel) in statistics.iter().zip(rows) {
            (totals[channel], totals[tiling.to.c + channel]) = statistics.totals(simd);
        }
        totals
    }
}

impl Task<'_, '_> {
    /// Where the images of a channel and position begin in the output.
    #[inline(always)]
    fn row(&self, position: usize, channel: usize) -> usize {
        let to = self.conv.tiling.to;
        let at = position * to.position_len() + channel * to.n + self.images.start;
        assert!(channel < to.c && self.images.end <= to.n && at + self.images.len() <= self.out.len);
        at
    }

    /// Writes `Aᵀ M A` of one channel and tile to the output; `m` begins at the tile's first column in the channel's row.
    #[inline(always)]
    fn write<S: Simd>(
        &self,
        simd: S,
        (m, products): (&[f32], Factors),
        channel: usize,
        targets: &[[Option<usize>; OUT]; OUT],
        between: &mut [f32],
    ) {
        let lanes = S::F32_LANES;
        let vectors = self.images.len().div_ceil(lanes);
        let rest = self.images.len() - (vectors - 1) * lanes;
        let mask = simd.mask_between_m32s(0, rest as u32);
        assert!(m.len() >= (IN * IN - 1) * products.stride + self.images.len());
        let targets = targets.map(|row| row.map(|position| position.map(|p| self.row(p, channel))));
        both(
            simd,
            vectors,
            between,
            #[inline(always)]
            |i, j, vector| {
                let at = (i * IN + j) * products.stride + vector * lanes;
                let masked = rest != lanes && vector + 1 == vectors;
                // SAFETY: inside a row that `m` has, as asserted above; the last vector is masked.
                unsafe { load(simd, mask, masked, m.as_ptr().wrapping_add(at)) }
            },
            #[inline(always)]
            |m| output(simd, m),
            #[inline(always)]
            |i, j, vector, value| {
                if let Some(at) = targets[i][j] {
                    let masked = rest != lanes && vector + 1 == vectors;
                    // SAFETY: this task alone writes these images of this channel and position, all inside the output as
                    // `row` checked; the last vector is masked.
                    unsafe { store(simd, mask, masked, self.out.at.wrapping_add(at + vector * lanes), value) };
                }
            },
        );
    }
}
