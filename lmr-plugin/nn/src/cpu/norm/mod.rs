//! Batch norm, residual and ReLU over blocked activations: one forward pass, two backward passes.

pub(crate) mod statistics;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::activation::Bounds;
use super::layout::Dims;
use super::simd::{get, put};
use crate::layers::BatchNorm2d;

/// Batch norm of one batch as `z · scale + shift`.
pub(crate) struct Norm {
    pub mean: Vec<f32>,
    /// Biased.
    pub var: Vec<f32>,
    inv_std: Vec<f64>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Norm {
    /// From chunks of sums and sums of squares.
    pub fn new(chunks: &[Vec<f64>], dims: Dims, gamma: &[f32], beta: &[f32]) -> Self {
        let count = dims.count() as f64;
        let totals = add_chunks(chunks, 2 * dims.c);
        let (sum, squares) = totals.split_at(dims.c);
        let mean: Vec<f64> = sum.iter().map(|s| s / count).collect();
        let var: Vec<f64> = squares.iter().zip(&mean).map(|(s, m)| (s / count - m * m).max(0.0)).collect();
        let inv_std: Vec<f64> = var.iter().map(|v| 1.0 / (v + BatchNorm2d::EPS).sqrt()).collect();
        let scale: Vec<f64> = inv_std.iter().zip(gamma).map(|(s, &g)| s * f64::from(g)).collect();
        let shift = mean.iter().zip(&scale).zip(beta).map(|((m, s), &b)| (f64::from(b) - m * s) as f32).collect();
        let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect();
        Self { mean: narrow(&mean), var: narrow(&var), scale: narrow(&scale), inv_std, shift }
    }

    /// Fills `out` with `activation(z · scale + shift + residual)`.
    pub fn apply(&self, z: &[f32], dims: Dims, residual: Option<&[f32]>, bounds: Bounds, out: &mut [f32]) {
        let (arch, len) = (Arch::new(), chunk_len(dims));
        out.par_chunks_mut(len)
            .enumerate()
            .for_each(|(i, out)| arch.dispatch(Apply { norm: self, z, residual, bounds, dims, begin: i * len, out }));
    }

    /// Fills `dz` with the gradient with respect to `z` and returns those of gamma and beta.
    pub fn backward(&self, z: &[f32], dims: Dims, grad: &[f32], dz: &mut [f32]) -> [Vec<f32>; 2] {
        let (totals, linear) = self.backward_terms(z, dims, grad, Bounds::NONE);
        let (arch, len) = (Arch::new(), chunk_len(dims));
        dz.par_chunks_mut(len).enumerate().for_each(|(i, dz)| {
            let (grad, bounds) = (Some(grad), Bounds::NONE);
            arch.dispatch(Input { norm: self, grad, bounds, z, linear: &linear, dims, begin: i * len, dz });
        });
        totals
    }

    /// [`Norm::backward`] in place; the gradient is that behind an activation with `bounds` on the batch norm's output.
    pub fn backward_in_place(&self, z: &[f32], dims: Dims, grad: &mut [f32], bounds: Bounds) -> [Vec<f32>; 2] {
        let (totals, linear) = self.backward_terms(z, dims, grad, bounds);
        let (arch, len) = (Arch::new(), chunk_len(dims));
        grad.par_chunks_mut(len).enumerate().for_each(|(i, dz)| {
            arch.dispatch(Input { norm: self, grad: None, bounds, z, linear: &linear, dims, begin: i * len, dz });
        });
        totals
    }

    /// The gradients of gamma and beta, and that of `z` as a function of the gradient.
    fn backward_terms(&self, z: &[f32], dims: Dims, grad: &[f32], bounds: Bounds) -> ([Vec<f32>; 2], Linear) {
        let (arch, len) = (Arch::new(), chunk_len(dims));
        let chunks: Vec<Vec<f32>> = z
            .par_chunks(len)
            .enumerate()
            .map(|(i, z)| arch.dispatch(Sums { norm: self, grad, bounds, z, dims, begin: i * len }))
            .collect();
        let totals = add_chunks(&chunks, 2 * dims.c);
        let (sum, product) = totals.split_at(dims.c);
        let count = dims.count() as f64;
        // dz = scale · (g - Σg/n - (z - mean) · inv_std² · Σg(z - mean)/n), linear in g and z.
        let slope: Vec<f64> = (0..dims.c)
            .map(|c| -f64::from(self.scale[c]) * self.inv_std[c] * self.inv_std[c] * product[c] / count)
            .collect();
        let offset = (0..dims.c)
            .map(|c| (-f64::from(self.scale[c]) * sum[c] / count - slope[c] * f64::from(self.mean[c])) as f32)
            .collect();
        let dgamma = product.iter().zip(&self.inv_std).map(|(p, s)| (p * s) as f32).collect();
        let dbeta = sum.iter().map(|&s| s as f32).collect();
        ([dgamma, dbeta], Linear { slope: slope.iter().map(|&s| s as f32).collect(), offset })
    }
}

/// `g · scale + z · slope + offset` per channel.
struct Linear {
    slope: Vec<f32>,
    offset: Vec<f32>,
}

fn chunk_len(dims: Dims) -> usize {
    dims.chunk_positions() * dims.position_len()
}

/// The sums over all chunks, in f64 and in order.
fn add_chunks<T: Copy + Into<f64>>(chunks: &[Vec<T>], len: usize) -> Vec<f64> {
    let mut totals = vec![0.0; len];
    for chunk in chunks {
        for (total, &value) in totals.iter_mut().zip(chunk) {
            *total += value.into();
        }
    }
    totals
}

struct Apply<'a> {
    norm: &'a Norm,
    z: &'a [f32],
    residual: Option<&'a [f32]>,
    bounds: Bounds,
    dims: Dims,
    begin: usize,
    out: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, z, residual, bounds, dims: Dims { c, n, .. }, begin, out } = self;
        for (row, out) in out.chunks_exact_mut(n).enumerate() {
            let (first, channel) = (begin + row * n, row % c);
            let (scale, shift) = (simd.splat_f32s(norm.scale[channel]), simd.splat_f32s(norm.shift[channel]));
            let z = &z[first..first + n];
            let residual = residual.map(|r| &r[first..first + n]);
            for at in (0..n).step_by(S::F32_LANES) {
                let mut v = simd.mul_add_e_f32s(get(simd, z, at), scale, shift);
                if let Some(residual) = residual {
                    v = simd.add_f32s(v, get(simd, residual, at));
                }
                put(simd, out, at, bounds.cut(simd, v));
            }
        }
    }
}

/// Per channel the sums of `g` and of `g · (z - mean)`.
struct Sums<'a> {
    norm: &'a Norm,
    grad: &'a [f32],
    bounds: Bounds,
    z: &'a [f32],
    dims: Dims,
    begin: usize,
}

impl WithSimd for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { norm, grad, bounds, z, dims: Dims { c, n, .. }, begin } = self;
        let mut sums = vec![simd.splat_f32s(0.0); 2 * c];
        let (sums, products) = sums.split_at_mut(c);
        for (row, z) in z.chunks_exact(n).enumerate() {
            let (first, channel) = (begin + row * n, row % c);
            let (scale, shift) = (simd.splat_f32s(norm.scale[channel]), simd.splat_f32s(norm.shift[channel]));
            let mean = simd.splat_f32s(norm.mean[channel]);
            let grad = &grad[first..first + n];
            let (mut sum, mut product) = (sums[channel], products[channel]);
            for at in (0..n).step_by(S::F32_LANES) {
                let z = get(simd, z, at);
                // Lanes beyond the row are 0 here.
                let mut g = get(simd, grad, at);
                if bounds != Bounds::NONE {
                    // The very expression of the forward pass, so that the same values are cut off.
                    g = bounds.slope(simd, g, simd.mul_add_e_f32s(z, scale, shift));
                }
                sum = simd.add_f32s(sum, g);
                product = simd.mul_add_e_f32s(g, simd.sub_f32s(z, mean), product);
            }
            (sums[channel], products[channel]) = (sum, product);
        }
        sums.iter().chain(&*products).map(|&v| simd.reduce_sum_f32s(v)).collect()
    }
}

/// The gradient with respect to `z`; in place unless there is `grad`.
struct Input<'a> {
    norm: &'a Norm,
    grad: Option<&'a [f32]>,
    bounds: Bounds,
    z: &'a [f32],
    linear: &'a Linear,
    dims: Dims,
    begin: usize,
    dz: &'a mut [f32],
}

impl WithSimd for Input<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, grad, bounds, z, linear, dims: Dims { c, n, .. }, begin, dz } = self;
        for (row, dz) in dz.chunks_exact_mut(n).enumerate() {
            let (first, channel) = (begin + row * n, row % c);
            let (scale, shift) = (simd.splat_f32s(norm.scale[channel]), simd.splat_f32s(norm.shift[channel]));
            let (slope, offset) = (simd.splat_f32s(linear.slope[channel]), simd.splat_f32s(linear.offset[channel]));
            let z = &z[first..first + n];
            let grad = grad.map(|g| &g[first..first + n]);
            for at in (0..n).step_by(S::F32_LANES) {
                let z = get(simd, z, at);
                let mut g = get(simd, grad.unwrap_or(dz), at);
                if bounds != Bounds::NONE {
                    // The very expression of the forward pass, so that the same values are cut off.
                    g = bounds.slope(simd, g, simd.mul_add_e_f32s(z, scale, shift));
                }
                put(simd, dz, at, simd.mul_add_e_f32s(g, scale, simd.mul_add_e_f32s(z, slope, offset)));
            }
        }
    }
}

/// The sum per channel.
pub(crate) fn channel_sums(x: &[f32], dims: Dims) -> Vec<f32> {
    let arch = Arch::new();
    let chunks: Vec<Vec<f32>> = x.par_chunks(chunk_len(dims)).map(|x| arch.dispatch(ChannelSums { x, dims })).collect();
    add_chunks(&chunks, dims.c).iter().map(|&s| s as f32).collect()
}

struct ChannelSums<'a> {
    x: &'a [f32],
    dims: Dims,
}

impl WithSimd for ChannelSums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut sums = vec![simd.splat_f32s(0.0); self.dims.c];
        for (row, x) in self.x.chunks_exact(self.dims.n).enumerate() {
            for at in (0..x.len()).step_by(S::F32_LANES) {
                let sum = &mut sums[row % self.dims.c];
                *sum = simd.add_f32s(*sum, get(simd, x, at));
            }
        }
        sums.into_iter().map(|v| simd.reduce_sum_f32s(v)).collect()
    }
}
