//! What follows a convolution, a batch norm or a linear layer.

use candle_core::Tensor;

use super::{Path, cpu, portable};
use crate::Result;

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(x, 0)`, with gradient 0 at 0.
    Relu,
    /// `min(max(x, 0), 6)`, with gradient 0 at 0 and at 6.
    Relu6,
    /// `x · Φ(x)` with the distribution function Φ of the standard normal: PyTorch's default GELU, not its tanh
    /// approximation.
    Gelu,
}

impl Activation {
    /// Applies it to a tensor of any shape; differentiable.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match (self, Path::of(x)) {
            (Self::None, _) => Ok(x.clone()),
            (_, Path::Cpu) => Ok(cpu::activate(x, self)?),
            (_, Path::Portable) => portable::activate(x, self),
        }
    }
}
