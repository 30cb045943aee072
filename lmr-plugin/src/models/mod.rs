//! Architectures. Each is one file that names its layers as PyTorch does and says what it computes through
//! [`Forward`]; nothing else in the workspace asks which architecture it holds.

mod channels;
mod conv_net;
mod mobilenet_v2;
pub mod naming;
mod preact_resnet;
mod recognize;
mod registry;
mod resnet;
mod spec;
mod vgg;
mod vit;
mod widths;

use candle_core::{Device, Tensor, Var};

pub use channels::{ChannelGroup, Slice};
pub use conv_net::ConvNet;
pub use registry::Arch;
pub use spec::{ModelSpec, Stem};
pub use vit::VisionTransformer;

use crate::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Eval, Forward, Linear, Params};

/// An image classifier whose last layer is linear.
pub trait Classifier: Send + Sync {
    /// What it was built from, defaults filled in.
    fn spec(&self) -> &ModelSpec;

    /// Every named parameter, buffer and counter.
    fn params(&self) -> &Params;

    /// The last layer: `W ∈ ℝ^{K×D}` and its bias.
    fn head(&self) -> &Linear;

    /// What structured pruning ranks, in the order it runs: the filters of every convolution, shortcuts included; in a
    /// transformer the hidden units of every MLP.
    fn prunable(&self) -> Vec<Prunable<'_>>;

    /// Which channels can only be removed together, and from which tensors; in the order of [`Classifier::prunable`]. Where
    /// outputs are added or filtered one by one, several layers share their channels.
    fn channel_groups(&self) -> Result<Vec<ChannelGroup>>;

    /// The head's input, `f32[B,D]`, for normalized images `f32[B,C,H,W]`.
    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor>;

    /// Logits `f32[B,K]` for normalized images `f32[B,C,H,W]`.
    fn forward(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let features = self.features(how, images)?;
        how.linear(self.head(), &features, crate::nn::Activation::None)
    }

    /// Logits in inference mode.
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.forward(&mut Eval, images)
    }
}

/// A layer whose output channels can be removed one by one.
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

/// A deep copy: the two models share no storage.
pub fn copy(model: &dyn Classifier, device: &Device) -> Result<Box<dyn Classifier>> {
    model.spec().load(model.params().state_dict()?, device)
}

/// A square convolution with padding that keeps the size at stride 1.
fn conv(channels: (usize, usize), kernel: usize, stride: usize, bias: bool, b: &Builder) -> Result<Conv2d> {
    let config = ConvConfig { stride, padding: kernel / 2, ..ConvConfig::default() };
    let (in_channels, out_channels) = channels;
    Conv2d::new(&ConvSpec { in_channels, out_channels, kernel: (kernel, kernel), bias, config }, b)
}

/// [`conv`] without bias, and the batch norm behind it.
fn conv_bn(channels: (usize, usize), kernel: usize, stride: usize, b: &Builder, bn: &Builder) -> Result<ConvBn> {
    ConvBn::new(conv(channels, kernel, stride, false, b)?, BatchNorm2d::new(channels.1, bn)?)
}
