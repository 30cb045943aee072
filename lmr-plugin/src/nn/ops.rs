//! The operations behind [`super::Forward`], each dispatched to the portable path or the CPU kernels.

use candle_core::Tensor;

use super::{Activation, ConvBn, ConvConfig, Path, portable};
use crate::Result;

/// `activation(conv(x) + bias + residual)`, not recorded for backward, with weights of the caller's choice.
pub fn conv2d_inference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (x, weight) = (x.detach(), weight.detach());
    let residual = residual.map(Tensor::detach);
    let y = portable::conv2d(&x, &weight, config)?;
    let y = match bias {
        Some(bias) => portable::add_channels(&y, &bias.detach())?,
        None => y,
    };
    portable::finish(y, residual.as_ref(), activation)
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
    let y = portable::add_channels(&portable::conv2d(x, weight, config)?, bias)?;
    portable::finish(y, residual, activation)
}

/// `activation(batch_norm(conv(x)) + residual)` with the batch's own statistics, which move the running ones.
pub(super) fn conv_bn_batch(
    x: &Tensor,
    layer: &ConvBn,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (conv, bn) = (layer.conv(), layer.bn());
    let [b, _, oh, ow] = conv.config().output_dims(x, conv.weight())?;
    let count = b * oh * ow;
    bn.check_count(count)?;
    let (y, mean, var) = match Path::of(x) {
        Path::Portable | Path::Cpu => {
            let y = portable::conv2d(x, conv.weight(), conv.config())?;
            let (mean, var) = portable::batch_stats(&y)?;
            let y = portable::normalize(&y, &mean, &var, bn.weight(), bn.bias())?;
            (portable::finish(y, residual, activation)?, mean.flatten_all()?, var.flatten_all()?)
        }
    };
    bn.track(&mean, &var, count)?;
    Ok(y)
}

/// Max pooling; padding never wins, and the first maximum of a window gets the gradient.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    portable::max_pool2d(x, kernel, stride, padding)
}

/// The mean over height and width: `f32[B,C]`.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.mean(2)?)
}
