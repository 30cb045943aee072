//! Layers with weights, whatever they do with them.

use candle_core::{Tensor, Var};

use super::{BatchNorm2d, Conv2d, ConvBn, ConvConfig, Linear};
use crate::error::Result;

/// A convolution, with or without a batch norm behind it.
#[derive(Clone, Copy, Debug)]
pub enum Convolution<'a> {
    /// With batch norm.
    Normed(&'a ConvBn),
    /// Without.
    Plain(&'a Conv2d),
}

impl<'a> Convolution<'a> {
    /// The convolution itself.
    pub fn conv(self) -> &'a Conv2d {
        match self {
            Self::Normed(layer) => layer.conv(),
            Self::Plain(conv) => conv,
        }
    }

    /// The batch norm behind it, if any.
    pub fn bn(self) -> Option<&'a BatchNorm2d> {
        match self {
            Self::Normed(layer) => Some(layer.bn()),
            Self::Plain(_) => None,
        }
    }
}

impl<'a> From<&'a ConvBn> for Convolution<'a> {
    fn from(layer: &'a ConvBn) -> Self {
        Self::Normed(layer)
    }
}

impl<'a> From<&'a Conv2d> for Convolution<'a> {
    fn from(conv: &'a Conv2d) -> Self {
        Self::Plain(conv)
    }
}

impl<'a> From<Convolution<'a>> for Weighted<'a> {
    fn from(layer: Convolution<'a>) -> Self {
        match layer {
            Convolution::Normed(layer) => Self::ConvBn(layer),
            Convolution::Plain(conv) => Self::Conv(conv),
        }
    }
}

/// A layer with weights.
#[derive(Clone, Copy, Debug)]
pub enum Weighted<'a> {
    /// A convolution with the batch norm behind it.
    ConvBn(&'a ConvBn),
    /// A convolution.
    Conv(&'a Conv2d),
    /// A fully connected layer.
    Linear(&'a Linear),
}

impl Weighted<'_> {
    /// The full name.
    pub fn name(&self) -> &str {
        match self {
            Self::ConvBn(layer) => layer.conv().name(),
            Self::Conv(layer) => layer.name(),
            Self::Linear(layer) => layer.name(),
        }
    }

    /// The weight as the layer holds it, output channels first.
    pub fn weight(&self) -> &Var {
        match self {
            Self::ConvBn(layer) => layer.conv().weight(),
            Self::Conv(layer) => layer.weight(),
            Self::Linear(layer) => layer.weight(),
        }
    }

    /// How its kernel moves over an image; that of a linear layer is a single tap.
    pub fn config(&self) -> ConvConfig {
        match self {
            Self::ConvBn(layer) => *layer.conv().config(),
            Self::Conv(layer) => *layer.config(),
            Self::Linear(_) => ConvConfig::default(),
        }
    }

    /// Weight and bias with batch norm folded in, detached from everything.
    pub fn folded(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = match self {
            Self::ConvBn(layer) => {
                let (weight, bias) = layer.folded()?;
                return Ok((weight, Some(bias)));
            }
            Self::Conv(layer) => (layer.weight(), layer.bias()),
            Self::Linear(layer) => (layer.weight(), layer.bias()),
        };
        Ok((weight.as_detached_tensor(), bias.map(|bias| bias.as_detached_tensor())))
    }

    /// As [`Weighted::folded`], but differentiable.
    pub(crate) fn folded_with_gradient(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = match self {
            Self::ConvBn(layer) => {
                let (weight, bias) = layer.folded_with_gradient()?;
                return Ok((weight, Some(bias)));
            }
            Self::Conv(layer) => (layer.weight(), layer.bias()),
            Self::Linear(layer) => (layer.weight(), layer.bias()),
        };
        Ok((weight.as_tensor().clone(), bias.map(|bias| bias.as_tensor().clone())))
    }
}
