//! Where activations are rounded beside the places that every scheme rounds at.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::Activation;

/// Where activations are rounded beside the input, what layers compute, attention and sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Places {
    /// What the average over all positions becomes.
    pub average: Average,
    /// Whether logits are rounded.
    pub logits: bool,
    /// Whether a ReLU6 is joined with the convolution before it, so that the range is of what comes out of it. Apart, the
    /// convolution's output is rounded, and its values are clipped.
    pub relu6: bool,
}

impl Default for Places {
    fn default() -> Self {
        Self { average: Average::Float, logits: true, relu6: true }
    }
}

impl Places {
    /// Whether an activation is joined with the layer before it.
    pub(super) fn joins(self, activation: Activation) -> bool {
        self.relu6 || activation != Activation::Relu6
    }
}

/// What becomes of an average over positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Average {
    /// It is not rounded.
    #[default]
    Float,
    /// It is rounded to the values of what it averages.
    Same,
    /// It has a range of its own.
    Own,
}
