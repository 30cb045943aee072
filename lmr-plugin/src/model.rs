//! The model a pipeline carries from stage to stage: a network, how its input is normalized, and the form it is in.

use candle_core::{Device, Tensor};

use crate::data::Normalization;
use crate::models::{self, Classifier, ModelSpec};
use crate::nn::StateDict;
use crate::quantization::{BlockQuantized, Quantized, Ranges};
use crate::{Error, Result};

/// A network with everything needed to run it on pixels.
pub struct Model {
    network: Box<dyn Classifier>,
    normalization: Normalization,
    device: Device,
    deployed: Option<Deployed>,
}

/// A form in which a model is shipped.
pub enum Deployed {
    /// Weights and activations rounded to integers.
    Quantized(Quantized),
    /// Weights rounded by block.
    Blocks(BlockQuantized),
    /// Filters pruned; the network itself has zeros in their place, or no place for them.
    Pruned,
}

impl Model {
    /// A full-precision model.
    pub fn new(network: Box<dyn Classifier>, normalization: Normalization, device: Device) -> Self {
        Self { network, normalization, device, deployed: None }
    }

    /// The network, whatever form it is in: for looking at names and shapes and for saving.
    pub fn network(&self) -> &dyn Classifier {
        self.network.as_ref()
    }

    /// The network in full precision, or an error if the model is already in a deployed form.
    pub fn full_precision(&self) -> Result<&dyn Classifier> {
        match &self.deployed {
            None => Ok(self.network.as_ref()),
            Some(form) => Err(Error::invalid(format!(
                "the model is {}; purify the full-precision model instead (`from = \"<an earlier stage>\"`)",
                form.name()
            ))),
        }
    }

    /// Puts another network in the place of the one that is there.
    pub fn replace(&mut self, network: Box<dyn Classifier>) {
        self.network = network;
    }

    /// Takes over a state dict of the same architecture. Where it has other numbers of channels than the network, because
    /// filters were removed, the network is built anew.
    pub fn load_state(&mut self, state: StateDict) -> Result<()> {
        let width = |(name, own): (&str, usize)| {
            state.get(&format!("{name}.weight")).and_then(|weight| weight.dims().first()).copied().unwrap_or(own)
        };
        let own: Vec<(&str, usize)> =
            self.network.prunable().iter().map(|layer| (layer.name, layer.weight.dims()[0])).collect();
        let widths: Vec<usize> = own.iter().copied().map(width).collect();
        if own.iter().map(|(_, width)| *width).eq(widths.iter().copied()) {
            return self.network.params().load_state_dict(&state);
        }
        let spec = ModelSpec { widths: Some(widths), ..self.network.spec().clone() };
        self.network = spec.load(state, &self.device)?;
        Ok(())
    }

    /// Puts the model into a deployed form.
    pub fn deploy(&mut self, form: Deployed) {
        self.deployed = Some(form);
    }

    /// Per-channel mean and standard deviation that the network expects.
    pub fn normalization(&self) -> &Normalization {
        &self.normalization
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Logits `f32[B,K]` for pixels `f32[B,C,H,W]` in `[0,1]`, computed by the form the model is in.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.normalization.apply(pixels)?;
        match &self.deployed {
            Some(form) => form.logits(self.network.as_ref(), &x),
            None => self.network.logits(&x),
        }
    }

    /// A deep copy of a full-precision model.
    pub fn try_clone(&self) -> Result<Self> {
        self.full_precision()?;
        let network = models::copy(self.network.as_ref(), &self.device)?;
        Ok(Self::new(network, self.normalization.clone(), self.device.clone()))
    }
}

impl Deployed {
    /// Logits `f32[B,K]` for normalized images, of the form that `network` was put into.
    pub fn logits(&self, network: &dyn Classifier, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Quantized(quantized) => quantized.logits(network, x),
            Self::Blocks(blocks) => blocks.logits(network, x),
            Self::Pruned => network.logits(x),
        }
    }

    /// Activation ranges, of a form in which activations may be rounded.
    pub fn ranges(&self) -> Option<&Ranges> {
        match self {
            Self::Quantized(quantized) => Some(quantized.ranges()),
            Self::Blocks(_) | Self::Pruned => None,
        }
    }

    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Quantized(_) | Self::Blocks(_) => "quantized",
            Self::Pruned => "pruned",
        }
    }
}
