//! The network's operations on codes.

use candle_core::{DType, Device, Tensor};

use super::super::FormError;
use super::super::places::Average;
use super::super::points::Point;
use super::{Interpreter, Simulation};
use crate::Error;
use crate::nn::int8::{self, Images};
use crate::nn::{
    Activation, BatchNorm2d, ConvTranspose2d, Convolution, Forward, LayerNorm, Linear, Padding, PatchEmbedding, Result,
    pooled_size, to_tokens,
};

impl Forward for Interpreter<'_> {
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        self.encoded(x, Point::Input)
    }

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let simulated = |how: &mut Simulation<'_>, x: &Tensor, activation| how.convolution(layer, x, None, activation);
        self.layer(layer.conv().name(), x, residual, activation, simulated)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if let Some(logits) = self.logits(layer, x, activation)? {
            return Ok(logits);
        }
        let simulated = |how: &mut Simulation<'_>, x: &Tensor, activation| how.linear(layer, x, activation);
        self.layer(layer.name(), x, None, activation, simulated)
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else {
            let y = self.simulation.batch_norm(layer, x, activation)?;
            return self.encoded(&y, Point::Layer(layer.name()));
        };
        let (scale, shift) = layer.scale_shift(true)?;
        let (scale, shift) = (scale.to_vec1::<f32>()?, shift.to_vec1::<f32>()?);
        check_features(x, scale.len())?;
        let to = self.reach(Point::Layer(layer.name()))?;
        let codes = int8::batch_norm((&int8::codes(x)?, from), (&scale, &shift), activation, to);
        self.keep(codes, x.dims(), to)
    }

    fn conv_transpose(&mut self, layer: &ConvTranspose2d, x: &Tensor) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.conv_transpose(layer, x))
    }

    fn upsample(&mut self, x: &Tensor) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.upsample(x))
    }

    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
        let Some(grid) = self.grid(x)? else { return self.simulation.max_pool(x, kernel, stride, padding) };
        let (b, h, w, c) = x.dims4()?;
        let (oh, ow) = pooled_size((h, w), kernel, stride, padding)?;
        let pooled = int8::max_pool(Images::new(&int8::codes(x)?, [b, h, w, c])?, (oh, ow), (kernel, stride, padding));
        self.keep(pooled, &[b, oh, ow, c], grid)
    }

    fn mean_patch(&mut self, x: &Tensor) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.mean_patch(x))
    }

    fn avg_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.avg_pool(x, kernel, stride, padding))
    }

    fn adaptive_avg_pool(&mut self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        match *x.dims() {
            [_, h, w, _] if x.dtype() == DType::U8 && (h, w) == size => Ok(x.clone()),
            _ => self.unrounded(x, |how, x| how.adaptive_avg_pool(x, size)),
        }
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let Some(grid) = self.grid(x)? else { return self.simulation.global_avg_pool(x) };
        let (b, h, w, c) = x.dims4()?;
        let mean = int8::mean(Images::new(&int8::codes(x)?, [b, h, w, c])?, grid);
        let mean = Tensor::from_vec(mean, (b, c), &Device::Cpu)?;
        match self.scheme.places.average {
            Average::Float => Ok(mean),
            Average::Same => self.encoded_on(&mean, grid),
            Average::Own => self.encoded(&mean, Point::Average),
        }
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        match self.grid(x)? {
            // In the order of `[C,H,W]`, as weights are.
            Some(grid) => Ok(self.known(x.permute((0, 3, 1, 2))?.flatten_from(1)?.contiguous()?, grid)),
            None => self.simulation.flatten(x),
        }
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> Result<Tensor> {
        let codes = self.encoded(images, Point::Input)?;
        let (b, h, w, _) = codes.dims4()?;
        let packed = self.layers.get(layer.conv().name()).zip(self.grid(&codes)?);
        let packed = packed.filter(|(packed, _)| {
            let (ph, pw) = packed.kernel();
            h.is_multiple_of(ph) && w.is_multiple_of(pw)
        });
        let Some((packed, from)) = packed else {
            let images = self.decoded(&codes)?;
            let y = self.simulation.embed(layer, &images)?;
            return self.encoded(&to_tokens(&y)?, Point::Layer(layer.conv().name()));
        };
        let lent = int8::codes(&codes)?;
        let images = Images::new(&lent, codes.dims4()?.into())?;
        let (rows, columns) = packed.output(images)?;
        let patches = packed.values(self.kernel, (images, from))?;
        let patches = Tensor::from_vec(patches, (b, rows * columns, packed.outputs()), &Device::Cpu)?;
        let class = layer.class().detach().broadcast_as((b, 1, packed.outputs()))?;
        let tokens = Tensor::cat(&[class.contiguous()?, patches], 1)?.broadcast_add(&layer.position().detach())?;
        self.encoded(&tokens, Point::Layer(layer.conv().name()))
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else {
            let y = self.simulation.layer_norm(layer, x)?;
            return self.encoded(&to_tokens(&y)?, Point::Layer(layer.name()));
        };
        let (gamma, beta) = (layer.weight().to_vec1::<f32>()?, layer.bias().to_vec1::<f32>()?);
        check_features(x, gamma.len())?;
        let to = self.reach(Point::Layer(layer.name()))?;
        let codes = int8::layer_norm((&int8::codes(x)?, from), (&gamma, &beta), layer.eps(), to);
        self.keep(codes, x.dims(), to)
    }

    fn attend(&mut self, qkv: &Tensor, heads: usize) -> Result<Tensor> {
        let Some(from) = self.grid(qkv)? else {
            let y = self.simulation.attend(qkv, heads)?;
            return self.encoded(&to_tokens(&y)?, Point::Attention);
        };
        let (b, t, features) = qkv.dims3()?;
        let to = self.reach(Point::Attention)?;
        let mixed = int8::attend((&int8::codes(qkv)?, from), [b, t, features], heads, to)?;
        self.keep(mixed, &[b, t, features / 3], to)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match (self.grid(x)?, self.grid(y)?) {
            (Some(from_x), Some(from_y)) if x.dims() == y.dims() => {
                let to = self.reach(Point::Sum)?;
                let codes = int8::add((&int8::codes(x)?, from_x), (&int8::codes(y)?, from_y), to);
                self.keep(codes, x.dims(), to)
            }
            _ => {
                let sum = (self.decoded(x)? + self.decoded(y)?)?;
                self.encoded(&sum, Point::Sum)
            }
        }
    }

    fn class_token(&mut self, x: &Tensor) -> Result<Tensor> {
        match self.grid(x)? {
            Some(grid) => Ok(self.known(x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, grid)),
            None => self.simulation.class_token(x),
        }
    }
}

/// Refuses an activation whose last dimension is not `features`.
fn check_features(x: &Tensor, features: usize) -> Result<()> {
    match x.dims().last() {
        Some(&last) if last == features => Ok(()),
        found => Err(Error::from(FormError::Features { expected: features, found: found.copied() }).into()),
    }
}
