//! What pruning works on: layers with channels, and which of these belong together.

use candle_core::Var;

use crate::nn::{Conv2d, Linear};

/// A layer whose output channels can be pruned one by one.
#[derive(Clone, Copy, Debug)]
pub struct Prunable<'a> {
    /// The layer's full name.
    pub name: &'a str,
    /// One slice of the first dimension per channel.
    pub weight: &'a Var,
    /// One element per channel.
    pub bias: Option<&'a Var>,
}

impl<'a> From<&'a Conv2d> for Prunable<'a> {
    fn from(conv: &'a Conv2d) -> Self {
        Self { name: conv.name(), weight: conv.weight(), bias: conv.bias() }
    }
}

impl<'a> From<&'a Linear> for Prunable<'a> {
    fn from(linear: &'a Linear) -> Self {
        Self { name: linear.name(), weight: linear.weight(), bias: linear.bias() }
    }
}

/// Layers whose output channels are the same ones, and every tensor that has a slice for each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelGroup {
    /// Indices into [`Classifier::prunable`](super::Classifier::prunable): the layers that make the channels.
    pub makers: Vec<usize>,
    /// Where they appear.
    pub slices: Vec<Slice>,
}

/// A tensor with a part for every channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The tensor's full name.
    pub tensor: String,
    /// The dimension that runs over channels: 0 where the channel is made, 1 where it is read.
    pub dim: usize,
    /// Elements of that dimension for each channel.
    pub repeat: usize,
}

impl Slice {
    /// A tensor of what makes the channels.
    pub fn channels(tensor: String) -> Self {
        Self { tensor, dim: 0, repeat: 1 }
    }

    /// A tensor of what reads them, `repeat` values of each.
    pub fn inputs(tensor: String, repeat: usize) -> Self {
        Self { tensor, dim: 1, repeat }
    }
}
