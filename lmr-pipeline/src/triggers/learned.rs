//! A trigger that does not exist before the pipeline runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an attack of the pipeline that learns its trigger will have learned: a patch, or a network that changes images.
/// An `evaluate` before that stage has no trigger to measure with. The stage leaves it as `trigger.safetensors` in its folder,
/// from where a trigger of kind `stored` takes it in another pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Learned {}

impl Learned {
    /// The name in a pipeline file.
    pub const KIND: &'static str = "learned";
}
