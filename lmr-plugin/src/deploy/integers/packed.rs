//! Layers as the integer kernels want them.

use candle_core::{DType, Tensor};

use super::super::FormError;
use crate::Result;
use crate::nn::int8::{Affine, Channels, Dense, Depthwise, Images, Kernel, Real, Residual, Rounded};
use crate::nn::{Activation, ConvConfig};

/// The integers of a layer, packed, and what makes numbers of its sums.
pub(super) struct PackedLayer {
    weights: Weights,
    /// `[O,C,kh,kw]`; a linear layer has a kernel of one tap.
    shape: [usize; 4],
    config: ConvConfig,
    /// One, or one an output channel.
    scale: Vec<f32>,
    /// One an output channel.
    bias: Vec<f32>,
}

enum Weights {
    Dense(Dense),
    Depthwise(Depthwise),
}

/// Codes that are added before the activation: what they are, their grid and the sum's.
pub(super) type Added<'a> = (&'a [u8], Affine, Affine);

impl PackedLayer {
    /// Packs integers `f32[O,C,kh,kw]` or `f32[O,D]` with a scale of one or `O` elements; `None` where there is no kernel for
    /// them: not on the CPU, not of signed bytes, groups of several channels, sums beyond 32 bits.
    pub fn pack(
        (integers, scale): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
        config: ConvConfig,
    ) -> Result<Option<Self>> {
        if !integers.device().is_cpu() || integers.dtype() != DType::F32 {
            return Ok(None);
        }
        let shape = match *integers.dims() {
            [o, c, kh, kw] => [o, c, kh, kw],
            [o, d] => [o, d, 1, 1],
            _ => return Ok(None),
        };
        let values = integers.flatten_all()?.to_vec1::<f32>()?;
        let byte = |v: &f32| (v.fract() == 0.0 && (-128.0..=127.0).contains(v)).then_some(*v as i8);
        let Some(bytes) = values.iter().map(byte).collect::<Option<Vec<i8>>>() else { return Ok(None) };
        let scale = scale.flatten_all()?.to_vec1::<f32>()?;
        let bias = match bias {
            Some(bias) => bias.to_vec1::<f32>()?,
            None => vec![0.0; shape[0]],
        };
        let finite = scale.iter().chain(&bias).all(|v| v.is_finite());
        if !finite || bias.len() != shape[0] || !(scale.len() == 1 || scale.len() == shape[0]) {
            return Ok(None);
        }
        let weights = match config.groups {
            1 => Dense::new(&bytes, shape, config).map(Weights::Dense),
            _ => Depthwise::new(&bytes, shape, config).map(Weights::Depthwise),
        };
        Ok(weights.map(|weights| Self { weights, shape, config, scale, bias }))
    }

    /// `O`.
    pub fn outputs(&self) -> usize {
        self.shape[0]
    }

    /// Height and width of the kernel.
    pub fn kernel(&self) -> (usize, usize) {
        (self.shape[2], self.shape[3])
    }

    /// Height and width of the output.
    pub fn output(&self, images: Images<'_>) -> Result<(usize, usize)> {
        Ok(images.output(&self.shape, &self.config)?)
    }

    /// Codes of `activation(layer(x))` on the grid `to`; with a residual, of `activation(round(layer(x)) + residual)` on the
    /// sum's grid.
    pub fn codes(
        &self,
        kernel: Kernel,
        (images, from): (Images<'_>, Affine),
        to: Affine,
        added: Option<Added<'_>>,
        activation: Activation,
    ) -> Result<Vec<u8>> {
        if let Some((codes, ..)) = added {
            let (h, w) = self.output(images)?;
            let expected = images.count() * h * w * self.outputs();
            if codes.len() != expected {
                return Err(FormError::Residual { expected, found: codes.len() }.into());
            }
        }
        let residual = added.map(|(codes, from, to)| Residual { codes, from, to });
        let finish = Rounded { channels: self.channels(from), activation, to, residual };
        Ok(match &self.weights {
            Weights::Dense(layer) => layer.run(kernel, images, from.zero(), &finish)?,
            Weights::Depthwise(layer) => layer.run(kernel, images, from.zero(), &finish)?,
        })
    }

    /// `layer(x)`, not rounded.
    pub fn values(&self, kernel: Kernel, (images, from): (Images<'_>, Affine)) -> Result<Vec<f32>> {
        let finish = Real(self.channels(from));
        Ok(match &self.weights {
            Weights::Dense(layer) => layer.run(kernel, images, from.zero(), &finish)?,
            Weights::Depthwise(layer) => layer.run(kernel, images, from.zero(), &finish)?,
        })
    }

    fn channels(&self, from: Affine) -> Channels {
        Channels::new(&self.scale, from.scale(), &self.bias)
    }
}
