//! Architectures. Each is one file that names its layers as PyTorch does and says what it computes through
//! [`Forward`]; nothing else in the workspace asks which architecture it holds.

mod resnet;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use resnet::{ResNet, Stem};

use crate::nn::{Builder, Conv2d, Eval, Forward, Linear, Params, StateDict};
use crate::rng::Rng;
use crate::{Error, Result};

/// What has to be known to build a model; the `[model]` table of a pipeline without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelSpec {
    /// The architecture.
    pub arch: Arch,
    /// How the network begins: `cifar` (3x3, stride 1, no pooling) for small images, `imagenet` (7x7, stride 2, max-pool).
    #[serde(default)]
    pub stem: Stem,
    /// Channels of the first stage; later stages have 2, 4 and 8 times as many. 64 in the literature.
    #[serde(default = "default_width")]
    pub width: usize,
    /// Number of classes K, at least 2.
    pub classes: usize,
    /// Channels of an image: 3 for colour, 1 for grey.
    #[serde(default = "default_channels")]
    pub channels: usize,
}

fn default_width() -> usize {
    64
}

fn default_channels() -> usize {
    3
}

/// The architectures there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// ResNet-18 (He et al., 2016).
    Resnet18,
    /// ResNet-34.
    Resnet34,
}

/// An image classifier whose last layer is linear.
pub trait Classifier: Send + Sync {
    /// What it was built from.
    fn spec(&self) -> &ModelSpec;

    /// Every named parameter, buffer and counter.
    fn params(&self) -> &Params;

    /// The last layer: `W ∈ ℝ^{K×D}` and its bias.
    fn head(&self) -> &Linear;

    /// Every convolution in the order it runs, shortcuts included: what structured pruning ranks.
    fn convolutions(&self) -> Vec<&Conv2d>;

    /// The head's input, `f32[B,D]`, for normalized images `f32[B,C,H,W]`.
    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor>;

    /// Logits `f32[B,K]` for normalized images `f32[B,C,H,W]`.
    fn forward(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let features = self.features(how, images)?;
        how.linear(self.head(), &features)
    }

    /// Logits in inference mode.
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.forward(&mut Eval, images)
    }
}

impl ModelSpec {
    /// What is impossible about this specification, if anything; each message names the key.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, value, range) in [
            ("classes", self.classes, 2..=100_000),
            ("width", self.width, 1..=1024),
            ("channels", self.channels, 1..=16),
        ] {
            if !range.contains(&value) {
                faults.push(format!("{key}: expected {} to {}, found {value}", range.start(), range.end()));
            }
        }
        faults
    }

    /// A model with freshly drawn parameters.
    pub fn fresh(&self, rng: Rng, device: &Device) -> Result<Box<dyn Classifier>> {
        self.build(&Builder::fresh(rng, device))
    }

    /// A model with the parameters of a checkpoint under PyTorch's names; names and shapes must match exactly
    /// (`num_batches_tracked` may be absent).
    pub fn load(&self, state: StateDict, device: &Device) -> Result<Box<dyn Classifier>> {
        self.build(&Builder::from_state(state, device))
    }

    fn build(&self, builder: &Builder) -> Result<Box<dyn Classifier>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(Error::invalid(format!("model: {}", faults.join("; "))));
        }
        match self.arch {
            Arch::Resnet18 => Ok(Box::new(ResNet::new(self, &[2, 2, 2, 2], builder)?)),
            Arch::Resnet34 => Ok(Box::new(ResNet::new(self, &[3, 4, 6, 3], builder)?)),
        }
    }
}

/// A deep copy: the two models share no storage.
pub fn copy(model: &dyn Classifier, device: &Device) -> Result<Box<dyn Classifier>> {
    model.spec().load(model.params().state_dict()?, device)
}
