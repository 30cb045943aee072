//! Trainable layers, and the seam between the portable path and the fast CPU path.

mod batch_norm;
mod block;
mod conv;
mod conv_bn;
mod cpu;
mod forward;
mod grid;
mod linear;
mod ops;
mod params;
mod path;
mod portable;

pub use batch_norm::BatchNorm2d;
pub use block::BasicBlock;
pub use conv::{Conv2d, ConvConfig, ConvSpec};
pub use conv_bn::ConvBn;
pub use forward::{Eval, Forward, Train};
pub use grid::Grid;
pub use linear::Linear;
pub use ops::{conv2d, conv2d_inference, global_avg_pool, max_pool2d, to_images, to_internal};
pub use params::{Builder, Init, Params, Slot, StateDict, WeightsError};
pub use path::{Path, with_portable_path};

/// What follows a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(x, 0)`, with gradient 0 at 0.
    Relu,
}

/// Which statistics batch norm uses while it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNormMode {
    /// The batch's own statistics; running statistics are updated (momentum 0.1, unbiased variance).
    #[default]
    Batch,
    /// The running statistics, which stay as they are; weights still train.
    Running,
}
