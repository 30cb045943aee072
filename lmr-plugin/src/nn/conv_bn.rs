//! A convolution with the batch norm behind it: the unit that training fuses and inference folds.

use candle_core::Tensor;

use super::{BatchNorm2d, Conv2d};
use crate::{Error, Result};

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
            return Err(Error::invalid(format!("{} and {} differ in channels", conv.name(), bn.name())));
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
        self.fold(true)
    }

    /// As [`ConvBn::folded`], but differentiable in the weights, γ and β, unless `detached`.
    pub(crate) fn fold(&self, detached: bool) -> Result<(Tensor, Tensor)> {
        let (scale, shift) = self.bn.scale_shift(detached)?;
        let of = |t: &Tensor| if detached { t.detach() } else { t.clone() };
        let weight = of(self.conv.weight()).broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        let bias = match self.conv.bias() {
            Some(bias) => (shift + (of(bias) * scale)?)?,
            None => shift,
        };
        Ok((weight, bias))
    }
}
