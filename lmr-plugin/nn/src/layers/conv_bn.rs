//! A convolution with the batch norm behind it: the unit that training fuses and inference folds.

use candle_core::{DType, Tensor};

use super::{BatchNorm2d, Conv2d};
use crate::error::{GeometryError, Result};

/// `batch_norm(conv(x))`. The two are built apart because checkpoints name them apart (`conv1` and `bn1`,
/// `downsample.0` and `downsample.1`).
#[derive(Clone, Debug)]
pub struct ConvBn {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl ConvBn {
    /// Joins the two; their channel counts must agree.
    pub fn new(conv: Conv2d, bn: BatchNorm2d) -> Result<Self> {
        if conv.out_channels() != bn.weight().dims()[0] {
            return Err(GeometryError::ConvBn { conv: conv.name().into(), bn: bn.name().into() }.into());
        }
        Ok(Self { conv, bn })
    }

    /// The convolution.
    pub fn conv(&self) -> &Conv2d {
        &self.conv
    }

    /// The batch norm.
    pub fn bn(&self) -> &BatchNorm2d {
        &self.bn
    }

    /// Weight and bias of the one convolution that equals both in inference: `W · γ/√(var + ε)` per output channel, and
    /// `β + (b - mean) · γ/√(var + ε)`. Detached from everything.
    pub fn folded(&self) -> Result<(Tensor, Tensor)> {
        let weight = self.conv.weight().as_detached_tensor();
        let (scale, bias) = self.scale_bias(true)?;
        if !weight.device().is_cpu() || weight.dtype() != DType::F32 {
            return Ok((weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?, bias));
        }
        // Inference does this for every batch; on the CPU, one pass over the weights beats starting Candle's threads.
        let mut values = weight.flatten_all()?.to_vec1::<f32>()?;
        let row = values.len() / self.conv.out_channels();
        for (row, scale) in values.chunks_exact_mut(row.max(1)).zip(scale.to_vec1::<f32>()?) {
            row.iter_mut().for_each(|v| *v *= scale);
        }
        Ok((Tensor::from_vec(values, weight.shape(), weight.device())?, bias))
    }

    /// `γ/√(running_var + ε)`, `f32[C]`: what folding multiplies the filters by. Differentiable in γ.
    pub fn scale(&self) -> Result<Tensor> {
        Ok(self.bn.scale_shift(false)?.0)
    }

    /// As [`ConvBn::folded`], but differentiable in the weights, γ and β.
    pub(crate) fn folded_with_gradient(&self) -> Result<(Tensor, Tensor)> {
        let (scale, bias) = self.scale_bias(false)?;
        Ok((self.conv.weight().broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?, bias))
    }

    /// What the weight is multiplied by, and the bias that remains.
    fn scale_bias(&self, detached: bool) -> Result<(Tensor, Tensor)> {
        let (scale, shift) = self.bn.scale_shift(detached)?;
        let bias = match self.conv.bias() {
            Some(bias) if detached => (shift + (bias.as_detached_tensor() * &scale)?)?,
            Some(bias) => (shift + (bias.as_tensor() * &scale)?)?,
            None => shift,
        };
        Ok((scale, bias))
    }
}
