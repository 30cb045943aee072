//! A network of the zoo: what it was built from, and the layers.

use std::any::Any;

use candle_core::{Device, Tensor};

use super::ModelSpec;
use crate::Result;
use crate::model::{ChannelGroup, Classifier, Layered, Prunable};
use crate::nn::{Activation, Forward, Linear, Mode, Params, StateDict};

/// The layers of an architecture; see [`Classifier`] for what the methods mean.
pub(super) trait Layers: Send + Sync {
    fn params(&self) -> &Params;
    fn head(&self) -> &Linear;
    fn prunable(&self) -> Vec<Prunable<'_>>;
    fn channel_groups(&self) -> Result<Vec<ChannelGroup>>;
    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor>;
}

/// A classifier of one of the architectures here.
pub struct Network {
    spec: ModelSpec,
    layers: Box<dyn Layers>,
}

impl Network {
    /// `layers`, which were built from `spec`.
    pub(super) fn new(spec: ModelSpec, layers: Box<dyn Layers>) -> Self {
        Self { spec, layers }
    }

    /// The network of the zoo that a classifier is, if it is one.
    pub fn of(classifier: &dyn Classifier) -> Option<&Self> {
        (classifier as &dyn Any).downcast_ref()
    }

    /// What it was built from, defaults filled in.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The specification of a network with these tensors: widths as they are there, where filters were removed.
    fn spec_of(&self, state: &StateDict) -> ModelSpec {
        let own: Vec<(&str, usize)> =
            self.layers.prunable().iter().map(|layer| (layer.name, layer.weight.dims()[0])).collect();
        let found = |(name, own): &(&str, usize)| {
            state.get(&format!("{name}.weight")).and_then(|weight| weight.dims().first()).copied().unwrap_or(*own)
        };
        let widths: Vec<usize> = own.iter().map(found).collect();
        let same = own.iter().map(|(_, width)| *width).eq(widths.iter().copied());
        ModelSpec { widths: if same { self.spec.widths.clone() } else { Some(widths) }, ..self.spec.clone() }
    }
}

impl Classifier for Network {
    fn params(&self) -> &Params {
        self.layers.params()
    }

    fn head(&self) -> &Linear {
        self.layers.head()
    }

    fn input_shape(&self) -> [usize; 3] {
        let side = self.spec.example_side();
        [self.spec.channels, side, side]
    }

    fn features(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        mode.with(|how| self.layers.features(how, images))
    }

    fn rebuild(&self, state: StateDict, device: &Device) -> Result<Box<dyn Classifier>> {
        self.spec_of(&state).load(state, device)
    }

    fn prunable(&self) -> Vec<Prunable<'_>> {
        self.layers.prunable()
    }

    fn channel_groups(&self) -> Result<Vec<ChannelGroup>> {
        self.layers.channel_groups()
    }

    fn layered(&self) -> Option<&dyn Layered> {
        Some(self)
    }
}

impl Layered for Network {
    fn interpret(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let features = self.layers.features(how, images)?;
        Ok(how.linear(self.layers.head(), &features, Activation::None)?)
    }
}
