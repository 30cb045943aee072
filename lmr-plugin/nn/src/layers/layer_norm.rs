//! Layer normalization (Ba et al., 2016).

use candle_core::Var;

use crate::error::Result;
use crate::params::{Builder, Init};

/// `γ (x - mean) / √(var + ε) + β` over the D features of every token.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Var,
    bias: Var,
    eps: f64,
    name: String,
}

impl LayerNorm {
    /// Layer norm at the builder's path, over `features` features.
    pub fn new(features: usize, eps: f64, b: &Builder) -> Result<Self> {
        let weight = b.parameter("weight", features, Init::Ones)?;
        let bias = b.parameter("bias", features, Init::Zeros)?;
        Ok(Self { weight, bias, eps, name: b.path().to_string() })
    }

    /// The full name, such as `encoder.ln`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// γ: `f32[D]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// β: `f32[D]`.
    pub fn bias(&self) -> &Var {
        &self.bias
    }

    /// ε, added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }
}
