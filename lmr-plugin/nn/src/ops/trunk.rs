//! The convolutional part of a network as one operation.

use candle_core::Tensor;

use super::conv::{shifted_beta, track};
use crate::cpu;
use crate::error::{Error, Result};
use crate::layers::{Activation, Layer, Trunk};
use crate::layout::{Layout, image_dims};
use crate::path::Path;
use crate::pool::pooled_size;

/// The convolutional part of a network with the batch's own statistics, in one operation; `None` where the path has none.
pub(crate) fn trunk_batch(x: &Tensor, trunk: &Trunk) -> Result<Option<Tensor>> {
    let gelu = trunk.nodes().iter().any(|node| node.activation == Activation::Gelu);
    if Path::of(x) != Path::Cpu || Layout::of_images(x) == Layout::Standard || trunk.nodes().is_empty() || gelu {
        return Ok(None);
    }
    let (mut dims, mut betas) = (vec![image_dims(x)?], Vec::new());
    for node in trunk.nodes() {
        let from = *dims.get(node.input).ok_or(Error::NodeOrder { value: node.input })?;
        let [b, c, h, w] = from;
        dims.push(match &node.layer {
            Layer::ConvBn(layer) => {
                let to = layer.conv().config().output_dims(from, layer.conv().weight())?;
                layer.bn().check_count(to[0] * to[2] * to[3])?;
                to
            }
            Layer::Conv(conv) => conv.config().output_dims(from, conv.weight())?,
            Layer::BatchNorm(bn) => {
                bn.check_count(b * h * w)?;
                from
            }
            Layer::MaxPool(kernel, stride, padding) => {
                let (h, w) = pooled_size((h, w), *kernel, *stride, *padding)?;
                [b, c, h, w]
            }
        });
        betas.push(match &node.layer {
            Layer::ConvBn(layer) => Some(shifted_beta(layer)?),
            _ => None,
        });
    }
    let mut steps = Vec::new();
    for (i, node) in trunk.nodes().iter().enumerate() {
        let kind = match &node.layer {
            Layer::ConvBn(layer) => {
                let beta = betas[i].as_ref().unwrap_or(layer.bn().bias());
                cpu::Kind::ConvBn(layer.conv().weight(), layer.bn().weight(), beta, layer.conv().config())
            }
            Layer::Conv(conv) => {
                cpu::Kind::Conv(conv.weight(), conv.bias().map(|bias| bias.as_tensor()), conv.config())
            }
            Layer::BatchNorm(bn) => cpu::Kind::BatchNorm(bn.weight(), bn.bias()),
            Layer::MaxPool(kernel, stride, padding) => {
                let [_, _, h, w] = dims[i + 1];
                cpu::Kind::MaxPool((h, w), *kernel, *stride, *padding)
            }
        };
        let (input, residual, activation) = (node.input, node.residual, node.activation);
        steps.push(cpu::Step { kind, input, residual, activation });
    }
    let (y, seen) = cpu::trunk(x, &steps)?;
    let mut seen = seen.into_iter();
    for node in trunk.nodes() {
        match &node.layer {
            Layer::ConvBn(layer) => seen.next().map(|moments| track(layer, moments)).transpose()?,
            Layer::BatchNorm(bn) => seen.next().map(|moments| bn.track(&moments)).transpose()?,
            Layer::Conv(_) | Layer::MaxPool(..) => None,
        };
    }
    Ok(Some(y))
}
