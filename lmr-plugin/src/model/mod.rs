//! The model a pipeline carries from stage to stage: a network, how its input is normalized, and the form it is in.

mod channels;
mod classifier;
mod form;

use candle_core::{Device, Tensor};

pub use channels::{ChannelGroup, Prunable, Slice};
pub use classifier::{Classifier, Layered};
pub use form::{Form, Stored};

use crate::data::{Images, Normalization};
use crate::nn::{Mode, StateDict};
use crate::{Error, Result};

/// A network with everything needed to run it on pixels.
pub struct Model {
    network: Box<dyn Classifier>,
    normalization: Normalization,
    deployed: Option<Box<dyn Form>>,
}

impl Model {
    /// A full-precision model, and what is done to pixels in `[0,1]` before its first layer. Errors if the normalization is for
    /// another number of channels.
    pub fn new(network: Box<dyn Classifier>, normalization: Normalization) -> Result<Self> {
        normalization.validate(network.input_shape()[0])?;
        Ok(Self { network, normalization, deployed: None })
    }

    /// The network, whatever form it is in: for looking at names and shapes and for saving.
    pub fn network(&self) -> &dyn Classifier {
        self.network.as_ref()
    }

    /// The network in full precision, or an error if the model is already in a deployed form.
    pub fn full_precision(&self) -> Result<&dyn Classifier> {
        match &self.deployed {
            None => Ok(self.network.as_ref()),
            Some(form) => Err(Error::Deployed { form: form.word() }),
        }
    }

    /// Puts another network in the place of the one that is there.
    pub fn replace(&mut self, network: Box<dyn Classifier>) {
        self.network = network;
    }

    /// Takes over a state dict of the same network. Where it has other numbers of channels, because filters were removed, the
    /// network is built anew.
    pub fn load_state(&mut self, state: StateDict) -> Result<()> {
        let params = self.network.params();
        let differs = |(name, var): (&str, &candle_core::Var)| state.get(name).is_some_and(|t| t.dims() != var.dims());
        if !params.trainable().any(differs) {
            return Ok(params.load_state_dict(&state)?);
        }
        self.network = self.network.rebuild(state, self.device())?;
        Ok(())
    }

    /// Puts the model into a deployed form.
    pub fn deploy(&mut self, form: Box<dyn Form>) {
        self.deployed = Some(form);
    }

    /// The form that it is in; `None` in full precision.
    pub fn form(&self) -> Option<&dyn Form> {
        self.deployed.as_deref()
    }

    /// Per-channel mean and standard deviation that the network expects.
    pub fn normalization(&self) -> &Normalization {
        &self.normalization
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.network.device()
    }

    /// Logits `f32[B,K]` for pixels `f32[B,C,H,W]` in `[0,1]`, computed by the form the model is in.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.normalization.apply(pixels)?;
        match &self.deployed {
            Some(form) => form.logits(self.network.as_ref(), &x),
            None => self.network.logits(&x),
        }
    }

    /// Logits `f32[B,K]` of the full-precision network for pixels `f32[B,C,H,W]` in `[0,1]`.
    pub fn forward(&self, pixels: &Tensor, mode: Mode) -> Result<Tensor> {
        self.full_precision()?.forward(&self.normalization.apply(pixels)?, mode)
    }

    /// The head's input, `f32[B,D]`, for pixels `f32[B,C,H,W]` in `[0,1]`.
    pub fn features(&self, pixels: &Tensor, mode: Mode) -> Result<Tensor> {
        self.full_precision()?.features(&self.normalization.apply(pixels)?, mode)
    }

    /// Errors if the images have another number of channels or of classes than the model.
    pub fn check(&self, images: &Images) -> Result<()> {
        let (channels, classes) = (self.network.input_shape()[0], self.network.classes());
        if images.shape()[0] != channels || images.classes() != classes {
            return Err(Error::OtherImages {
                expected: [channels, classes],
                found: [images.shape()[0], images.classes()],
            });
        }
        Ok(())
    }

    /// A deep copy of a full-precision model.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(self.with(self.full_precision()?.copy()?))
    }

    /// A full-precision model of another network that takes the same images.
    pub fn with(&self, network: Box<dyn Classifier>) -> Self {
        Self { network, normalization: self.normalization.clone(), deployed: None }
    }
}
