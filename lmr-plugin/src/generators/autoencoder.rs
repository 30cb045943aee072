//! LIRA's generator: four halvings, four doublings.

use candle_core::{Device, Tensor};

use super::check_sides;
use crate::Result;
use crate::nn::{
    Activation, BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, ConvTranspose2d, Forward, Params, to_images,
};

/// Channels after each halving.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// Convolutions and transposed convolutions of 4×4 with stride 2, batch norm and ReLU between them, tanh at the end.
pub struct Autoencoder {
    encoder: Vec<ConvBn>,
    decoder: Vec<(ConvTranspose2d, Option<BatchNorm2d>)>,
    params: Params,
    device: Device,
}

impl Autoencoder {
    /// From images of `channels` channels to values in `[-1,1]` of the same shape.
    pub fn new(channels: usize, b: &Builder) -> Result<Self> {
        let (mut encoder, mut decoder, mut from) = (Vec::new(), Vec::new(), channels);
        for (i, to) in WIDTHS.into_iter().enumerate() {
            let b = b.pp("encoder").pp(i);
            let config = ConvConfig { stride: 2, padding: 1.into(), ..ConvConfig::default() };
            let spec = ConvSpec { in_channels: from, out_channels: to, kernel: (4, 4), bias: false, config };
            encoder.push(ConvBn::new(Conv2d::new(&spec, &b.pp("conv"))?, BatchNorm2d::new(to, &b.pp("bn"))?)?);
            from = to;
        }
        for (i, to) in [WIDTHS[2], WIDTHS[1], WIDTHS[0], channels].into_iter().enumerate() {
            let b = b.pp("decoder").pp(i);
            let norm = if i < 3 { Some(BatchNorm2d::new(to, &b.pp("bn"))?) } else { None };
            decoder.push((ConvTranspose2d::new(from, to, &b.pp("conv"))?, norm));
            from = to;
        }
        Ok(Self { encoder, decoder, device: b.device(), params: b.finish()? })
    }

    /// Refuses sides that are no multiples of 16.
    pub fn check_size(sides: [usize; 2]) -> Result<()> {
        check_sides(sides, 16)
    }

    /// Every named parameter and buffer.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Values in `[-1,1]`, `f32[B,C,H,W]`, for normalized images of that shape.
    pub fn forward(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        Self::check_size([height, width])?;
        let mut x = how.input(images)?;
        for layer in &self.encoder {
            x = how.convolution(layer.into(), &x, None, Activation::Relu)?;
        }
        for (layer, norm) in &self.decoder {
            x = how.conv_transpose(layer, &x)?;
            if let Some(norm) = norm {
                x = how.batch_norm(norm, &x, Activation::Relu)?;
            }
        }
        Ok(to_images(&x)?.tanh()?)
    }
}
