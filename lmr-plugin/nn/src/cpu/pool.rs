//! Pooling over blocked activations.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::access::{blocked, slice, tensor, with_slice};
use super::conv::geometry::Geometry;
use super::layout::Dims;
use crate::layers::ConvConfig;
use crate::padding::Padding;
use crate::pool::Windows;

/// Max pooling.
#[derive(Clone, Copy)]
pub(crate) struct MaxPool(Geometry);

impl MaxPool {
    /// Of windows that fit and have at most 255 taps.
    pub fn new(x: Dims, (h, w): (usize, usize), kernel: usize, stride: usize, padding: Padding) -> Self {
        let config = ConvConfig { stride, padding, dilation: 1, groups: 1 };
        Self(Geometry::between(x, Dims { h, w, ..x }, (kernel, kernel), config))
    }

    /// Dimensions of the output.
    pub fn y(&self) -> Dims {
        self.0.y
    }

    /// Fills `out` with the maxima and `winners` with the taps (in reading order) of the first maximum of each window.
    pub fn forward(&self, input: &[f32], out: &mut [f32], winners: &mut [u8]) {
        let Geometry { x, y, kw, .. } = self.0;
        let (axes, len) = (self.0.forward_axes(), y.position_len());
        out.par_chunks_mut(len).zip(winners.par_chunks_mut(len)).enumerate().for_each(|(position, (out, winners))| {
            let (g, oy, ox) = (position / (y.h * y.w), position / y.w % y.h, position % y.w);
            out.fill(f32::NEG_INFINITY);
            for &(iy, ky) in axes.0.taps(oy) {
                for &(ix, kx) in axes.1.taps(ox) {
                    let (source, tap) = ((g * x.h + iy) * x.w + ix, (ky * kw + kx) as u8);
                    let input = &input[source * len..][..len];
                    for ((out, winner), &value) in out.iter_mut().zip(winners.iter_mut()).zip(input) {
                        let wins = value > *out || value.is_nan();
                        *out = if wins { value } else { *out };
                        *winner = if wins { tap } else { *winner };
                    }
                }
            }
        });
    }

    /// Fills `dx` with the gradient with respect to the input.
    pub fn backward(&self, dy: &[f32], winners: &[u8], dx: &mut [f32]) {
        let Geometry { x, y, kw, .. } = self.0;
        let (axes, len) = (self.0.backward_axes(), x.position_len());
        dx.par_chunks_mut(len).enumerate().for_each(|(position, dx)| {
            let (g, iy, ix) = (position / (x.h * x.w), position / x.w % x.h, position % x.w);
            dx.fill(0.0);
            for &(oy, ky) in axes.0.taps(iy) {
                for &(ox, kx) in axes.1.taps(ix) {
                    let (from, tap) = (((g * y.h + oy) * y.w + ox) * len, (ky * kw + kx) as u8);
                    for ((dx, dy), &winner) in dx.iter_mut().zip(&dy[from..from + len]).zip(&winners[from..from + len])
                    {
                        *dx += if winner == tap { *dy } else { 0.0 };
                    }
                }
            }
        });
    }
}

struct MaxPoolOp {
    pool: MaxPool,
    winners: OnceLock<Vec<u8>>,
}

impl CustomOp1 for MaxPoolOp {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let len = self.pool.y().len();
        let (mut y, mut winners) = (vec![0.0; len], vec![0; len]);
        self.pool.forward(slice(x, l)?, &mut y, &mut winners);
        match self.winners.set(winners) {
            Ok(()) => Ok(blocked(y, self.pool.y())),
            Err(_) => bail!("a max pooling operation ran twice"),
        }
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else { bail!("max pooling was not run forward") };
        let mut dx = vec![0.0; x.elem_count()];
        with_slice(dy, |dy| {
            self.pool.backward(dy, winners, &mut dx);
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.dims())?))
    }
}

/// Averages over windows.
struct Average {
    x: Dims,
    y: Dims,
    /// Along rows and columns.
    windows: (Windows, Windows),
}

/// Fills `out` with weighted sums of the positions of `input` that the windows name.
fn weighted_sums(input: &[f32], (from, to): (Dims, Dims), windows: (&Windows, &Windows), out: &mut [f32]) {
    let len = to.position_len();
    out.par_chunks_mut(len).enumerate().for_each(|(position, out)| {
        let (g, y, x) = (position / (to.h * to.w), position / to.w % to.h, position % to.w);
        for &(iy, row) in windows.0.of(y) {
            for &(ix, column) in windows.1.of(x) {
                let (source, share) = ((g * from.h + iy) * from.w + ix, row * column);
                for (out, value) in out.iter_mut().zip(&input[source * len..][..len]) {
                    *out += share * value;
                }
            }
        }
    });
}

impl CustomOp1 for Average {
    fn name(&self) -> &'static str {
        "average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; self.y.len()];
        weighted_sums(slice(x, l)?, (self.x, self.y), (&self.windows.0, &self.windows.1), &mut y);
        Ok(blocked(y, self.y))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        let transposed = (self.windows.0.transposed(self.x.h), self.windows.1.transposed(self.x.w));
        with_slice(dy, |dy| {
            weighted_sums(dy, (self.y, self.x), (&transposed.0, &transposed.1), &mut dx);
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.dims())?))
    }
}

/// The mean over positions: `[B,C]`.
fn global_average(x: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { g, h, w, c, n } = dims;
    let mut out = vec![0.0; g * n * c];
    let scale = 1.0 / (h * w) as f32;
    for block in 0..g {
        let mut sums = vec![0.0f32; c * n];
        for position in x[block * h * w * c * n..][..h * w * c * n].chunks_exact(c * n) {
            for (sum, value) in sums.iter_mut().zip(position) {
                *sum += value;
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            out[(block * n + i % n) * c + i / n] = sum * scale;
        }
    }
    out
}

/// The gradient of [`global_average`].
fn global_average_backward(dy: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { h, w, c, n, .. } = dims;
    let mut dx = vec![0.0; dims.len()];
    let scale = 1.0 / (h * w) as f32;
    dx.par_chunks_mut(c * n).enumerate().for_each(|(position, dx)| {
        let block = position / (h * w);
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx = dy[(block * n + i % n) * c + i / n] * scale;
        }
    });
    dx
}

/// The mean over positions.
struct GlobalAverage(Dims);

impl CustomOp1 for GlobalAverage {
    fn name(&self) -> &'static str {
        "global-average"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let Dims { g, c, n, .. } = self.0;
        Ok((CpuStorage::F32(global_average(slice(x, l)?, self.0)), Shape::from((g * n, c))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(dy, |dy| Ok(global_average_backward(dy, self.0)))?;
        Ok(Some(tensor(dx, &self.0.shape())?))
    }
}

/// Max pooling of a blocked activation; differentiable.
pub(crate) fn max_pool2d(
    x: &Tensor,
    size: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let pool = MaxPool::new(Dims::of(x)?, size, kernel, stride, padding);
    x.contiguous()?.apply_op1(MaxPoolOp { pool, winners: OnceLock::new() })
}

/// Averages of a blocked activation over windows along rows and columns; differentiable.
pub(crate) fn average(x: &Tensor, rows: Windows, columns: Windows) -> Result<Tensor> {
    let dims = Dims::of(x)?;
    let y = Dims { h: rows.len(), w: columns.len(), ..dims };
    x.contiguous()?.apply_op1(Average { x: dims, y, windows: (rows, columns) })
}

/// The mean over height and width of a blocked activation: `[B,C]`; differentiable.
pub(crate) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(GlobalAverage(Dims::of(x)?))
}
