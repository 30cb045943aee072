//! Batch norm.

use candle_core::Tensor;

use super::in_blocks;
use crate::error::{GeometryError, Result};
use crate::layers::{Activation, BatchNorm2d, Moments};
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
