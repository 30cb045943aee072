//! Which layers of a network have weights to round, and what stays as it is.

use std::collections::HashSet;

use candle_core::{DType, Tensor, Var};

use super::rounding::{Rounding, Scheme, integer_weight, passed_through};
use crate::Result;
use crate::model::{Classifier, Layered};
use crate::nn::{self, BatchNorm2d, ConvBn, ConvConfig, Forward, Slot, StateDict, Weighted};

/// A layer whose weight is rounded, and what is folded into it.
pub(super) struct WeightLayer {
    pub name: String,
    /// Output channels come first.
    pub weight: Var,
    pub bias: Option<Var>,
    /// The convolution together with the batch norm behind it.
    pub folds: Option<ConvBn>,
    /// How its kernel moves over an image, as far as the network tells.
    pub config: ConvConfig,
}

impl WeightLayer {
    /// Weight and bias with batch norm folded in, detached from everything.
    pub fn folded(&self) -> Result<(Tensor, Option<Tensor>)> {
        match &self.folds {
            Some(layer) => {
                let (weight, bias) = layer.folded()?;
                Ok((weight, Some(bias)))
            }
            None => Ok((self.weight.as_detached_tensor(), self.bias.as_ref().map(|bias| bias.as_detached_tensor()))),
        }
    }

    /// The integers of its weight, what they are multiplied by, and the bias. Batch norm that stays behind the convolution is
    /// part of that factor, which then is one an output channel and may be negative or 0.
    pub fn integers(&self, scheme: Scheme) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (folded, bias) = self.folded()?;
        match self.apart(scheme) {
            None => integer_weight(&folded, scheme).map(|(integers, scale)| (integers, scale, bias)),
            Some(behind) => {
                let (integers, scale) = integer_weight(&self.weight.as_detached_tensor(), scheme)?;
                let behind = behind.scale()?.detach().reshape(((), 1, 1, 1))?;
                Ok((integers, scale.broadcast_mul(&behind)?, bias))
            }
        }
    }

    /// The layer with batch norm, if that stays behind the rounded convolution.
    pub fn apart(&self, scheme: Scheme) -> Option<&ConvBn> {
        self.folds.as_ref().filter(|_| !scheme.fold)
    }

    /// Whether it has a bias once batch norm is folded in.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some() || self.folds.is_some()
    }

    /// The rounded weight before folding, detached.
    pub fn unfolded(&self, rounding: Rounding) -> Result<Tensor> {
        let weighted = self.folds.as_ref().map(Weighted::ConvBn);
        let weight = match weighted {
            Some(layer) => super::straight_through(layer, rounding)?,
            None => passed_through(&self.weight, rounding)?,
        };
        Ok(weight.detach())
    }

    /// Takes over a weight and a bias that batch norm is folded into: from then on it multiplies by exactly 1.
    pub fn set(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        self.weight.set(weight)?;
        let Some(bn) = self.folds.as_ref().map(ConvBn::bn) else {
            return match (&self.bias, bias) {
                (Some(var), Some(bias)) => Ok(var.set(bias)?),
                _ => Ok(()),
            };
        };
        if let Some(var) = &self.bias {
            var.set(&var.zeros_like()?)?;
        }
        let ones = bn.running_var().ones_like()?;
        bn.running_mean().set(&bn.running_mean().zeros_like()?)?;
        bn.running_var().set(&ones)?;
        bn.weight().set(&(ones + BatchNorm2d::EPS)?.sqrt()?)?;
        if let Some(bias) = bias {
            bn.bias().set(bias)?;
        }
        Ok(())
    }

    /// Every parameter and buffer that it is made of.
    fn vars(&self) -> impl Iterator<Item = &Var> {
        let folded = self.folds.as_ref().map(ConvBn::bn);
        let folded = folded.map(|bn| [bn.weight(), bn.bias(), bn.running_mean(), bn.running_var()]);
        std::iter::once(&self.weight).chain(&self.bias).chain(folded.into_iter().flatten())
    }
}

/// The layers whose weights are rounded. A [`Layered`] network is run once, so there is no list to keep in step with the
/// architecture; of another one, these are the parameters of two or four dimensions that are called `<layer>.weight`, and no
/// batch norm is folded into them.
pub(super) fn weight_layers(network: &dyn Classifier) -> Result<Vec<WeightLayer>> {
    match network.layered() {
        Some(layered) => {
            let mut survey = Survey(Vec::new());
            run_once(network, layered, &mut survey)?;
            Ok(survey.0)
        }
        None => Ok(named(network)),
    }
}

/// Every parameter of a network that no rounding concerns, in full precision under its own name: norms behind no
/// convolution, the class token, positions. The others are in `layers`.
pub(super) fn unrounded<'a>(
    network: &'a dyn Classifier,
    layers: &[WeightLayer],
) -> impl Iterator<Item = (&'a str, &'a Var)> + use<'a> {
    let inside: HashSet<_> = layers.iter().flat_map(WeightLayer::vars).map(|var| var.id()).collect();
    network.params().iter().filter_map(move |(name, slot)| match slot {
        Slot::Parameter(var) | Slot::Buffer(var) if !inside.contains(&var.id()) => Some((name, var)),
        _ => None,
    })
}

/// The tensors of [`unrounded`], as files have them.
pub(super) fn unrounded_state(network: &dyn Classifier, layers: &[WeightLayer]) -> StateDict {
    unrounded(network, layers).map(|(name, var)| (name.to_string(), var.as_detached_tensor())).collect()
}

/// Shows an interpreter every layer of a network.
pub(super) fn run_once(network: &dyn Classifier, layered: &dyn Layered, how: &mut dyn Forward) -> Result<()> {
    let [c, h, w] = network.input_shape();
    let probe = Tensor::zeros((1, c, h, w), DType::F32, network.device())?;
    layered.interpret(how, &probe)?;
    Ok(())
}

/// A copy with the weights and biases of `weights`, for a network that no interpreter runs; `None` for one that is
/// [`Layered`].
pub(super) fn rebuilt(
    network: &dyn Classifier,
    weights: impl Fn(&str) -> Result<(Tensor, Option<Tensor>)>,
) -> Result<Option<Box<dyn Classifier>>> {
    if network.layered().is_some() {
        return Ok(None);
    }
    let copy = network.copy()?;
    for layer in named(copy.as_ref()) {
        let (weight, bias) = weights(&layer.name)?;
        layer.set(&weight, bias.as_ref())?;
    }
    Ok(Some(copy))
}

/// A full-precision network that computes with the rounded weights of `network`: batch norm is unfolded again, activations are
/// not rounded.
pub fn dequantized(network: &dyn Classifier, rounding: impl Into<Rounding>) -> Result<Box<dyn Classifier>> {
    let (copy, rounding) = (network.copy()?, rounding.into());
    for layer in weight_layers(copy.as_ref())? {
        layer.weight.set(&layer.unfolded(rounding)?)?;
    }
    Ok(copy)
}

/// The layers of a network that tells nothing but names.
fn named(network: &dyn Classifier) -> Vec<WeightLayer> {
    let vars: Vec<(&str, &Var)> = network.params().trainable().collect();
    let bias = |layer: &str| {
        let found = vars.iter().find(|(name, _)| name.strip_suffix(".bias") == Some(layer));
        found.map(|(_, var)| (*var).clone())
    };
    let matrices = vars.iter().filter(|(_, var)| matches!(var.rank(), 2 | 4));
    let layers = matrices.filter_map(|(name, weight)| {
        let name = name.strip_suffix(".weight")?;
        let config = ConvConfig::default();
        Some(WeightLayer { name: name.to_string(), weight: (*weight).clone(), bias: bias(name), folds: None, config })
    });
    layers.collect()
}

/// Runs in full precision and keeps every layer it meets.
struct Survey(Vec<WeightLayer>);

impl Forward for Survey {
    fn weights(&mut self, layer: Weighted<'_>) -> nn::Result<(Tensor, Option<Tensor>)> {
        if !self.0.iter().any(|known| known.name == layer.name()) {
            let (bias, folds) = match layer {
                Weighted::ConvBn(layer) => (layer.conv().bias(), Some(layer.clone())),
                Weighted::Conv(layer) => (layer.bias(), None),
                Weighted::Linear(layer) => (layer.bias(), None),
            };
            let (name, config) = (layer.name().to_string(), layer.config());
            self.0.push(WeightLayer { name, weight: layer.weight().clone(), bias: bias.cloned(), folds, config });
        }
        layer.folded()
    }
}
