//! The convolutional part of a network as data, so that training can run all of it as one operation.

use super::{Activation, BatchNorm2d, Conv2d, ConvBn};
use crate::padding::Padding;

/// Nodes in the order they run. A node reads values: value 0 is the trunk's input, value `i + 1` what node `i` gives.
#[derive(Clone, Debug, Default)]
pub struct Trunk(Vec<Node>);

/// One layer and what it reads.
#[derive(Clone, Debug)]
pub struct Node {
    /// The layer.
    pub layer: Layer,
    /// The value it reads.
    pub input: usize,
    /// The value that is added before the activation; for convolutions only.
    pub residual: Option<usize>,
    /// What follows.
    pub activation: Activation,
}

/// A layer of a [`Trunk`].
#[derive(Clone, Debug)]
pub enum Layer {
    /// A convolution with batch norm.
    ConvBn(ConvBn),
    /// A convolution without.
    Conv(Conv2d),
    /// Batch norm in front of a convolution.
    BatchNorm(BatchNorm2d),
    /// Max pooling: kernel, stride and padding.
    MaxPool(usize, usize, Padding),
}

impl Trunk {
    /// Appends a layer that reads the last value. Returns the new value.
    pub fn push(&mut self, layer: Layer, activation: Activation) -> usize {
        self.push_node(Node { layer, input: self.last(), residual: None, activation })
    }

    /// Appends a node. Returns its value.
    pub fn push_node(&mut self, node: Node) -> usize {
        self.0.push(node);
        self.last()
    }

    /// The last value.
    pub fn last(&self) -> usize {
        self.0.len()
    }

    /// The nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.0
    }

    /// Every convolution in the order they run.
    pub fn convolutions(&self) -> impl Iterator<Item = &Conv2d> {
        self.0.iter().filter_map(|node| match &node.layer {
            Layer::ConvBn(layer) => Some(layer.conv()),
            Layer::Conv(conv) => Some(conv),
            Layer::BatchNorm(_) | Layer::MaxPool(..) => None,
        })
    }
}

impl Node {
    /// The values it reads.
    pub(crate) fn values(&self) -> impl Iterator<Item = usize> + use<> {
        std::iter::once(self.input).chain(self.residual)
    }
}
