//! Convolutions.

use candle_core::Tensor;

use super::norm::normalized;
use super::{in_blocks, to_images};
use crate::error::Result;
use crate::layers::{Activation, ConvBn, ConvConfig, Moments, as_convolution, interleave};
use crate::layout::image_dims;
use crate::path::Path;
use crate::{cpu, portable};

/// The dimensions `[B,O,H,W]` of a convolution's output, or why there is none.
fn output_dims(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<[usize; 4]> {
    config.output_dims(image_dims(x)?, weight)
}

/// `activation(conv(x) + bias + residual)`, not recorded for backward, with weights of the caller's choice.
pub fn conv2d_inference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (x, weight, bias) = (x.detach(), weight.detach(), bias.map(Tensor::detach));
    let residual = residual.map(Tensor::detach);
    output_dims(&x, &weight, config)?;
    match Path::of(&x) {
        Path::Cpu => {
            let (bounds, rest) = cpu::fused(activation);
            let run = |x: &Tensor, residual: Option<&Tensor>| {
                Ok((cpu::conv2d_inference(x, &weight, bias.as_ref(), config, residual, bounds)?, ()))
            };
            rest.apply(&in_blocks(&x, residual.as_ref(), run)?.0)
        }
        Path::Portable => {
            let y = portable::conv2d(&x, &weight, config)?;
            let y = match bias {
                Some(bias) => portable::add_channels(&y, &bias)?,
                None => y,
            };
            portable::finish(y, residual.as_ref(), activation)
        }
    }
}

/// `activation(conv(x) + bias + residual)`, differentiable in every tensor.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    output_dims(x, weight, config)?;
    match Path::of(x) {
        Path::Cpu => {
            let run = |x: &Tensor, residual: Option<&Tensor>| {
                Ok((cpu::conv2d(x, weight, bias, config, residual, activation)?, ()))
            };
            Ok(in_blocks(x, residual, run)?.0)
        }
        Path::Portable => {
            let y = portable::add_channels(&portable::conv2d(x, weight, config)?, bias)?;
            portable::finish(y, residual, activation)
        }
    }
}

/// `activation(batch_norm(conv(x)) + residual)` with the batch's own statistics, which move the running ones.
pub(crate) fn conv_bn_batch(
    x: &Tensor,
    layer: &ConvBn,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (conv, bn) = (layer.conv(), layer.bn());
    let count = check_batch(x, layer)?;
    let beta = shifted_beta(layer)?;
    let (y, moments) = match Path::of(x) {
        Path::Cpu => {
            let (bounds, rest) = cpu::fused(activation);
            let run =
                |x: &Tensor, residual: Option<&Tensor>| cpu::conv_bn(x, cpu_layer(layer, &beta), residual, bounds);
            let (y, moments) = in_blocks(x, residual, run)?;
            (rest.apply(&y)?, moments)
        }
        Path::Portable => {
            let y = portable::conv2d(x, conv.weight(), conv.config())?;
            let (y, moments) = normalized(&y, bn, &beta, count)?;
            (portable::finish(y, residual, activation)?, moments)
        }
    };
    track(layer, moments)?;
    Ok(y)
}

/// Values per channel that a layer normalizes, if its shapes fit and there are enough.
fn check_batch(x: &Tensor, layer: &ConvBn) -> Result<usize> {
    let [b, _, h, w] = output_dims(x, layer.conv().weight(), layer.conv().config())?;
    layer.bn().check_count(b * h * w)?;
    Ok(b * h * w)
}

/// β, recorded with the convolution's bias, if any: batch norm cancels that bias, which therefore only needs a gradient,
/// of zero.
pub(super) fn shifted_beta(layer: &ConvBn) -> Result<Tensor> {
    let beta = layer.bn().bias().as_tensor();
    match layer.conv().bias() {
        Some(bias) => Ok((beta + (bias.as_tensor() - bias.as_tensor())?)?),
        None => Ok(beta.clone()),
    }
}

pub(super) fn cpu_layer<'a>(layer: &'a ConvBn, beta: &'a Tensor) -> cpu::Tensors<'a> {
    let conv = layer.conv();
    cpu::Tensors { weight: conv.weight(), gamma: layer.bn().weight(), beta, config: conv.config() }
}

/// Moves the running statistics towards those of a convolution's output without its bias.
pub(super) fn track(layer: &ConvBn, mut moments: Moments) -> Result<()> {
    if let Some(bias) = layer.conv().bias() {
        moments.mean = (moments.mean + bias.as_detached_tensor())?;
    }
    layer.bn().track(&moments)
}

/// The transposed convolution of a [`ConvTranspose2d`](crate::ConvTranspose2d) with `weight` `f32[C,O,4,4]` and `bias`
/// `f32[O]`, differentiable in every tensor. Answers with images, whatever the layout of `x`.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (weight, bias) = as_convolution(weight, bias)?;
    let config = ConvConfig { padding: 1.into(), ..ConvConfig::default() };
    interleave(&to_images(&conv2d(x, &weight, &bias, &config, None, Activation::None)?)?)
}

/// `activation(x · scale + shift)` with a scale and a shift per channel; differentiable in every tensor.
pub(crate) fn scale_shift(x: &Tensor, scale: &Tensor, shift: &Tensor, activation: Activation) -> Result<Tensor> {
    match Path::of(x) {
        // A depthwise convolution of one tap.
        Path::Cpu => {
            let groups = scale.elem_count();
            let weight = scale.reshape((groups, 1, 1, 1))?;
            conv2d(x, &weight, shift, &ConvConfig { groups, ..ConvConfig::default() }, None, activation)
        }
        Path::Portable => {
            let scaled = x.broadcast_mul(&scale.reshape((1, (), 1, 1))?)?;
            activation.apply(&portable::add_channels(&scaled, shift)?)
        }
    }
}
