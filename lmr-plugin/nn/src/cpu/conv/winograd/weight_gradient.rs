//! The gradient with respect to the weights.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::input::{Factors, transform_input};
use super::tiling::Tiling;
use super::transform::{IN, OUT, both, gradient, weight_gradient as to_weights};
use crate::cpu::conv::correlate::outer::{Run, add_products};
use crate::cpu::conv::geometry::Geometry;
use crate::cpu::conv::transpose::transpose;
use crate::cpu::scratch::Workspace;
use crate::cpu::simd::{get, prefetch, put};

/// Output channels, input channels and images of one step.
const BLOCK: usize = 64;
const IMAGES: usize = 128;

/// Taps of the kernel.
const TAPS: usize = 9;

/// Sums that different threads add to.
const TASKS: usize = 16;

/// `dW [O,C,3,3]` for a gradient `dy` with respect to the convolution's output.
pub(in super::super) fn weight_gradient(x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    let tiling = super::tiling(geometry);
    let (c, o, tiles) = (geometry.x.c, geometry.y.c, tiling.tiles());
    let cut = |channels: usize| -> Vec<Range<usize>> {
        (0..channels).step_by(BLOCK).map(|first| first..(first + BLOCK).min(channels)).collect()
    };
    let (inputs, outputs) = (cut(c), cut(o));
    let blocks = inputs.len() * outputs.len();
    let parts = TASKS.div_ceil(blocks).min(tiles);
    let arch = Arch::new();
    let partial: Vec<Vec<f32>> = (0..parts * blocks)
        .into_par_iter()
        .map(|task| {
            let (part, block) = (task / blocks, task % blocks);
            arch.dispatch(Task {
                x,
                dy,
                tiling,
                tiles: tiles * part / parts..tiles * (part + 1) / parts,
                inputs: inputs[block % inputs.len()].clone(),
                outputs: outputs[block / inputs.len()].clone(),
            })
        })
        .collect();
    let mut dw = vec![0.0; geometry.weight_len()];
    dw.par_chunks_mut(c * TAPS).enumerate().for_each(|(row, dw)| {
        for part in 0..parts {
            for (i, range) in inputs.iter().enumerate() {
                let block = part * blocks + row / BLOCK * inputs.len() + i;
                let sums = &partial[block][row % BLOCK * TAPS * range.len()..][..TAPS * range.len()];
                for (dw, &sum) in dw[range.start * TAPS..].iter_mut().zip(sums) {
                    *dw += sum;
                }
            }
        }
    });
    dw
}

/// A share of the tiles for some channels. Returns their sums, `[output channel][input channel][tap]`.
struct Task<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    tiling: Tiling,
    tiles: Range<usize>,
    inputs: Range<usize>,
    outputs: Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { x, dy, tiling, tiles, inputs, outputs } = self;
        let n = tiling.from.n;
        let padded = outputs.len().next_multiple_of(S::F32_LANES);
        let rows = Factors::new(simd, inputs.len(), IMAGES.min(n));
        let step = rows.n * padded + 16;
        let between = rows.between().max(OUT * IN * padded);
        let lens = [rows.len(), OUT * OUT * rows.n * padded, IN * IN * step, IN * IN * inputs.len() * padded, between];
        let mut work = Workspace::take(lens.iter().sum());
        let [v, turned, g, sums, between] = work.split(lens);
        sums.fill(0.0);
        for tile in tiles {
            let (sources, targets) = (tiling.sources(tile), tiling.targets(tile));
            for first in (0..n).step_by(IMAGES) {
                let images = first..(first + IMAGES).min(n);
                let factors = Factors { n: images.len().next_multiple_of(S::F32_LANES), ..rows };
                transform_input(
                    simd,
                    (x, tiling.from),
                    &sources,
                    inputs.clone(),
                    images.clone(),
                    (&mut *v, factors, 0),
                    between,
                );
                for (target, turned) in targets.iter().flatten().zip(turned.chunks_exact_mut(rows.n * padded)) {
                    turned[..factors.n * padded].fill(0.0);
                    if let Some(position) = target {
                        let at = position * tiling.to.position_len() + outputs.start * n;
                        // The next position of the tile's row.
                        for line in (0..outputs.len() * n).step_by(16) {
                            prefetch(dy.as_ptr().wrapping_add(at + tiling.to.position_len() + line));
                        }
                        transpose(simd, &dy[at..][..outputs.len() * n], n, images.clone(), turned, padded);
                    }
                }
                for image in 0..factors.n {
                    both(
                        simd,
                        padded / S::F32_LANES,
                        between,
                        #[inline(always)]
                        |i, j, v| {
                            let at = ((i * OUT + j) * rows.n + image) * padded + v * S::F32_LANES;
                            get(simd, &turned[at..], 0)
                        },
                        #[inline(always)]
                        |y| gradient(simd, y),
                        #[inline(always)]
                        |i, j, v, value| {
                            put(simd, &mut g[(i * IN + j) * step + image * padded..], v * S::F32_LANES, value);
                        },
                    );
                }
                for i in 0..IN * IN {
                    let run =
                        Run { rows: &v[i * rows.stride..], rows_step: 0, dy: &g[i * step..], len: 1, n: factors.n };
                    let sums = &mut sums[i * inputs.len() * padded..][..inputs.len() * padded];
                    add_products(simd, run, inputs.len(), padded, sums);
                }
            }
        }
        finish(simd, sums, inputs.len(), outputs.len(), padded, between)
    }
}

/// From the sums of the products' factors, `[factor][input channel][output channel]`, those of the weights,
/// `[output channel][input channel][tap]`.
#[inline(always)]
fn finish<S: Simd>(
    simd: S,
    sums: &[f32],
    inputs: usize,
    outputs: usize,
    padded: usize,
    between: &mut [f32],
) -> Vec<f32> {
    let mut weights = vec![0.0; inputs * TAPS * padded];
    for input in 0..inputs {
        both(
            simd,
            padded / S::F32_LANES,
            between,
            #[inline(always)]
            |i, j, v| get(simd, &sums[((i * IN + j) * inputs + input) * padded..], v * S::F32_LANES),
            #[inline(always)]
            |s| to_weights(simd, s),
            #[inline(always)]
            |i, j, v, value| {
                put(simd, &mut weights[(input * TAPS + 3 * i + j) * padded..], v * S::F32_LANES, value);
            },
        );
    }
    let stride = (inputs * TAPS).next_multiple_of(S::F32_LANES);
    let mut turned = vec![0.0; padded * stride];
    transpose(simd, &weights, padded, 0..padded, &mut turned, stride);
    turned.chunks_exact(stride).take(outputs).flat_map(|row| &row[..inputs * TAPS]).copied().collect()
}
