//! Tensors that a stage leaves beside the model.

use std::collections::BTreeMap;

use crate::nn::StateDict;

/// Named tensors kept with a stage's results.
#[derive(Debug)]
pub struct Attachment {
    /// File name without ending.
    pub name: String,
    /// The tensors.
    pub tensors: StateDict,
    /// String metadata of the file.
    pub metadata: BTreeMap<String, String>,
}
