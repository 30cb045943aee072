//! Layers as data: parameters, and what they are called.

mod activation;
mod attention;
mod batch_norm;
mod conv;
mod conv_bn;
mod conv_transpose;
mod layer_norm;
mod linear;
mod patch_embedding;
mod trunk;
mod weighted;

pub use activation::Activation;
pub use attention::SelfAttention;
pub(crate) use batch_norm::Moments;
pub use batch_norm::{BatchNorm2d, BatchNormMode};
pub use conv::{Conv2d, ConvConfig, ConvSpec};
pub use conv_bn::ConvBn;
pub use conv_transpose::ConvTranspose2d;
pub(crate) use conv_transpose::{as_convolution, interleave};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use patch_embedding::PatchEmbedding;
pub use trunk::{Layer, Node, Trunk};
pub use weighted::{Convolution, Weighted};
