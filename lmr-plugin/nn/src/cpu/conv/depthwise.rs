//! Depthwise convolution: one filter per channel, so a row of images times a number per tap.
//!
//! A matrix product would leave most of its tile idle here, and the time goes into moving rows, not into products. All
//! taps of a row are summed in registers, a few channels at a time, so that what neighbouring positions share is still
//! in the second-level cache.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::finish::{Finish, activate};
use super::geometry::{Axis, Geometry};
use crate::cpu::layout::Dims;
use crate::cpu::norm::statistics::Sums;
use crate::cpu::simd::{get, load, store};

/// Parts that the lines of an image batch are cut into: enough for the threads of a large machine, and few enough that
/// parts share few of their input lines.
const PARTS: usize = 32;

/// Floats of a line that are worked on at a time: three input lines and an output line of them fill half of a
/// second-level cache.
const LINE_FLOATS: usize = 1 << 15;

/// Most taps that stay in registers.
const MAX_TAPS: usize = 9;

/// Whether a convolution is depthwise and small enough for the kernels here.
pub(crate) fn applies(geometry: &Geometry) -> bool {
    geometry.c_group() == 1 && geometry.o_group() == 1 && geometry.taps() <= MAX_TAPS
}

/// Fills `out` with a depthwise convolution of `input`, taps being read from `axes`. Returns the sums of
/// [`sums`](crate::cpu::norm::statistics::sums) if `finish` asks for them.
fn run(
    input: &[f32],
    weight: &[f32],
    (from, to): (Dims, Dims),
    axes: &(Axis, Axis),
    (kw, taps): (usize, usize),
    finish: Finish<'_>,
    out: &mut [f32],
) -> Vec<Vec<f64>> {
    assert_eq!((input.len(), out.len()), (from.len(), to.len()));
    assert_eq!(weight.len(), to.c * taps);
    let arch = Arch::new();
    let lines = (to.g * to.h).div_ceil(PARTS);
    out.par_chunks_mut(lines * to.w * to.position_len())
        .enumerate()
        .map(|(i, out)| arch.dispatch(Lines { input, weight, from, to, axes, kw, taps, finish, first: i * lines, out }))
        .collect()
}

/// `conv(x)`, with what [`Finish`] asks for; see [`convolve`](crate::cpu::conv::kernels::convolve).
pub(crate) fn convolve(
    x: &[f32],
    weight: &[f32],
    geometry: &Geometry,
    finish: Finish<'_>,
    out: &mut [f32],
) -> Vec<Vec<f64>> {
    let dims = (geometry.x, geometry.y);
    run(x, weight, dims, &geometry.forward_axes(), (geometry.kw, geometry.taps()), finish, out)
}

/// Fills `dx` with the gradient with respect to the input.
pub(crate) fn input_gradient(dz: &[f32], weight: &[f32], geometry: &Geometry, finish: Finish<'_>, dx: &mut [f32]) {
    let dims = (geometry.y, geometry.x);
    run(dz, weight, dims, &geometry.backward_axes(), (geometry.kw, geometry.taps()), finish, dx);
}

/// The output lines from `first` on that `out` holds.
struct Lines<'a, 'b> {
    input: &'a [f32],
    weight: &'a [f32],
    from: Dims,
    to: Dims,
    axes: &'a (Axis, Axis),
    kw: usize,
    taps: usize,
    finish: Finish<'b>,
    first: usize,
    out: &'a mut [f32],
}

/// Where a tap of a position reads: the input position's first float, and which tap it is.
#[derive(Clone, Copy, Default)]
struct Tap {
    input: usize,
    tap: usize,
}

/// The sources of output position `(line, x)`; returns their number.
fn sources(
    axes: &(Axis, Axis),
    (from, to): (Dims, Dims),
    kw: usize,
    (line, x): (usize, usize),
    found: &mut [Tap; MAX_TAPS],
) -> usize {
    let (g, y) = (line / to.h, line % to.h);
    let pairs = axes.0.taps(y).iter().flat_map(|row| axes.1.taps(x).iter().map(move |column| (row, column)));
    let mut count = 0;
    for (source, (&(iy, ky), &(ix, kx))) in found.iter_mut().zip(pairs) {
        let input = ((g * from.h + iy) * from.w + ix) * from.position_len();
        *source = Tap { input, tap: ky * kw + kx };
        count += 1;
    }
    count
}

impl WithSimd for Lines<'_, '_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { input, weight, from, to, axes, kw, taps, finish, first, out } = self;
        let (n, len) = (to.n, to.position_len());
        let block = (LINE_FLOATS / (from.w * n)).clamp(1, to.c);
        let mut found = [Tap::default(); MAX_TAPS];
        for begin in (0..to.c).step_by(block) {
            let channels = begin..(begin + block).min(to.c);
            for (i, out) in out.chunks_exact_mut(len).enumerate() {
                let (line, x) = (first + i / to.w, i % to.w);
                let count = sources(axes, (from, to), kw, (line, x), &mut found);
                for channel in channels.clone() {
                    let row = &mut out[channel * n..][..n];
                    let weight = &weight[channel * taps..][..taps];
                    add_taps(simd, input, &found[..count], weight, channel * n, row);
                    if let Finish::Activate { bias, residual, bounds } = finish {
                        let at = (first * to.w + i) * len + channel * n;
                        let bias = bias.map_or(0.0, |bias| bias[channel]);
                        activate(simd, row, bias, residual.map(|r| &r[at..at + n]), bounds);
                    }
                }
            }
        }
        if !matches!(finish, Finish::Statistics) {
            return Vec::new();
        }
        let mut sums = Sums::new(simd, to.c);
        out.chunks_exact(len).for_each(|position| sums.add(simd, position, n));
        sums.totals(simd)
    }
}

/// `row = Σ weight · input row` over the sources.
#[inline(always)]
fn add_taps<S: Simd>(simd: S, input: &[f32], sources: &[Tap], weight: &[f32], offset: usize, row: &mut [f32]) {
    let mut factors = [simd.splat_f32s(0.0); MAX_TAPS];
    for (factor, source) in factors.iter_mut().zip(sources) {
        *factor = simd.splat_f32s(weight[source.tap]);
        assert!(source.input + offset + row.len() <= input.len());
    }
    let n = row.len();
    let mask = simd.mask_between_m32s(0, (n % S::F32_LANES) as u32);
    for at in (0..n).step_by(S::F32_LANES) {
        let masked = at + S::F32_LANES > n;
        let mut sum = simd.splat_f32s(0.0);
        for (&factor, source) in factors.iter().zip(sources) {
            // SAFETY: the assertion keeps the row of every source inside `input`; a vector is inside the row or masked.
            let x = unsafe { load(simd, mask, masked, input.as_ptr().wrapping_add(source.input + offset + at)) };
            sum = simd.mul_add_e_f32s(factor, x, sum);
        }
        // SAFETY: as above, for the output row.
        unsafe { store(simd, mask, masked, row.as_mut_ptr().wrapping_add(at), sum) };
    }
}

/// `dW [C,1,kh,kw]` for a gradient `dy` with respect to the convolution's output.
pub(crate) fn weight_gradient(x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    assert_eq!((x.len(), dy.len()), (geometry.x.len(), geometry.y.len()));
    let (arch, axes, to) = (Arch::new(), geometry.forward_axes(), geometry.y);
    let lines = (to.g * to.h).div_ceil(PARTS);
    let parts: Vec<Vec<f32>> = dy
        .par_chunks(lines * to.w * to.position_len())
        .enumerate()
        .map(|(i, dy)| arch.dispatch(Products { x, dy, geometry, axes: &axes, first: i * lines }))
        .collect();
    let mut totals = vec![0.0f64; geometry.weight_len()];
    for part in &parts {
        totals.iter_mut().zip(part).for_each(|(total, &value)| *total += f64::from(value));
    }
    totals.into_iter().map(|total| total as f32).collect()
}

/// The output lines from `first` on whose gradients `dy` holds.
struct Products<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    geometry: &'a Geometry,
    axes: &'a (Axis, Axis),
    first: usize,
}

impl WithSimd for Products<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { x, dy, geometry, axes, first } = self;
        let (from, to, taps) = (geometry.x, geometry.y, geometry.taps());
        let (n, len) = (to.n, to.position_len());
        let block = (LINE_FLOATS / (from.w * n)).clamp(1, to.c);
        let mut sums = vec![simd.splat_f32s(0.0); to.c * taps];
        let mut found = [Tap::default(); MAX_TAPS];
        for begin in (0..to.c).step_by(block) {
            let channels = begin..(begin + block).min(to.c);
            for (i, dy) in dy.chunks_exact(len).enumerate() {
                let (line, column) = (first + i / to.w, i % to.w);
                let count = sources(axes, (from, to), geometry.kw, (line, column), &mut found);
                for channel in channels.clone() {
                    let sums = &mut sums[channel * taps..][..taps];
                    add_products(simd, x, &found[..count], &dy[channel * n..][..n], channel * n, sums);
                }
            }
        }
        sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).collect()
    }
}

/// Adds to every tap the products of a gradient row with the tap's input row.
#[inline(always)]
fn add_products<S: Simd>(simd: S, x: &[f32], sources: &[Tap], dy: &[f32], offset: usize, sums: &mut [S::f32s]) {
    let mut acc = [simd.splat_f32s(0.0); MAX_TAPS];
    for (acc, source) in acc.iter_mut().zip(sources) {
        *acc = sums[source.tap];
        assert!(source.input + offset + dy.len() <= x.len());
    }
    let n = dy.len();
    let mask = simd.mask_between_m32s(0, (n % S::F32_LANES) as u32);
    for at in (0..n).step_by(S::F32_LANES) {
        let masked = at + S::F32_LANES > n;
        let gradient = get(simd, dy, at);
        for (acc, source) in acc.iter_mut().zip(sources) {
            // SAFETY: the assertion keeps the row of every source inside `x`; a vector is inside the row or masked.
            let x = unsafe { load(simd, mask, masked, x.as_ptr().wrapping_add(source.input + offset + at)) };
            *acc = simd.mul_add_e_f32s(gradient, x, *acc);
        }
    }
    for (&acc, source) in acc.iter().zip(sources) {
        sums[source.tap] = acc;
    }
}
