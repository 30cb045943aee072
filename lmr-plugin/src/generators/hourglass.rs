//! The generators of input-aware attacks: three halvings by max pooling, three bilinear doublings.

use candle_core::{Device, Tensor};

use super::check_sides;
use crate::Result;
use crate::nn::{
    Activation, BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Forward, Padding, Params, to_images,
};

/// Blocks of a 3×3 convolution, batch norm and ReLU around changes of resolution. As in the authors' code but for the
/// convolutions' biases, which batch norm cancels, and the momentum of the running statistics (0.05 there).
pub struct Hourglass {
    down: Vec<[ConvBn; 2]>,
    middle: ConvBn,
    up: Vec<[ConvBn; 2]>,
    params: Params,
    device: Device,
}

impl Hourglass {
    /// From images of `channels` channels to values in `[0,1]` of `outputs` channels.
    pub fn new(channels: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let pair = |stage: &str, i: usize, (from, between, to): (usize, usize, usize)| -> Result<[ConvBn; 2]> {
            let b = b.pp(stage).pp(i);
            Ok([block((from, between), &b.pp(0))?, block((between, to), &b.pp(1))?])
        };
        let down = vec![
            pair("down", 0, (channels, 32, 32))?,
            pair("down", 1, (32, 64, 64))?,
            pair("down", 2, (64, 128, 128))?,
        ];
        let middle = block((128, 128), &b.pp("middle"))?;
        let up = vec![pair("up", 0, (128, 128, 64))?, pair("up", 1, (64, 64, 32))?, pair("up", 2, (32, 32, outputs))?];
        Ok(Self { down, middle, up, device: b.device(), params: b.finish()? })
    }

    /// Refuses sides that are no multiples of 8.
    pub fn check_size(sides: [usize; 2]) -> Result<()> {
        check_sides(sides, 8)
    }

    /// Every named parameter and buffer.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Values in `[0,1]`, `f32[B,O,H,W]`, for normalized images `f32[B,C,H,W]`.
    pub fn forward(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        Self::check_size([height, width])?;
        let mut x = how.input(images)?;
        for [first, second] in &self.down {
            x = how.convolution(first.into(), &x, None, Activation::Relu)?;
            x = how.convolution(second.into(), &x, None, Activation::Relu)?;
            x = how.max_pool(&x, 2, 2, Padding::Symmetric(0))?;
        }
        x = how.convolution((&self.middle).into(), &x, None, Activation::Relu)?;
        for (i, [first, second]) in self.up.iter().enumerate() {
            x = how.upsample(&x)?;
            x = how.convolution(first.into(), &x, None, Activation::Relu)?;
            let last = if i + 1 == self.up.len() { Activation::None } else { Activation::Relu };
            x = how.convolution(second.into(), &x, None, last)?;
        }
        Ok(to_images(&x)?.tanh()?.affine(0.5, 0.5)?)
    }
}

/// A 3×3 convolution that keeps the size, and batch norm.
fn block((from, to): (usize, usize), b: &Builder) -> Result<ConvBn> {
    let config = ConvConfig { padding: 1.into(), ..ConvConfig::default() };
    let spec = ConvSpec { in_channels: from, out_channels: to, kernel: (3, 3), bias: false, config };
    Ok(ConvBn::new(Conv2d::new(&spec, &b.pp("conv"))?, BatchNorm2d::new(to, &b.pp("bn"))?)?)
}
