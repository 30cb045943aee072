//! Integer arithmetic: values are rounded to a grid of integers times a scale. On the CPU the integers themselves are
//! multiplied; elsewhere they are simulated, kept in f32.
//!
//! Batch norm is folded into the convolutions first. Activations are rounded at the input, after every folded convolution and
//! every linear layer (with what follows: ReLU, GELU), after batch norm and layer norm of their own, after attention, after every
//! residual sum (and its ReLU). Softmax inside of attention stays in f32, as do the class token and the positions, and biases, which
//! engines keep in 32 bits. [`Places`](super::Places) says what else a scheme rounds or leaves.
//!
//! # On integers
//!
//! Activations are tensors of bytes, channels-last ([`crate::nn::int8`]). Sums of products are exact; the simulation's are
//! rounded like all sums of floats, so a value next to the middle between two integers can become the other one.
//!
//! What the simulation does not round is a float here, too. Layers without an integer kernel run as in the simulation.

mod forward;
mod interpreter;
mod packed;
mod simulation;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde::Serialize;
use serde_json::Value;

use super::FormError;
use super::calibration::{Calibration, Ranges};
use super::layers::{rebuilt, weight_layers};
use super::points::{AtPoints, Points, layers_of};
use super::rounding::Scheme;
use crate::data::CleanSet;
use crate::model::{Classifier, Form, Model, Stored};
use crate::nn::int8::Kernel;
use crate::nn::{ConvConfig, Path};
use crate::run::Run;
use crate::{Error, Result};

pub use stored::Description;

use interpreter::Interpreter;
use packed::PackedLayer;
use simulation::Simulation;

/// A layer as integers.
pub struct IntegerLayer {
    /// `f32` integers, see [`WeightGrid`](super::WeightGrid); output channels come first.
    pub weight: Tensor,
    /// What they are multiplied by: one number, or one an output channel, of the weight's rank.
    pub scale: Tensor,
    /// The bias, in full precision.
    pub bias: Option<Tensor>,
    /// How its kernel moves over an image, as far as the network tells.
    config: ConvConfig,
}

/// A network's integer form: rounded weights by layer name, and activation ranges.
pub struct Integers {
    layers: BTreeMap<String, IntegerLayer>,
    /// Those that there are integer kernels for.
    packed: BTreeMap<String, PackedLayer>,
    ranges: Ranges,
    scheme: Scheme,
    /// What computes for a network that no interpreter runs.
    rebuilt: Option<Box<dyn Classifier>>,
}

impl Integers {
    /// Rounds the weights, and measures activation ranges on the clean images where activations are rounded too.
    pub fn calibrate(
        model: &Model,
        scheme: Scheme,
        calibration: Calibration,
        clean: &CleanSet,
        run: &Run<'_>,
    ) -> Result<Self> {
        let ranges =
            if scheme.activations { calibration.measure(model, scheme, clean, run)? } else { Ranges::default() };
        Self::new(model.full_precision()?, scheme, ranges)
    }

    /// Rounds the weights of `network` for ranges measured before, one for every place where activations are rounded.
    pub fn new(network: &dyn Classifier, scheme: Scheme, ranges: Ranges) -> Result<Self> {
        if scheme.activations {
            check_places(network, scheme, &ranges)?;
        }
        if let Some((point, &(low, high))) = ranges.0.iter().find(|(_, (l, h))| !(l.is_finite() && h.is_finite())) {
            return Err(FormError::RangeNotFinite { point: point.clone(), low, high }.into());
        }
        Self::of(network, integers(network, scheme)?, ranges, scheme)
    }

    /// From the integers of every layer.
    fn of(
        network: &dyn Classifier,
        layers: BTreeMap<String, IntegerLayer>,
        ranges: Ranges,
        scheme: Scheme,
    ) -> Result<Self> {
        let mut packed = BTreeMap::new();
        for (name, IntegerLayer { weight, scale, bias, config }) in layers.iter().filter(|_| scheme.activations) {
            if let Some(layer) = PackedLayer::pack((weight, scale), bias.as_ref(), *config)? {
                packed.insert(name.clone(), layer);
            }
        }
        let rebuilt = rebuilt(network, |name| weights(&layers, name))?;
        Ok(Self { layers, packed, ranges, scheme, rebuilt })
    }

    /// The activation ranges.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The logits that [`Form::logits`] computes, in f32 with values on the integers' grids.
    pub fn simulated_logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
        if let Some(rebuilt) = &self.rebuilt {
            return rebuilt.logits(images);
        }
        let mut simulation = Simulation { layers: &self.layers };
        if !self.scheme.activations {
            return network.need_layers("rounding weights")?.interpret(&mut simulation, images);
        }
        let act = |x: &Tensor, point: &str| {
            let (low, high) = self.ranges.at(point)?;
            self.scheme.activation_grid.round(x, low, high)
        };
        layers_of(network)?.interpret(&mut AtPoints::new(simulation, (network, self.scheme.places), act), images)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    scheme: Scheme,
    ranges: &'a Ranges,
}

impl Form for Integers {
    fn word(&self) -> &'static str {
        "quantized"
    }

    fn summary(&self) -> &'static str {
        "integers, scales and activation ranges under torchvision's names"
    }

    /// With integers where activations are rounded and the network is on the CPU, otherwise as
    /// [`Integers::simulated_logits`].
    fn logits(&self, network: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
        if self.packed.is_empty() || Path::of(images) != Path::Cpu {
            return self.simulated_logits(network, images);
        }
        let simulation = Simulation { layers: &self.layers };
        let mut codes =
            Interpreter::new(simulation, (network, self.scheme), &self.packed, &self.ranges, Kernel::best());
        let logits = layers_of(network)?.interpret(&mut codes, images)?;
        Ok(codes.decoded(&logits)?)
    }

    fn stored(&self, network: &dyn Classifier) -> Result<Stored> {
        stored::write(self, network)
    }

    fn report(&self) -> Result<Value> {
        let report = Report { scheme: self.scheme, ranges: &self.ranges };
        serde_json::to_value(report).map_err(|source| Error::Finding { name: "report", source })
    }
}

/// The integers that `network` is rounded to, by layer name, batch norm folded in.
pub fn integers(network: &dyn Classifier, scheme: Scheme) -> Result<BTreeMap<String, IntegerLayer>> {
    let mut layers = BTreeMap::new();
    for layer in weight_layers(network)? {
        let (weight, scale, bias) = layer.integers(scheme)?;
        // A deep copy: the network may train on, its rounded form stays.
        let bias = bias.as_ref().map(Tensor::copy).transpose()?;
        layers.insert(layer.name, IntegerLayer { weight, scale, bias, config: layer.config });
    }
    Ok(layers)
}

/// The weight and the bias that a layer computes with.
fn weights(layers: &BTreeMap<String, IntegerLayer>, name: &str) -> Result<(Tensor, Option<Tensor>)> {
    let layer = layers.get(name).ok_or_else(|| FormError::NotQuantized { layer: name.into() })?;
    Ok((layer.weight.broadcast_mul(&layer.scale)?, layer.bias.clone()))
}

/// Refuses ranges that are not those of the network's activation points.
fn check_places(network: &dyn Classifier, scheme: Scheme, ranges: &Ranges) -> Result<()> {
    let (expected, found) =
        (Points::of(network, scheme.places)?, ranges.0.keys().cloned().collect::<BTreeSet<String>>());
    if expected == found {
        return Ok(());
    }
    Err(FormError::OtherNetwork { without: &expected - &found, extra: &found - &expected }.into())
}
