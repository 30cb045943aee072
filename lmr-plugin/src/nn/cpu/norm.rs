//! Batch norm, residual and ReLU over blocked activations: a forward pass and two backward passes, each fused.

use pulp::Arch;
use rayon::prelude::*;

use super::layout::Dims;
use super::output;

/// Statistics of a batch per channel.
pub(super) struct Moments {
    pub mean: Vec<f32>,
    /// Biased.
    pub var: Vec<f32>,
}

impl Moments {
    /// From the sums and sums of squares of chunks, added in f64 and in order.
    pub fn from_sums(chunks: &[Vec<f32>], dims: Dims) -> Self {
        let count = dims.count() as f64;
        let totals = add_chunks(chunks, 2 * dims.c);
        let (sum, squares) = totals.split_at(dims.c);
        let mean: Vec<f64> = sum.iter().map(|s| s / count).collect();
        let var = squares.iter().zip(&mean).map(|(s, m)| (s / count - m * m).max(0.0) as f32).collect();
        Self { mean: mean.iter().map(|&m| m as f32).collect(), var }
    }
}

/// The sums over all chunks, in f64 and in order.
fn add_chunks(chunks: &[Vec<f32>], len: usize) -> Vec<f64> {
    let mut totals = vec![0.0; len];
    for chunk in chunks {
        for (total, &value) in totals.iter_mut().zip(chunk) {
            *total += f64::from(value);
        }
    }
    totals
}

/// `relu(z · scale + shift + residual)` per channel.
pub(super) fn affine(
    z: &[f32],
    dims: Dims,
    scale: &[f32],
    shift: &[f32],
    residual: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let mut out = output(dims.len());
    let len = dims.chunk_positions() * dims.position_len();
    let (arch, floor) = (Arch::new(), if relu { 0.0 } else { f32::NEG_INFINITY });
    // NaN stays NaN, unlike with `f32::max`.
    let rectify = |v: f32| if v < floor { floor } else { v };
    out.par_chunks_mut(len).enumerate().for_each(|(chunk, out)| {
        arch.dispatch(
            #[inline(always)]
            || {
                let begin = chunk * len;
                for (row, out) in out.chunks_exact_mut(dims.n).enumerate() {
                    let (at, channel) = (begin + row * dims.n, row % dims.c);
                    let (a, b) = (scale[channel], shift[channel]);
                    let z = &z[at..at + dims.n];
                    match residual {
                        Some(residual) => {
                            for ((out, z), r) in out.iter_mut().zip(z).zip(&residual[at..at + dims.n]) {
                                *out = rectify(z * a + b + r);
                            }
                        }
                        None => {
                            for (out, z) in out.iter_mut().zip(z) {
                                *out = rectify(z * a + b);
                            }
                        }
                    }
                }
            },
        )
    });
    out
}

/// The gradient before the activation, `dy` where `y > 0`, and per channel its sum and its product with `z - mean`.
pub(super) fn gradient_sums(
    dy: &[f32],
    y: &[f32],
    z: &[f32],
    mean: &[f32],
    dims: Dims,
    relu: bool,
) -> (Vec<f64>, Vec<f64>) {
    let len = dims.chunk_positions() * dims.position_len();
    let arch = Arch::new();
    let sums: Vec<Vec<f32>> = dy
        .par_chunks(len)
        .enumerate()
        .map(|(chunk, dy)| {
            arch.dispatch(
                #[inline(always)]
                || {
                    let begin = chunk * len;
                    let mut sums = vec![0.0; 2 * dims.c];
                    for (row, dy) in dy.chunks_exact(dims.n).enumerate() {
                        let (at, channel) = (begin + row * dims.n, row % dims.c);
                        let (y, z) = (&y[at..at + dims.n], &z[at..at + dims.n]);
                        let (sum, product) = row_sums(dy, y, z, mean[channel], relu);
                        sums[channel] += sum;
                        sums[dims.c + channel] += product;
                    }
                    sums
                },
            )
        })
        .collect();
    let mut totals = add_chunks(&sums, 2 * dims.c);
    let products = totals.split_off(dims.c);
    (totals, products)
}

/// Sums over one row, in 16 lanes so that the compiler may vectorize them without reordering.
#[inline(always)]
fn row_sums(dy: &[f32], y: &[f32], z: &[f32], mean: f32, relu: bool) -> (f32, f32) {
    let (mut sum, mut product) = ([0.0f32; 16], [0.0f32; 16]);
    let mut add = |lane: usize, dy: f32, y: f32, z: f32| {
        let g = if !relu || y > 0.0 { dy } else { 0.0 };
        sum[lane] += g;
        product[lane] += g * (z - mean);
    };
    let whole = dy.len() / 16 * 16;
    for at in (0..whole).step_by(16) {
        for lane in 0..16 {
            add(lane, dy[at + lane], y[at + lane], z[at + lane]);
        }
    }
    for at in whole..dy.len() {
        add(at - whole, dy[at], y[at], z[at]);
    }
    (sum.iter().sum(), product.iter().sum())
}

/// `g · scale + z · slope + shift` per channel, where `g` is `dy` masked by `y > 0` if `relu`.
pub(super) fn gradient(
    dy: &[f32],
    y: &[f32],
    z: &[f32],
    dims: Dims,
    [scale, slope, shift]: [&[f32]; 3],
    relu: bool,
) -> Vec<f32> {
    let len = dims.chunk_positions() * dims.position_len();
    let (arch, mut dz) = (Arch::new(), output(dims.len()));
    dz.par_chunks_mut(len).enumerate().for_each(|(chunk, dz)| {
        arch.dispatch(
            #[inline(always)]
            || {
                let begin = chunk * len;
                for (row, dz) in dz.chunks_exact_mut(dims.n).enumerate() {
                    let (at, channel) = (begin + row * dims.n, row % dims.c);
                    let (a, b, c) = (scale[channel], slope[channel], shift[channel]);
                    let (dy, y, z) = (&dy[at..at + dims.n], &y[at..at + dims.n], &z[at..at + dims.n]);
                    for (((dz, dy), y), z) in dz.iter_mut().zip(dy).zip(y).zip(z) {
                        let g = if !relu || *y > 0.0 { *dy } else { 0.0 };
                        *dz = g * a + z * b + c;
                    }
                }
            },
        )
    });
    dz
}

/// `dy` where `y > 0`, else 0.
pub(super) fn mask(dy: &[f32], y: &[f32]) -> Vec<f32> {
    const LEN: usize = 1 << 16;
    let (arch, mut out) = (Arch::new(), output(dy.len()));
    out.par_chunks_mut(LEN).zip(dy.par_chunks(LEN).zip(y.par_chunks(LEN))).for_each(|(out, (dy, y))| {
        arch.dispatch(
            #[inline(always)]
            || {
                for ((out, dy), y) in out.iter_mut().zip(dy).zip(y) {
                    *out = if *y > 0.0 { *dy } else { 0.0 };
                }
            },
        )
    });
    out
}

/// The sum per channel.
pub(super) fn channel_sums(x: &[f32], dims: Dims) -> Vec<f32> {
    let len = dims.chunk_positions() * dims.position_len();
    let arch = Arch::new();
    let sums: Vec<Vec<f32>> = x
        .par_chunks(len)
        .map(|x| {
            arch.dispatch(
                #[inline(always)]
                || {
                    let mut sums = vec![0.0; dims.c];
                    for (row, x) in x.chunks_exact(dims.n).enumerate() {
                        sums[row % dims.c] += row_sums(x, x, x, 0.0, false).0;
                    }
                    sums
                },
            )
        })
        .collect();
    add_chunks(&sums, dims.c).iter().map(|&s| s as f32).collect()
}
