//! The transposed convolution that doubles height and width.

use candle_core::{Device, Tensor, Var};

use crate::error::Result;
use crate::params::{Builder, Init};

/// A transposed convolution with a 4×4 kernel, stride 2 and padding 1: PyTorch's `ConvTranspose2d(C, O, 4, 2, 1)`.
///
/// Each of the four pixels that a pixel becomes is a sum over its 3×3 neighbourhood, of which four taps each take part. So
/// it is computed as a 3×3 convolution to `4·O` channels, whose outputs are then put side by side: 9 products where 4
/// would do, by kernels that are fast forward and backward and whose gradients are right.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    weight: Var,
    bias: Var,
    name: String,
}

impl ConvTranspose2d {
    /// The layer at the builder's path, from `inputs` to `outputs` channels. Fresh weights and bias are uniform in
    /// `±1/√(16·outputs)`, PyTorch's default.
    pub fn new(inputs: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let init = Init::Uniform { bound: 1.0 / (16.0 * outputs as f32).sqrt() };
        let weight = b.parameter("weight", (inputs, outputs, 4, 4), init)?;
        let bias = b.parameter("bias", outputs, init)?;
        Ok(Self { weight, bias, name: b.path().to_string() })
    }

    /// The full name, such as `decoder.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `f32[C,O,4,4]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// `f32[O]`.
    pub fn bias(&self) -> &Var {
        &self.bias
    }
}

/// The weight `f32[4·O,C,3,3]` and bias `f32[4·O]` of the convolution whose channel `4·o + 2·a + b` gives the output pixels
/// of channel `o` in odd (a = 1) or even rows and odd (b = 1) or even columns. Differentiable.
pub(crate) fn as_convolution(weight: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
    let (inputs, outputs, _, _) = weight.dims4()?;
    let spread = spread(weight.device())?.to_dtype(weight.dtype())?;
    // f32[C·O,16] to f32[C,O,4,9], then outputs first.
    let taps = weight.contiguous()?.reshape((inputs * outputs, 16))?.matmul(&spread)?;
    let taps = taps.reshape((inputs, outputs * 4, 9))?.transpose(0, 1)?.contiguous()?;
    let bias = bias.reshape((outputs, 1))?.broadcast_as((outputs, 4))?.contiguous()?.reshape(outputs * 4)?;
    Ok((taps.reshape((outputs * 4, inputs, 3, 3))?, bias))
}

/// `f32[16,36]`: which of the 16 weights is which of the 9 taps of each of the four output pixels.
fn spread(device: &Device) -> Result<Tensor> {
    // Output 2i + a reads input i + d with weight 1 + a − 2d, if there is such a weight.
    let weight_of = |a: usize, tap: usize| (3 + a).checked_sub(2 * tap).filter(|k| *k < 4);
    let mut values = vec![0f32; 16 * 36];
    for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for (row, column) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            if let (Some(ky), Some(kx)) = (weight_of(a, row), weight_of(b, column)) {
                values[(ky * 4 + kx) * 36 + (2 * a + b) * 9 + row * 3 + column] = 1.0;
            }
        }
    }
    Ok(Tensor::from_vec(values, (16, 36), device)?)
}

/// Images `f32[B,4·O,H,W]` as `f32[B,O,2·H,2·W]`.
pub(crate) fn interleave(x: &Tensor) -> Result<Tensor> {
    let (b, channels, h, w) = x.dims4()?;
    let split = x.reshape(&[b, channels / 4, 2, 2, h, w])?.permute([0, 1, 4, 2, 5, 3])?.contiguous()?;
    Ok(split.reshape((b, channels / 4, 2 * h, 2 * w))?)
}
