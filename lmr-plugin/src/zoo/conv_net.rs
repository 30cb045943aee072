//! What all convolutional classifiers are: a trunk, what pools its output, and a linear head.

use candle_core::Tensor;

use super::channels;
use super::network::Layers;
use crate::Result;
use crate::model::{ChannelGroup, Prunable, Slice};
use crate::nn::{Activation, Builder, Forward, Linear, Params, Trunk};

/// A convolutional classifier.
pub(super) struct ConvNet {
    trunk: Trunk,
    neck: Neck,
    head: Linear,
    params: Params,
}

/// What is between the trunk and the head.
pub(super) enum Neck {
    /// The average over all positions.
    Average,
    /// The averages of a grid of so many rows and columns, and linear layers with ReLU.
    Hidden(usize, Vec<Linear>),
}

impl ConvNet {
    /// Puts the parts together; `b` is the builder that made them, at its root.
    pub(super) fn new(trunk: Trunk, neck: Neck, head: Linear, b: &Builder) -> Result<Self> {
        Ok(Self { trunk, neck, head, params: b.finish()? })
    }
}

impl Layers for ConvNet {
    fn params(&self) -> &Params {
        &self.params
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn prunable(&self) -> Vec<Prunable<'_>> {
        self.trunk.convolutions().map(Into::into).collect()
    }

    fn channel_groups(&self) -> Result<Vec<ChannelGroup>> {
        let reader = match &self.neck {
            Neck::Average => Slice::inputs(format!("{}.weight", self.head.name()), 1),
            Neck::Hidden(side, layers) => {
                let first = layers.first().unwrap_or(&self.head);
                Slice::inputs(format!("{}.weight", first.name()), side * side)
            }
        };
        channels::of_trunk(&self.trunk, reader)
    }

    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let x = how.input(images)?;
        let x = how.trunk(&self.trunk, &x)?;
        match &self.neck {
            Neck::Average => Ok(how.global_avg_pool(&x)?),
            Neck::Hidden(side, layers) => {
                let mut x = how.adaptive_avg_pool(&x, (*side, *side))?;
                x = how.flatten(&x)?;
                for layer in layers {
                    x = how.linear(layer, &x, Activation::Relu)?;
                }
                Ok(x)
            }
        }
    }
}
