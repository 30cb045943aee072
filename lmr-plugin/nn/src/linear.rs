//! The fully connected layer.

use candle_core::Var;

use super::{Builder, Init};
use crate::Result;

/// `x · Wᵀ + b` over the last dimension.
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

    /// A layer whose fresh weights are normal with standard deviation 0.02 and whose fresh bias is 0, as in transformers.
    pub fn narrow_normal(inputs: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let weight = b.parameter("weight", (outputs, inputs), Init::Normal { std: 0.02 })?;
        Ok(Self::of(weight, Some(b.parameter("bias", outputs, Init::Zeros)?), b.path()))
    }

    /// A layer of parameters that have names of their own.
    pub fn of(weight: Var, bias: Option<Var>, name: &str) -> Self {
        Self { weight, bias, name: name.to_string() }
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
}
