//! The forms in which a model is shipped.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::QTensor;
use serde_json::Value;

use super::Classifier;
use crate::Result;
use crate::nn::StateDict;

/// A form in which a network is shipped: what is computed in place of full precision, and what a file keeps of it.
///
/// It is made from a network, which it is handed again wherever it computes: the network is what it was made from.
pub trait Form: Any + Send + Sync {
    /// The word for a model in it: `quantized`, `pruned`.
    fn word(&self) -> &'static str;

    /// What is stored of it, in a few words that a sentence may begin with.
    fn summary(&self) -> &'static str;

    /// Logits `f32[B,K]` for normalized images.
    fn logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor>;

    /// What a file has to keep, so that it can be read again.
    fn stored(&self, network: &dyn Classifier) -> Result<Stored>;

    /// What there is to report of it. By default nothing: whoever made it has said all.
    fn report(&self) -> Result<Value> {
        Ok(Value::Null)
    }
}

/// What a file keeps of a [`Form`].
pub enum Stored {
    /// A state dict like that of a network in full precision, if perhaps with fewer channels.
    Weights(StateDict),
    /// Tensors under names of the form's own, and a description of how they are put together. A tensor of `i16` holds what
    /// fits into a signed byte.
    Described {
        /// The tensors.
        tensors: StateDict,
        /// Keys and values.
        description: Value,
    },
    /// Tensors in blocks, and others, as GGUF files have them.
    Blocks {
        /// The tensors.
        tensors: BTreeMap<String, Arc<QTensor>>,
        /// The format that was asked for; single tensors may have another.
        format: &'static str,
    },
}
