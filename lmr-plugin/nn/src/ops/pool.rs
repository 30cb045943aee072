//! Pooling, and its opposite.

use candle_core::Tensor;

use super::in_blocks;
use crate::error::Result;
use crate::layout::{Layout, image_dims};
use crate::padding::Padding;
use crate::path::Path;
use crate::pool::{Windows, pooled_size};
use crate::{cpu, portable};

/// Max pooling; padding never wins, and the first maximum of a window gets the gradient.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: impl Into<Padding>) -> Result<Tensor> {
    let padding = padding.into();
    let [_, _, h, w] = image_dims(x)?;
    let size = pooled_size((h, w), kernel, stride, padding)?;
    match Path::of(x) {
        Path::Cpu => {
            let run = |x: &Tensor, _: Option<&Tensor>| Ok((cpu::max_pool2d(x, size, kernel, stride, padding)?, ()));
            Ok(in_blocks(x, None, run)?.0)
        }
        Path::Portable => portable::max_pool2d(x, size, kernel, stride, padding),
    }
}

/// Average pooling; padding counts as zeros.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    let (oh, ow) = pooled_size((h, w), kernel, stride, padding)?;
    let windows = |size, outputs| Windows::sliding(size, outputs, kernel, stride, padding);
    average(x, (h, w), windows(h, oh), windows(w, ow))
}

/// Averages windows that cover the image evenly, so that `size` (height, width) is left.
pub fn adaptive_avg_pool2d(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    if size == (h, w) {
        return Ok(x.clone());
    }
    average(x, (h, w), Windows::adaptive(h, size.0)?, Windows::adaptive(w, size.1)?)
}

/// Twice the height and width, between pixels linearly; as PyTorch does it without aligned corners. Differentiable.
pub fn upsample2d(x: &Tensor) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    average(x, (h, w), Windows::doubled(h), Windows::doubled(w))
}

fn average(x: &Tensor, (h, w): (usize, usize), rows: Windows, columns: Windows) -> Result<Tensor> {
    match Path::of(x) {
        Path::Cpu => Ok(in_blocks(x, None, |x, _| Ok((cpu::average(x, rows, columns)?, ())))?.0),
        Path::Portable => {
            let kind = (x.dtype(), x.device());
            portable::average(x, (&rows.matrix(h, kind)?, &columns.matrix(w, kind)?))
        }
    }
}

/// The mean over height and width: `f32[B,C]`.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    match Layout::of_images(x) {
        Layout::Blocked => Ok(cpu::global_avg_pool(x)?),
        Layout::Standard => Ok(x.flatten_from(2)?.mean(2)?),
    }
}
