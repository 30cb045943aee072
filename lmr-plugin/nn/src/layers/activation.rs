//! What follows a convolution, a batch norm or a linear layer.

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
