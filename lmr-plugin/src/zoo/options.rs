//! What there is to choose from for the options of a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::Padding;

/// How a convolutional network begins, and for VGG how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stem {
    /// For images of up to about 64x64. Residual networks: a 3x3 convolution with stride 1 and no pooling. MobileNetV2:
    /// stride 1 in the first convolution. VGG: global average pooling and one linear layer.
    Cifar,
    /// Residual networks alone: a 3x3 convolution with stride 1, but with the 3x3 max-pooling with stride 2 behind it, as where
    /// only the first layer of torchvision's network was replaced. Tensors do not tell it from `cifar`.
    CifarPool,
    /// For photographs. Residual networks: a 7x7 convolution with stride 2, then 3x3 max-pooling with stride 2.
    /// MobileNetV2: stride 2. VGG: average pooling to 7x7 and three linear layers.
    Imagenet,
}

/// Whose zeros lie around an image where the kernel of a convolution or of pooling reaches beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PaddingRule {
    /// As many on every side, as PyTorch's networks have.
    Torch,
    /// TensorFlow's `SAME`: with stride 2 on an even size none before the image and one behind it. What was trained with
    /// TensorFlow needs it, also in PyTorch (`tf_padding` in transformers).
    TfSame,
}

impl PaddingRule {
    /// What it gives a kernel of odd size.
    pub(super) fn of(self, kernel: usize) -> Padding {
        match self {
            Self::Torch => Padding::Symmetric(kernel / 2),
            Self::TfSame => Padding::Same,
        }
    }
}

/// What follows the hidden units of a transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HiddenActivation {
    /// The exact GELU.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// What of a transformer's last tokens the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Pooling {
    /// The class token, normalized: timm's `global_pool = "token"`.
    ClassToken,
    /// The mean over the patches, normalized: timm's `global_pool = "avg"`, whose norm is called `fc_norm`.
    Mean,
}
