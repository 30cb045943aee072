//! A network with zeros in the place of what was pruned.

use candle_core::Tensor;

use crate::Result;
use crate::model::{Classifier, Form, Stored};

/// The network itself has the zeros.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pruned;

impl Form for Pruned {
    fn word(&self) -> &'static str {
        "pruned"
    }

    fn summary(&self) -> &'static str {
        "the same names and shapes, with zeros for what was pruned"
    }

    fn logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
        network.logits(images)
    }

    fn stored(&self, network: &dyn Classifier) -> Result<Stored> {
        Ok(Stored::Weights(network.params().state_dict()?))
    }
}
