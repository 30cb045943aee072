//! The convolution kernel, forward and with respect to the input: for every position, a small matrix product of packed
//! weights with the rows that the kernel's taps gather.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::finish::Finish;
use super::geometry::Axis;
use super::product::{Product, Segment, multiply};
use super::weights::Packed;
use crate::cpu::layout::Dims;

/// Depth (taps times channels) that is summed before the partial result goes back to memory: what the rows of one tile
/// and a panel of weights may take of the second-level cache.
const DEPTH_BLOCK: usize = 576;

/// A convolution ready to run.
pub(crate) struct Gather<'a> {
    pub input: &'a [f32],
    pub from: Dims,
    pub to: Dims,
    /// Rows and columns.
    pub axes: (Axis, Axis),
    pub weights: &'a Packed,
    /// Taps per kernel row.
    pub kw: usize,
    pub finish: Finish<'a>,
}

impl Gather<'_> {
    /// Fills `out` with all positions. With [`Finish::Statistics`], returns the sums and then the sums of squares per
    /// channel, for every chunk of positions.
    pub fn run(&self, out: &mut [f32]) -> Vec<Vec<f64>> {
        assert_eq!((self.input.len(), out.len()), (self.from.len(), self.to.len()));
        let positions = self.to.chunk_positions();
        let arch = Arch::new();
        out.par_chunks_mut(positions * self.to.position_len())
            .enumerate()
            .map(|(i, out)| arch.dispatch(Chunk { gather: self, first: i * positions, out }))
            .collect()
    }
}

/// The positions from `first` on that `out` holds.
struct Chunk<'a, 'b> {
    gather: &'a Gather<'b>,
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for Chunk<'_, '_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Gather { to, finish, .. } = *self.gather;
        let mut statistics = finish.statistics(simd, to.c);
        let mut segments = Vec::new();
        let mut blocks = Vec::new();
        for (i, out) in self.out.chunks_exact_mut(to.position_len()).enumerate() {
            let position = self.first + i;
            self.gather.segments(position, &mut segments, &mut blocks);
            if blocks.is_empty() {
                out.fill(0.0);
            }
            for (block, &(begin, end)) in blocks.iter().enumerate() {
                let Gather { weights, input, .. } = *self.gather;
                let (segments, accumulate) = (&segments[begin..end], block > 0);
                let product = Product { weights: &weights.data, input, segments, n: to.n, accumulate };
                multiply(simd, &weights.panels, product, out);
            }
            for (channel, row) in out.chunks_exact_mut(to.n).enumerate() {
                let at = position * to.position_len() + channel * to.n;
                finish.row(simd, (row, at), channel, (&mut statistics, channel));
            }
        }
        let (sums, squares): (Vec<_>, Vec<_>) = statistics.iter().map(|s| s.totals(simd)).unzip();
        sums.into_iter().chain(squares).collect()
    }
}

impl Gather<'_> {
    /// The taps of a position as segments, and where the depth is cut into blocks.
    fn segments(&self, position: usize, segments: &mut Vec<Segment>, blocks: &mut Vec<(usize, usize)>) {
        let Dims { h, w, .. } = self.to;
        let (g, y, x) = (position / (h * w), position / w % h, position % w);
        let depth = self.weights.depth;
        segments.clear();
        blocks.clear();
        let (mut begin, mut sum) = (0, 0);
        for &(iy, ky) in self.axes.0.taps(y) {
            for &(ix, kx) in self.axes.1.taps(x) {
                let input = ((g * self.from.h + iy) * self.from.w + ix) * self.from.position_len();
                let mut done = 0;
                while done < depth {
                    let len = (depth - done).min(DEPTH_BLOCK);
                    if sum + len > DEPTH_BLOCK {
                        blocks.push((begin, segments.len()));
                        (begin, sum) = (segments.len(), 0);
                    }
                    let weight = (ky * self.kw + kx) * depth + done;
                    segments.push(Segment { weight, input: input + done * self.from.n, len });
                    sum += len;
                    done += len;
                }
            }
        }
        if begin < segments.len() {
            blocks.push((begin, segments.len()));
        }
    }
}
