//! A network without what was pruned.

use candle_core::Tensor;

use crate::Result;
use crate::model::{Classifier, Form, Stored};

/// The network itself has fewer channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Removed;

impl Form for Removed {
    fn word(&self) -> &'static str {
        "pruned"
    }

    fn summary(&self) -> &'static str {
        "a smaller network under the same names"
    }

    fn logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
        network.logits(images)
    }

    fn stored(&self, network: &dyn Classifier) -> Result<Stored> {
        Ok(Stored::Weights(network.params().state_dict()?))
    }
}
