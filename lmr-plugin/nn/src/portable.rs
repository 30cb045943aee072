//! Layers composed of plain Candle operations: right on every device, forward and backward, and the reference for the
//! CPU kernels.
//!
//! Some of Candle's own operations are avoided: `max_pool2d` and `avg_pool2d` (gradients wrong, kernel must equal stride),
//! ReLU at 0 (gradient 1 instead of 0), the strided convolution on images whose height and width leave different remainders
//! (fails), and the fused softmax and layer norm (no gradient, no error).

use candle_core::{D, Tensor};

use crate::error::{GeometryError, Result};
use crate::layers::{Activation, BatchNorm2d, ConvConfig};
use crate::padding::Padding;
use crate::path::factor;

/// `max(x, 0)` with gradient 0 at 0.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gt(0f64)?.where_cond(x, &x.zeros_like()?)?)
}

/// `activation(x + residual)`.
pub(crate) fn finish(x: Tensor, residual: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let x = match residual {
        Some(residual) => (x + residual)?,
        None => x,
    };
    activate(&x, activation)
}

/// An activation of a tensor of any shape.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(x.clone()),
        Activation::Relu => relu(x),
        Activation::Relu6 => {
            let six = x.zeros_like()?.affine(0.0, 6.0)?;
            relu(&x.lt(6f64)?.where_cond(x, &six)?)
        }
        Activation::Gelu => Ok(x.gelu_erf()?),
    }
}

/// Convolution without bias.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    Ok(correlate(&factor(x)?, &factor(weight)?, config)?.to_dtype(x.dtype())?)
}

fn correlate(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let [_, _, oh, ow] = config.output_dims(x.dims4()?.into(), weight)?;
    let ConvConfig { stride, padding, dilation, groups } = *config;
    let (_, _, h, w) = x.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    let used = |outputs: usize, taps: usize| (outputs - 1) * stride + dilation * (taps - 1) + 1;
    let (used_h, used_w) = (used(oh, kh), used(ow, kw));
    let around = |size: usize, taps: usize| padding.around(size, dilation * (taps - 1) + 1, stride);
    let ((above, below), (left, right)) = (around(h, kh), around(w, kw));
    let (rest_h, rest_w) = (above + h + below - used_h, left + w + right - used_w);
    if rest_h == rest_w && rest_h <= h.min(w) && [below, left, right] == [above; 3] {
        return Ok(x.conv2d(weight, above, stride, dilation, groups)?);
    }
    // Candle pads the gradient of the input by what the height leaves unused, so leave nothing unused.
    let padded = x.pad_with_zeros(2, above, below)?.pad_with_zeros(3, left, right)?;
    let exact = padded.narrow(2, 0, used_h)?.narrow(3, 0, used_w)?.contiguous()?;
    Ok(exact.conv2d(weight, 0, stride, dilation, groups)?)
}

/// Adds one value per channel.
pub(crate) fn add_channels(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(&bias.reshape((1, (), 1, 1))?)?)
}

/// The mean and the biased variance per channel, `f32[1,C,1,1]`, differentiable.
pub(crate) fn batch_stats(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.mean_keepdim((0, 2, 3))?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
    Ok((mean, var))
}

/// Batch norm with the given statistics.
pub(crate) fn normalize(x: &Tensor, mean: &Tensor, var: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let std = (var + BatchNorm2d::EPS)?.sqrt()?;
    let scaled = x.broadcast_sub(mean)?.broadcast_div(&std)?.broadcast_mul(&gamma.reshape((1, (), 1, 1))?)?;
    add_channels(&scaled, beta)
}

/// Pooling by averages along the rows and along the columns: `averages` are `f32[oh,h]` and `f32[ow,w]`.
pub(crate) fn average(x: &Tensor, averages: (&Tensor, &Tensor)) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (oh, ow) = (averages.0.dim(0)?, averages.1.dim(0)?);
    // Sides last, one after the other, so that both are plain matrix products.
    let columns = x.contiguous()?.reshape((b * c * h, w))?.matmul(&averages.1.t()?)?;
    let turned = columns.reshape((b * c, h, ow))?.transpose(1, 2)?.contiguous()?.reshape((b * c * ow, h))?;
    let rows = turned.matmul(&averages.0.t()?)?;
    Ok(rows.reshape((b * c, ow, oh))?.transpose(1, 2)?.contiguous()?.reshape((b, c, oh, ow))?)
}

/// `x · Wᵀ` over the last dimension.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let rows = factor(&x.contiguous()?.reshape(((), inputs))?)?;
    Ok(rows.matmul(&factor(weight)?.t()?)?.to_dtype(x.dtype())?.reshape(dims)?)
}

/// Layer norm over the last dimension.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(centred.broadcast_div(&std)?.broadcast_mul(gamma)?.broadcast_add(beta)?)
}

/// Attention of `heads` heads, `f32[B,T,3D]` to `f32[B,T,D]`.
pub(crate) fn attend(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, features) = qkv.dims3()?;
    let d = features / 3 / heads;
    let qkv = qkv.reshape((b, t, 3, heads, d))?;
    let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (factor(&part(0)?)?, factor(&part(1)?)?, factor(&part(2)?)?);
    let scores = q.matmul(&k.t()?.contiguous()?)?.to_dtype(qkv.dtype())?.affine(1.0 / (d as f64).sqrt(), 0.0)?;
    // The largest score only keeps the exponentials small: softmax does not depend on it, so neither does backward.
    let powers = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let shares = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
    let mixed = factor(&shares)?.matmul(&v)?.to_dtype(qkv.dtype())?;
    Ok(mixed.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * d))?)
}

/// Max pooling; the first maximum of a window, in reading order, gets the gradient.
pub(crate) fn max_pool2d(
    x: &Tensor,
    (oh, ow): (usize, usize),
    kernel: usize,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let ((above, below), (left, right)) = (padding.around(h, kernel, stride), padding.around(w, kernel, stride));
    let never = |dims: [usize; 4]| Tensor::full(f32::NEG_INFINITY, &dims, x.device())?.to_dtype(x.dtype());
    let beside = |x: Tensor, dim: usize, before: usize, behind: usize| {
        let edge = |count: usize| {
            let mut dims = x.dims4().map(<[usize; 4]>::from)?;
            dims[dim] = count;
            never(dims)
        };
        match (before, behind) {
            (0, 0) => Ok(x),
            (0, _) => Tensor::cat(&[&x, &edge(behind)?], dim),
            (_, 0) => Tensor::cat(&[&edge(before)?, &x], dim),
            _ => Tensor::cat(&[&edge(before)?, &x, &edge(behind)?], dim),
        }
    };
    let x = beside(beside(x.contiguous()?, 3, left, right)?, 2, above, below)?;
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
    best.ok_or_else(|| GeometryError::Pooling { image: (h, w), kernel, stride, padding }.into())
}
