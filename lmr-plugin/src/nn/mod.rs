//! Trainable layers, and the seam between the portable path and the fast CPU path.

mod params;

pub use params::{Builder, Init, Params, Slot, StateDict, WeightsError};

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
