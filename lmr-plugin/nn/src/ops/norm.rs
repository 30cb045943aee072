//! Batch norm.

use candle_core::Tensor;

use super::{conv2d, in_blocks};
use crate::error::{GeometryError, Result};
use crate::layers::{Activation, BatchNorm2d, ConvConfig, Moments};
use crate::layout::image_dims;
use crate::path::Path;
use crate::{cpu, portable};

/// Batch norm with the statistics of `x` on the portable path.
pub(super) fn normalized(x: &Tensor, bn: &BatchNorm2d, beta: &Tensor, count: usize) -> Result<(Tensor, Moments)> {
    let (mean, var) = portable::batch_stats(x)?;
    let y = portable::normalize(x, &mean, &var, bn.weight(), beta)?;
    Ok((y, Moments { mean: mean.flatten_all()?, var: var.flatten_all()?, count }))
}

/// `activation(batch_norm(x))` with the batch's own statistics, which move the running ones.
pub(crate) fn batch_norm_batch(x: &Tensor, bn: &BatchNorm2d, activation: Activation) -> Result<Tensor> {
    let channels = bn.weight().elem_count();
    let [b, c, h, w] = image_dims(x)?;
    let count = b * h * w;
    bn.check_count(count)?;
    if c != channels {
        return Err(GeometryError::Channels { layer: bn.name().into(), expected: channels, found: c }.into());
    }
    let (gamma, beta) = (bn.weight().as_tensor(), bn.bias().as_tensor());
    let (y, moments) = match Path::of(x) {
        Path::Cpu => in_blocks(x, None, |x, _| {
            let step = cpu::Step { kind: cpu::Kind::BatchNorm(gamma, beta), input: 0, residual: None, activation };
            let (y, seen) = cpu::trunk(x, &[step])?;
            Ok((y, seen.into_iter().next()))
        })?,
        Path::Portable => {
            let (y, moments) = normalized(x, bn, beta, count)?;
            (activation.apply(&y)?, Some(moments))
        }
    };
    if let Some(moments) = moments {
        bn.track(&moments)?;
    }
    Ok(y)
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
