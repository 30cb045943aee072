//! What stages need of a network, so that anyone's can be purified.

use std::any::Any;

use candle_core::{Device, Tensor, Var};

use super::{ChannelGroup, Prunable};
use crate::nn::{Activation, Forward, Linear, Mode, Params, StateDict};
use crate::{Error, Result};

/// An image classifier whose last layer is linear.
///
/// This is all that a stage asks of a network: `examples/custom_loop.rs` implements it for a struct of `candle_nn` layers. What
/// only some stages need has a default that says so: pruning asks for [`Classifier::prunable`] layers, rounding activations for a
/// network that is [`Layered`].
pub trait Classifier: Any + Send + Sync {
    /// Every named parameter and buffer.
    fn params(&self) -> &Params;

    /// The last layer: `W ∈ ℝ^{K×D}` and its bias; its variables are among the parameters.
    fn head(&self) -> &Linear;

    /// Channels, height and width of an image that it takes.
    fn input_shape(&self) -> [usize; 3];

    /// The head's input, `f32[B,D]`, for normalized images `f32[B,C,H,W]`.
    fn features(&self, images: &Tensor, mode: Mode) -> Result<Tensor>;

    /// A network of the same kind that shares nothing with this one, with the parameters and buffers of `state` under the names of
    /// [`Classifier::params`]. Where a network offers [`Classifier::channel_groups`], tensors may have lost channels.
    fn rebuild(&self, state: StateDict, device: &Device) -> Result<Box<dyn Classifier>>;

    /// Logits `f32[B,K]` for normalized images `f32[B,C,H,W]`.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let features = self.features(images, mode)?;
        Ok(mode.with(|how| how.linear(self.head(), &features, Activation::None))?)
    }

    /// Logits in inference, of which nothing is recorded.
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.forward(images, Mode::Eval)?.detach())
    }

    /// What structured pruning ranks, in the order it runs: the filters of every convolution, shortcuts included; in a transformer the
    /// hidden units of every MLP. By default every parameter of four dimensions that is called `<layer>.weight`.
    fn prunable(&self) -> Vec<Prunable<'_>> {
        let vars: Vec<(&str, &Var)> = self.params().trainable().collect();
        let bias = |layer: &str| {
            let found = vars.iter().find(|(name, _)| name.strip_suffix(".bias") == Some(layer));
            found.map(|(_, var)| *var)
        };
        let filters = vars.iter().filter(|(_, var)| var.rank() == 4);
        let named = filters.filter_map(|(name, weight)| Some((name.strip_suffix(".weight")?, *weight)));
        named.map(|(name, weight)| Prunable { name, weight, bias: bias(name) }).collect()
    }

    /// Which channels can only be removed together, and from which tensors; in the order of [`Classifier::prunable`]. Where outputs are
    /// added or filtered one by one, several layers share their channels. By default unknown, which is an error.
    fn channel_groups(&self) -> Result<Vec<ChannelGroup>> {
        Err(Error::Unsupported {
            what: "silencing or removing channels",
            needs: "a network that implements `Classifier::channel_groups`; masking filters does not",
        })
    }

    /// The network layer by layer, if it can say so.
    fn layered(&self) -> Option<&dyn Layered> {
        None
    }

    /// K.
    fn classes(&self) -> usize {
        self.head().weight().dims().first().copied().unwrap_or_default()
    }

    /// Where its parameters are.
    fn device(&self) -> &Device {
        self.head().weight().device()
    }

    /// A deep copy.
    fn copy(&self) -> Result<Box<dyn Classifier>> {
        self.rebuild(self.params().state_dict()?, self.device())
    }
}

/// A network that says layer by layer what it computes, and leaves the how to an interpreter: as integers, in several forms at
/// once, to see which layers there are.
pub trait Layered {
    /// Logits `f32[B,K]` for normalized images `f32[B,C,H,W]`, in whatever form the interpreter computes them.
    fn interpret(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor>;
}

impl dyn Classifier {
    /// The network layer by layer, for `what` needs it.
    pub(crate) fn need_layers(&self, what: &'static str) -> Result<&dyn Layered> {
        self.layered().ok_or(Error::Unsupported { what, needs: "a network that implements `Layered`" })
    }
}
