//! Intervals that weights may train within.

use candle_core::{Tensor, Var};

use crate::Result;
use crate::model::Classifier;
use crate::nn::Params;

/// For every element of some weights of a network the smallest and the largest value it may take: [`cells`] of a rounding, or
/// the [`slack`] of a pruning.
///
/// [`cells`]: super::cells()
/// [`slack`]: super::slack
pub struct Bounds(Vec<Bound>);

struct Bound {
    weight: Var,
    low: Tensor,
    high: Tensor,
}

impl Bounds {
    /// Without any weight.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a weight; `low` and `high` have its shape.
    pub(crate) fn push(&mut self, weight: &Var, low: Tensor, high: Tensor) {
        self.0.push(Bound { weight: weight.clone(), low, high });
    }

    /// Moves every element that has left its interval to the nearest value inside.
    pub fn confine(&self) -> Result<()> {
        for Bound { weight, low, high } in &self.0 {
            weight.set(&weight.as_detached_tensor().maximum(low)?.minimum(high)?)?;
        }
        Ok(())
    }

    /// What of `model`'s parameters is bounded, to train nothing else.
    pub fn params(&self, model: &dyn Classifier) -> Params {
        model.params().only(|var| self.0.iter().any(|bound| bound.weight.id() == var.id()))
    }
}
