//! The operations behind [`super::Forward`], each dispatched to the portable path or the CPU kernels.
//!
//! Images are `f32[B,C,H,W]`. Between two layers the CPU kernels keep activations in a layout of their own, which has five
//! dimensions; every operation takes either and returns what it was given.

use candle_core::Tensor;

use super::batch_norm::Moments;
use super::{Activation, BasicBlock, ConvBn, ConvConfig, Path, cpu, portable};
use crate::{Error, Result};

/// Whether `x` is in the layout of the CPU kernels.
fn is_blocked(x: &Tensor) -> bool {
    x.rank() == 5
}

/// Images in the layout that the following layers like best.
pub fn to_internal(x: &Tensor) -> Result<Tensor> {
    match Path::of(x) {
        Path::Cpu if !is_blocked(x) => Ok(cpu::enter(x)?),
        _ => Ok(x.clone()),
    }
}

/// `f32[B,C,H,W]`, whatever the layout of `x`.
pub fn to_images(x: &Tensor) -> Result<Tensor> {
    if is_blocked(x) { Ok(cpu::leave(x)?) } else { Ok(x.clone()) }
}

/// Runs `f` on the CPU kernels' layout and returns the result in the layout of `x`.
fn in_blocks<T>(
    x: &Tensor,
    residual: Option<&Tensor>,
    f: impl FnOnce(&Tensor, Option<&Tensor>) -> candle_core::Result<(Tensor, T)>,
) -> Result<(Tensor, T)> {
    let residual = residual.map(to_internal).transpose()?;
    let (y, more) = f(&to_internal(x)?, residual.as_ref())?;
    Ok((if is_blocked(x) { y } else { to_images(&y)? }, more))
}

/// The dimensions `[B,O,H,W]` of a convolution's output, or why there is none.
fn output_dims(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<[usize; 4]> {
    match *x.dims() {
        [g, h, w, c, n] => config.output_dims([g * n, c, h, w], weight),
        _ => config.output_dims(x.dims4()?.into(), weight),
    }
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
            let relu = activation == Activation::Relu;
            let run = |x: &Tensor, residual: Option<&Tensor>| {
                Ok((cpu::conv2d_inference(x, &weight, bias.as_ref(), config, residual, relu)?, ()))
            };
            Ok(in_blocks(&x, residual.as_ref(), run)?.0)
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
            let relu = activation == Activation::Relu;
            let run =
                |x: &Tensor, residual: Option<&Tensor>| Ok((cpu::conv2d(x, weight, bias, config, residual, relu)?, ()));
            Ok(in_blocks(x, residual, run)?.0)
        }
        Path::Portable => {
            let y = portable::add_channels(&portable::conv2d(x, weight, config)?, bias)?;
            portable::finish(y, residual, activation)
        }
    }
}

/// `activation(batch_norm(conv(x)) + residual)` with the batch's own statistics, which move the running ones.
pub(super) fn conv_bn_batch(
    x: &Tensor,
    layer: &ConvBn,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (conv, bn) = (layer.conv(), layer.bn());
    let count = check_batch(x, layer)?;
    let beta = shifted_beta(layer)?;
    let (y, moments) = match Path::of(x) {
        Path::Cpu => in_blocks(x, residual, |x, residual| {
            cpu::conv_bn(x, cpu_layer(layer, &beta), residual, activation == Activation::Relu)
        })?,
        Path::Portable => {
            let y = portable::conv2d(x, conv.weight(), conv.config())?;
            let (mean, var) = portable::batch_stats(&y)?;
            let y = portable::normalize(&y, &mean, &var, bn.weight(), &beta)?;
            let moments = Moments { mean: mean.flatten_all()?, var: var.flatten_all()?, count };
            (portable::finish(y, residual, activation)?, moments)
        }
    };
    track(layer, moments)?;
    Ok(y)
}

/// Basic blocks one after the other with the batch's own statistics, in one operation; `None` where the path has none.
pub(super) fn basic_blocks_batch(x: &Tensor, blocks: &[BasicBlock]) -> Result<Option<Tensor>> {
    if Path::of(x) != Path::Cpu || !is_blocked(x) || blocks.is_empty() {
        return Ok(None);
    }
    check_batch(x, &blocks[0].first)?;
    let betas = blocks.iter().map(|block| {
        let shortcut = block.shortcut.as_ref().map(shifted_beta).transpose()?;
        Ok((shifted_beta(&block.first)?, shifted_beta(&block.second)?, shortcut))
    });
    let betas = betas.collect::<Result<Vec<_>>>()?;
    let layers = blocks.iter().zip(&betas).map(|(block, (first, second, shortcut))| cpu::Block {
        first: cpu_layer(&block.first, first),
        second: cpu_layer(&block.second, second),
        shortcut: block.shortcut.as_ref().zip(shortcut.as_ref()).map(|(layer, beta)| cpu_layer(layer, beta)),
    });
    let (y, seen) = cpu::basic_blocks(x, &layers.collect::<Vec<_>>())?;
    for (block, moments) in blocks.iter().zip(seen) {
        let layers = [Some(&block.first), Some(&block.second), block.shortcut.as_ref()];
        for (layer, moments) in layers.into_iter().zip(moments) {
            if let (Some(layer), Some(moments)) = (layer, moments) {
                track(layer, moments)?;
            }
        }
    }
    Ok(Some(y))
}

/// Values per channel that a layer normalizes, if its shapes fit and there are enough.
fn check_batch(x: &Tensor, layer: &ConvBn) -> Result<usize> {
    let [b, _, h, w] = output_dims(x, layer.conv().weight(), layer.conv().config())?;
    layer.bn().check_count(b * h * w)?;
    Ok(b * h * w)
}

/// β, recorded with the convolution's bias, if any: batch norm cancels that bias, which therefore only needs a gradient,
/// of zero.
fn shifted_beta(layer: &ConvBn) -> Result<Tensor> {
    let beta = layer.bn().bias().as_tensor();
    match layer.conv().bias() {
        Some(bias) => Ok((beta + (bias.as_tensor() - bias.as_tensor())?)?),
        None => Ok(beta.clone()),
    }
}

fn cpu_layer<'a>(layer: &'a ConvBn, beta: &'a Tensor) -> cpu::Layer<'a> {
    let conv = layer.conv();
    cpu::Layer { weight: conv.weight(), gamma: layer.bn().weight(), beta, config: conv.config() }
}

/// Moves the running statistics towards those of a convolution's output without its bias.
fn track(layer: &ConvBn, mut moments: Moments) -> Result<()> {
    if let Some(bias) = layer.conv().bias() {
        moments.mean = (moments.mean + bias.as_detached_tensor())?;
    }
    layer.bn().track(&moments)
}

/// Max pooling; padding never wins, and the first maximum of a window gets the gradient.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (h, w) = match *x.dims() {
        [_, h, w, _, _] | [_, _, h, w] => (h, w),
        _ => return Err(Error::invalid(format!("max pooling: expected images, found {:?}", x.dims()))),
    };
    let size = portable::pooled_size((h, w), kernel, stride, padding)?;
    match Path::of(x) {
        Path::Cpu => {
            let run = |x: &Tensor, _: Option<&Tensor>| Ok((cpu::max_pool2d(x, size, kernel, stride, padding)?, ()));
            Ok(in_blocks(x, None, run)?.0)
        }
        Path::Portable => portable::max_pool2d(x, size, kernel, stride, padding),
    }
}

/// The mean over height and width: `f32[B,C]`.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    match is_blocked(x) {
        true => Ok(cpu::global_avg_pool(x)?),
        false => Ok(x.flatten_from(2)?.mean(2)?),
    }
}
