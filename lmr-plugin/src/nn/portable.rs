//! Layers composed of plain Candle operations: right on every device, forward and backward, and the reference for the
//! CPU kernels.
//!
//! Three of Candle's own gradients are avoided: `max_pool2d` (wrong), ReLU at 0 (1 instead of 0) and the strided
//! convolution on images whose height and width leave different remainders (fails).

use candle_core::Tensor;

use super::{Activation, BatchNorm2d, ConvConfig};
use crate::{Error, Result};

/// `max(x, 0)` with gradient 0 at 0.
pub(super) fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gt(0f64)?.where_cond(x, &x.zeros_like()?)?)
}

/// `activation(x + residual)`.
pub(super) fn finish(x: Tensor, residual: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let x = match residual {
        Some(residual) => (x + residual)?,
        None => x,
    };
    match activation {
        Activation::None => Ok(x),
        Activation::Relu => relu(&x),
    }
}

/// Convolution without bias.
pub(super) fn conv2d(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let [_, _, oh, ow] = config.output_dims(x.dims4()?.into(), weight)?;
    let ConvConfig { stride, padding, dilation, groups } = *config;
    let (_, _, h, w) = x.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    let used = |outputs: usize, taps: usize| (outputs - 1) * stride + dilation * (taps - 1) + 1;
    let (used_h, used_w) = (used(oh, kh), used(ow, kw));
    let (rest_h, rest_w) = (h + 2 * padding - used_h, w + 2 * padding - used_w);
    if rest_h == rest_w && rest_h <= h.min(w) {
        return Ok(x.conv2d(weight, padding, stride, dilation, groups)?);
    }
    // Candle pads the gradient of the input by what the height leaves unused, so leave nothing unused.
    let padded = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let exact = padded.narrow(2, 0, used_h)?.narrow(3, 0, used_w)?.contiguous()?;
    Ok(exact.conv2d(weight, 0, stride, dilation, groups)?)
}

/// Adds one value per channel.
pub(super) fn add_channels(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(&bias.reshape((1, (), 1, 1))?)?)
}

/// The mean and the biased variance per channel, `f32[1,C,1,1]`, differentiable.
pub(super) fn batch_stats(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.mean_keepdim((0, 2, 3))?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
    Ok((mean, var))
}

/// Batch norm with the given statistics.
pub(super) fn normalize(x: &Tensor, mean: &Tensor, var: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let std = (var + BatchNorm2d::EPS)?.sqrt()?;
    let scaled = x.broadcast_sub(mean)?.broadcast_div(&std)?.broadcast_mul(&gamma.reshape((1, (), 1, 1))?)?;
    add_channels(&scaled, beta)
}

/// Max pooling; the first maximum of a window, in reading order, gets the gradient.
pub(super) fn max_pool2d(
    x: &Tensor,
    (oh, ow): (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let never = |dims: [usize; 4]| Tensor::full(f32::NEG_INFINITY, &dims, x.device())?.to_dtype(x.dtype());
    let x = if padding > 0 {
        let side = never([b, c, h, padding])?;
        let rows = Tensor::cat(&[&side, &x.contiguous()?, &side], 3)?;
        let edge = never([b, c, padding, w + 2 * padding])?;
        Tensor::cat(&[&edge, &rows, &edge], 2)?
    } else {
        x.contiguous()?
    };
    let pick = |outputs: usize, tap: usize| {
        let positions: Vec<u32> = (0..outputs).map(|o| (o * stride + tap) as u32).collect();
        Tensor::new(positions, x.device())
    };
    let mut best: Option<Tensor> = None;
    for ky in 0..kernel {
        let rows = x.index_select(&pick(oh, ky)?, 2)?;
        for kx in 0..kernel {
            let tap = rows.index_select(&pick(ow, kx)?, 3)?;
            best = Some(match best {
                Some(best) => tap.gt(&best)?.where_cond(&tap, &best)?,
                None => tap,
            });
        }
    }
    best.ok_or_else(|| Error::invalid("max pooling: the kernel is empty"))
}

/// Height and width that pooling leaves, if the window fits.
pub(super) fn pooled_size(
    (h, w): (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<(usize, usize)> {
    let fits = kernel > 0 && stride > 0 && 2 * padding <= kernel && h.min(w) + 2 * padding >= kernel;
    if !fits || kernel > 15 {
        return Err(Error::invalid(format!(
            "max pooling: kernel {kernel} (at most 15), stride {stride} and padding {padding} do not fit a {h}x{w} image"
        )));
    }
    let output = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    Ok((output(h), output(w)))
}
