//! The fully connected layer.

use candle_core::{Tensor, Var};

use super::{Builder, Init};
use crate::Result;

/// `x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Var,
    bias: Option<Var>,
    name: String,
}

impl Linear {
    /// A layer with a bias from `inputs` to `outputs` values at the builder's path. Fresh weights and bias are uniform
    /// in `±1/√inputs`, PyTorch's default.
    pub fn new(inputs: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let init = Init::Uniform { bound: (1.0 / (inputs as f64).sqrt()) as f32 };
        let weight = b.parameter("weight", (outputs, inputs), init)?;
        let bias = Some(b.parameter("bias", outputs, init)?);
        Ok(Self { weight, bias, name: b.path().to_string() })
    }

    /// The full name, such as `fc`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `f32[K,D]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// `f32[K]`.
    pub fn bias(&self) -> Option<&Var> {
        self.bias.as_ref()
    }

    /// Applies the layer to `f32[B,D]`; `detached` keeps it off the record.
    pub(crate) fn apply(&self, x: &Tensor, detached: bool) -> Result<Tensor> {
        let of = |t: &Tensor| if detached { t.detach() } else { t.clone() };
        let y = of(x).matmul(&of(&self.weight).t()?)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(&of(bias))?),
            None => Ok(y),
        }
    }
}
