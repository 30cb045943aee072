//! Integers as floats: any device, any layer.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{IntegerLayer, weights};
use crate::nn::{Forward, Result, Weighted};

/// Runs layers with what their integers stand for.
pub(super) struct Simulation<'a> {
    pub layers: &'a BTreeMap<String, IntegerLayer>,
}

impl Forward for Simulation<'_> {
    fn weights(&mut self, layer: Weighted<'_>) -> Result<(Tensor, Option<Tensor>)> {
        Ok(weights(self.layers, layer.name())?)
    }
}
