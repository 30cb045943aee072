//! Pooling over blocked activations.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::access::{blocked, slice, tensor, with_slice};
use super::layout::Dims;

/// Max pooling; keeps which tap of each window won.
struct MaxPool {
    x: Dims,
    y: Dims,
    kernel: usize,
    stride: usize,
    padding: usize,
    winners: OnceLock<Vec<u8>>,
}

impl MaxPool {
    fn new(x: Dims, (h, w): (usize, usize), kernel: usize, stride: usize, padding: usize) -> Self {
        let y = Dims { h, w, ..x };
        Self { x, y, kernel, stride, padding, winners: OnceLock::new() }
    }

    /// The input position under `tap` of output position `position`, unless it is padding.
    fn source(&self, position: usize, tap: usize) -> Option<usize> {
        let Dims { h, w, .. } = self.y;
        let (g, y, x) = (position / (h * w), position / w % h, position % w);
        let iy = (y * self.stride + tap / self.kernel).checked_sub(self.padding).filter(|&i| i < self.x.h)?;
        let ix = (x * self.stride + tap % self.kernel).checked_sub(self.padding).filter(|&i| i < self.x.w)?;
        Some((g * self.x.h + iy) * self.x.w + ix)
    }

    /// The maxima, and the taps (in reading order) of the first maximum of each window.
    fn forward(&self, input: &[f32]) -> (Vec<f32>, Vec<u8>) {
        let len = self.y.position_len();
        let mut out = vec![0.0; self.y.len()];
        let mut winners = vec![0u8; self.y.len()];
        out.par_chunks_mut(len).zip(winners.par_chunks_mut(len)).enumerate().for_each(|(position, (out, winners))| {
            out.fill(f32::NEG_INFINITY);
            for tap in 0..self.kernel * self.kernel {
                let Some(source) = self.source(position, tap) else { continue };
                let input = &input[source * len..][..len];
                for ((out, winner), &value) in out.iter_mut().zip(winners.iter_mut()).zip(input) {
                    if value > *out || value.is_nan() {
                        (*out, *winner) = (value, tap as u8);
                    }
                }
            }
        });
        (out, winners)
    }

    /// The gradient with respect to the input.
    fn backward(&self, dy: &[f32], winners: &[u8]) -> Vec<f32> {
        let len = self.y.position_len();
        let mut dx = vec![0.0; self.x.len()];
        // Windows overlap, so each block of images is one task.
        let (block_x, block_y) = (self.x.h * self.x.w * len, self.y.h * self.y.w);
        dx.par_chunks_mut(block_x).enumerate().for_each(|(g, dx)| {
            for position in g * block_y..(g + 1) * block_y {
                let (dy, winners) = (&dy[position * len..][..len], &winners[position * len..][..len]);
                for tap in 0..self.kernel * self.kernel {
                    let Some(source) = self.source(position, tap) else { continue };
                    let source = source * len - g * block_x;
                    for ((dx, dy), &winner) in dx[source..source + len].iter_mut().zip(dy).zip(winners) {
                        *dx += if usize::from(winner) == tap { *dy } else { 0.0 };
                    }
                }
            }
        });
        dx
    }
}

/// The mean over positions: `[B,C]`.
fn average(x: &[f32], dims: Dims) -> Vec<f32> {
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

/// The gradient of [`average`].
fn average_backward(dy: &[f32], dims: Dims) -> Vec<f32> {
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

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, winners) = self.forward(slice(x, l)?);
        match self.winners.set(winners) {
            Ok(()) => Ok(blocked(y, self.y)),
            Err(_) => bail!("a max pooling operation ran twice"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else { bail!("max pooling was not run forward") };
        let dx = with_slice(dy, |dy| Ok(self.backward(dy, winners)))?;
        Ok(Some(tensor(dx, &self.x.shape())?))
    }
}

/// The mean over positions.
struct Average(Dims);

impl CustomOp1 for Average {
    fn name(&self) -> &'static str {
        "global-average"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let Dims { g, c, n, .. } = self.0;
        Ok((CpuStorage::F32(average(slice(x, l)?, self.0)), Shape::from((g * n, c))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(dy, |dy| Ok(average_backward(dy, self.0)))?;
        Ok(Some(tensor(dx, &self.0.shape())?))
    }
}

/// Max pooling of a blocked activation; differentiable.
pub(in super::super) fn max_pool2d(
    x: &Tensor,
    size: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    x.contiguous()?.apply_op1(MaxPool::new(Dims::of(x)?, size, kernel, stride, padding))
}

/// The mean over height and width of a blocked activation: `[B,C]`; differentiable.
pub(in super::super) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Average(Dims::of(x)?))
}
