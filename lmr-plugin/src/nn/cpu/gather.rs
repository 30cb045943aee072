//! The convolution kernel, forward and with respect to the input: for every position, a small matrix product of packed
//! weights with the rows that the kernel's taps gather.

use pulp::{Arch, MemMask, Simd, WithSimd};
use rayon::prelude::*;

use super::geometry::Axis;
use super::layout::Dims;
use super::simd::{load, store};
use super::weights::Packed;

/// Depth (taps times channels) that is summed before the partial result goes back to memory: what the rows of one tile
/// and a panel of weights may take of the second-level cache.
const DEPTH_BLOCK: usize = 576;

/// A run of consecutive depths: `len` rows from `input` on, against `len` columns of packed weights from `weight` on.
#[derive(Clone, Copy)]
struct Segment {
    weight: usize,
    input: usize,
    len: usize,
}

/// What is done to the rows of a position as soon as they are complete.
#[derive(Clone, Copy)]
pub(super) enum Finish<'a> {
    /// Nothing.
    Store,
    /// Sum and sum of squares per channel.
    Statistics,
    /// Adds a bias per channel and a residual, then applies ReLU.
    Activate { bias: Option<&'a [f32]>, residual: Option<&'a [f32]>, relu: bool },
}

/// A convolution ready to run.
pub(super) struct Gather<'a> {
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
        let mut statistics = match finish {
            Finish::Statistics => vec![Statistics::new(simd); to.c],
            _ => Vec::new(),
        };
        let values = self.out.len() / to.c;
        let mut segments = Vec::new();
        let mut blocks = Vec::new();
        for (i, out) in self.out.chunks_exact_mut(to.position_len()).enumerate() {
            let position = self.first + i;
            self.gather.segments(position, &mut segments, &mut blocks);
            if blocks.is_empty() {
                out.fill(0.0);
            }
            position_product(simd, self.gather, &segments, &blocks, out);
            match finish {
                Finish::Store => {}
                Finish::Statistics => add_statistics(simd, out, to.n, i == 0, &mut statistics),
                Finish::Activate { bias, residual, relu } => {
                    let len = to.position_len();
                    let residual = residual.map(|r| &r[position * len..][..len]);
                    activate(simd, out, to.n, bias, residual, relu);
                }
            }
        }
        let (sums, squares): (Vec<_>, Vec<_>) = statistics.iter().map(|s| s.totals(simd, values)).unzip();
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

/// All channels of one position.
#[inline(always)]
fn position_product<S: Simd>(
    simd: S,
    gather: &Gather<'_>,
    segments: &[Segment],
    blocks: &[(usize, usize)],
    out: &mut [f32],
) {
    let n = gather.to.n;
    let vectors = n.div_ceil(S::F32_LANES);
    let rest = n - (vectors - 1) * S::F32_LANES;
    let mask = simd.mask_between_m32s(0, rest as u32);
    for (block, &(begin, end)) in blocks.iter().enumerate() {
        let segments = &segments[begin..end];
        for panel in &gather.weights.panels {
            let weights = &gather.weights.data[panel.start..];
            let input = &gather.input[panel.input * n..];
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
                    out: &mut out[panel.row * n + first..],
                    rows: panel.rows,
                    accumulate: block > 0,
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

/// Sums of one channel over a chunk, of differences from its first value: squares of the values themselves would lose the
/// variance of a channel that is far from 0.
#[derive(Clone, Copy)]
struct Statistics<S: Simd> {
    pivot: f32,
    sum: S::f32s,
    squares: S::f32s,
}

impl<S: Simd> Statistics<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { pivot: 0.0, sum: simd.splat_f32s(0.0), squares: simd.splat_f32s(0.0) }
    }

    /// The sum of `count` values and of their squares.
    #[inline(always)]
    fn totals(&self, simd: S, count: usize) -> (f64, f64) {
        let (pivot, count) = (f64::from(self.pivot), count as f64);
        let (sum, squares) = (f64::from(simd.reduce_sum_f32s(self.sum)), f64::from(simd.reduce_sum_f32s(self.squares)));
        (sum + count * pivot, squares + 2.0 * pivot * sum + count * pivot * pivot)
    }
}

/// Adds a position's values; the `first` of a chunk sets the pivots.
#[inline(always)]
fn add_statistics<S: Simd>(simd: S, out: &[f32], n: usize, first: bool, statistics: &mut [Statistics<S>]) {
    let rest = simd.mask_between_m32s(0, (n % S::F32_LANES) as u32).mask();
    for (row, statistics) in out.chunks_exact(n).zip(statistics) {
        if first {
            statistics.pivot = row[0];
        }
        let pivot = simd.splat_f32s(statistics.pivot);
        let mut add = |difference| {
            statistics.sum = simd.add_f32s(statistics.sum, difference);
            statistics.squares = simd.mul_add_e_f32s(difference, difference, statistics.squares);
        };
        let (vectors, tail) = S::as_simd_f32s(row);
        for &v in vectors {
            add(simd.sub_f32s(v, pivot));
        }
        if !tail.is_empty() {
            let difference = simd.sub_f32s(simd.partial_load_f32s(tail), pivot);
            add(simd.select_f32s(rest, difference, simd.splat_f32s(0.0)));
        }
    }
}

/// `relu(out + bias + residual)`, in place.
#[inline(always)]
fn activate<S: Simd>(simd: S, out: &mut [f32], n: usize, bias: Option<&[f32]>, residual: Option<&[f32]>, relu: bool) {
    let floor = simd.splat_f32s(if relu { 0.0 } else { f32::NEG_INFINITY });
    for (channel, row) in out.chunks_exact_mut(n).enumerate() {
        let bias = simd.splat_f32s(bias.map_or(0.0, |b| b[channel]));
        let (vectors, rest) = S::as_mut_simd_f32s(row);
        let residual = residual.map(|r| S::as_simd_f32s(&r[channel * n..][..n]));
        for (i, v) in vectors.iter_mut().enumerate() {
            let mut sum = simd.add_f32s(*v, bias);
            if let Some((residual, _)) = residual {
                sum = simd.add_f32s(sum, residual[i]);
            }
            *v = simd.max_f32s(floor, sum);
        }
        if !rest.is_empty() {
            let mut sum = simd.add_f32s(simd.partial_load_f32s(rest), bias);
            if let Some((_, residual)) = residual {
                sum = simd.add_f32s(sum, simd.partial_load_f32s(residual));
            }
            simd.partial_store_f32s(rest, simd.max_f32s(floor, sum));
        }
    }
}
