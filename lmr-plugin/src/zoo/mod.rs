//! Architectures. Each is one file that names its layers as PyTorch does, says what it computes through
//! [`Forward`](crate::nn::Forward), and what other libraries call it and its tensors; nothing else in the workspace asks which
//! architecture it holds. One is added by its file and, here, its module and its entry.

mod adapt;
mod channels;
mod conv_net;
mod error;
mod load;
mod mobilenet_v2;
pub mod naming;
mod network;
mod options;
mod preact_resnet;
mod recognize;
mod registry;
mod resnet;
mod spec;
mod twins;
mod vgg;
mod vit;
mod widths;

pub use adapt::neutral;
pub use error::ZooError;
pub use network::Network;
pub use options::{HiddenActivation, PaddingRule, Pooling, Stem};
pub use spec::ModelSpec;
pub use twins::{Timm, Transformers};

use crate::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec};

registry::architectures! {
    /// ResNet-18 (He et al., 2016), torchvision's names.
    Resnet18: resnet::RESNET18;
    /// ResNet-34.
    Resnet34: resnet::RESNET34;
    /// ResNet-18 with pre-activation (He et al., 2016, "Identity Mappings"), BackdoorBench's names.
    PreactResnet18: preact_resnet::PREACT_RESNET18;
    /// VGG-16 without batch norm (Simonyan & Zisserman, 2015), torchvision's names.
    Vgg16: vgg::VGG16;
    /// VGG-16 with batch norm.
    Vgg16Bn: vgg::VGG16_BN;
    /// MobileNetV2 (Sandler et al., 2018), torchvision's names.
    MobilenetV2: mobilenet_v2::MOBILENET_V2;
    /// Vision transformer with 192 features in 3 heads; torchvision's, timm's or transformers' names.
    VitTiny: vit::TINY;
    /// Vision transformer with 384 features in 6 heads.
    VitSmall: vit::SMALL;
    /// Vision transformer with 768 features in 12 heads (Dosovitskiy et al., 2021); ViT-B/16 with the default patch.
    VitBase: vit::BASE;
}

/// How a convolution steps over an image, and what it finds around it.
#[derive(Clone, Copy)]
struct Steps {
    stride: usize,
    padding: PaddingRule,
}

/// With stride 1, where padding is the same by all rules.
const DENSE: Steps = Steps { stride: 1, padding: PaddingRule::Torch };

/// A square convolution with padding that keeps the size at stride 1.
fn conv(channels: (usize, usize), kernel: usize, steps: Steps, bias: bool, b: &Builder) -> Result<Conv2d> {
    let config = ConvConfig { stride: steps.stride, padding: steps.padding.of(kernel), ..ConvConfig::default() };
    let (in_channels, out_channels) = channels;
    Ok(Conv2d::new(&ConvSpec { in_channels, out_channels, kernel: (kernel, kernel), bias, config }, b)?)
}

/// [`conv`] without bias, and the batch norm behind it.
fn conv_bn(channels: (usize, usize), kernel: usize, steps: Steps, b: &Builder, bn: &Builder) -> Result<ConvBn> {
    Ok(ConvBn::new(conv(channels, kernel, steps, false, b)?, BatchNorm2d::new(channels.1, bn)?)?)
}
