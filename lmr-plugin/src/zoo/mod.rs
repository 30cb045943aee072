//! Architectures. Each is one file that names its layers as PyTorch does and says what it computes through
//! [`Forward`](crate::nn::Forward); nothing else in the workspace asks which architecture it holds.

mod channels;
mod conv_net;
mod error;
mod mobilenet_v2;
pub mod naming;
mod network;
mod preact_resnet;
mod recognize;
mod registry;
mod resnet;
mod spec;
mod vgg;
mod vit;
mod widths;

pub use error::ZooError;
pub use network::Network;
pub use registry::Arch;
pub use spec::{ModelSpec, Stem};

use crate::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec};

/// A square convolution with padding that keeps the size at stride 1.
fn conv(channels: (usize, usize), kernel: usize, stride: usize, bias: bool, b: &Builder) -> Result<Conv2d> {
    let config = ConvConfig { stride, padding: kernel / 2, ..ConvConfig::default() };
    let (in_channels, out_channels) = channels;
    Ok(Conv2d::new(&ConvSpec { in_channels, out_channels, kernel: (kernel, kernel), bias, config }, b)?)
}

/// [`conv`] without bias, and the batch norm behind it.
fn conv_bn(channels: (usize, usize), kernel: usize, stride: usize, b: &Builder, bn: &Builder) -> Result<ConvBn> {
    Ok(ConvBn::new(conv(channels, kernel, stride, false, b)?, BatchNorm2d::new(channels.1, bn)?)?)
}
