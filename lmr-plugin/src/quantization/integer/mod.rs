//! A network on integers: what the simulation computes with floats on grids, computed with the grids' integers.
//!
//! Activations are tensors of bytes, channels-last ([`crate::nn::int8`]). Sums of products are exact; the simulation's are
//! rounded like all sums of floats, so a value next to the middle between two integers can become the other one.
//!
//! What the simulation does not round is a float here, too: averages over positions, and with them the input of a
//! classifier's head. Layers without an integer kernel run as in the simulation.

mod layer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, TensorId};

use super::{Integer, Ranges, grid};
use crate::nn::int8::{self, Affine, Images, Kernel};
use crate::nn::{
    Activation, BatchNorm2d, Conv2d, ConvBn, ConvTranspose2d, Forward, LayerNorm, Linear, PatchEmbedding, pooled_size,
    to_tokens,
};
use crate::{Error, Result};

pub(super) use layer::Layer;

/// An interpreter whose activations are codes.
pub(super) struct Engine<'a> {
    /// What runs the layers that have no kernel.
    simulation: Integer<'a>,
    layers: &'a BTreeMap<String, Layer>,
    ranges: &'a Ranges,
    kernel: Kernel,
    /// The activation point that comes next.
    at: usize,
    /// What the codes of a tensor stand for.
    grids: HashMap<TensorId, Affine>,
}

impl<'a> Engine<'a> {
    pub fn new(
        simulation: Integer<'a>,
        layers: &'a BTreeMap<String, Layer>,
        ranges: &'a Ranges,
        kernel: Kernel,
    ) -> Self {
        Self { simulation, layers, ranges, kernel, at: 0, grids: HashMap::new() }
    }

    /// What a tensor stands for: codes are decoded, to images where there are pixels; anything else stays as it is.
    pub fn decoded(&self, x: &Tensor) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else { return Ok(x.clone()) };
        let codes = int8::codes(x)?;
        Ok(match *x.dims() {
            [b, h, w, c] => {
                Tensor::from_vec(int8::decode_images(&codes, (c, h * w), from), (b, c, h, w), &Device::Cpu)?
            }
            _ => Tensor::from_vec(int8::decode(&codes, from), x.dims(), &Device::Cpu)?,
        })
    }

    /// The grid of a tensor of codes; `None` for any other.
    fn grid(&self, x: &Tensor) -> Result<Option<Affine>> {
        match (x.dtype(), self.grids.get(&x.id())) {
            (DType::U8, Some(grid)) => Ok(Some(*grid)),
            (DType::U8, None) => Err(Error::invalid("integer forward: nobody knows what these codes stand for")),
            _ => Ok(None),
        }
    }

    /// The grid of the next activation point.
    fn point(&mut self) -> Result<Affine> {
        let (low, high) = self.ranges.point(self.at)?;
        self.at += 1;
        Affine::of(&grid(low, high)).ok_or_else(|| Error::invalid("integer forward: a grid of more than 256 values"))
    }

    fn keep(&mut self, codes: Vec<u8>, dims: &[usize], grid: Affine) -> Result<Tensor> {
        self.known(Tensor::from_vec(codes, dims, &Device::Cpu)?, grid)
    }

    fn known(&mut self, codes: Tensor, grid: Affine) -> Result<Tensor> {
        self.grids.insert(codes.id(), grid);
        Ok(codes)
    }

    /// Values at the next activation point; images become channels-last.
    fn encoded(&mut self, x: &Tensor) -> Result<Tensor> {
        let (x, to) = (x.detach().contiguous()?, self.point()?);
        let values = int8::values(&x)?;
        if let Some(value) = values.iter().find(|v| v.is_nan()) {
            return Err(Error::NotFinite { what: "activation", step: self.at - 1, value: f64::from(*value) });
        }
        match *x.dims() {
            [b, c, h, w] => self.keep(int8::encode_images(&values, (c, h * w), to), &[b, h, w, c], to),
            ref dims => self.keep(int8::encode(&values, to), dims, to),
        }
    }

    /// Runs a layer; where there is no kernel for it, `otherwise` runs it as in the simulation.
    fn layer(
        &mut self,
        name: &str,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
        otherwise: impl FnOnce(&mut Integer<'a>, &Tensor, Activation) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let packed = self.layers.get(name).zip(self.grid(x)?);
        let added = residual.map(|residual| Ok::<_, Error>((residual, self.grid(residual)?))).transpose()?;
        match (packed, added) {
            (Some(packed), None) => self.packed(packed, x, None, activation),
            (Some(packed), Some((residual, Some(grid)))) => self.packed(packed, x, Some((residual, grid)), activation),
            (_, None) => {
                let x = self.decoded(x)?;
                let y = otherwise(&mut self.simulation, &x, activation)?;
                self.encoded(&y)
            }
            (_, Some((residual, _))) => {
                let x = self.decoded(x)?;
                let y = otherwise(&mut self.simulation, &x, Activation::None)?;
                let y = self.encoded(&y)?;
                let sum = (self.decoded(&y)? + self.decoded(residual)?)?;
                self.encoded(&activation.apply(&sum)?)
            }
        }
    }

    /// Runs a layer's kernel.
    fn packed(
        &mut self,
        (layer, from): (&Layer, Affine),
        x: &Tensor,
        residual: Option<(&Tensor, Affine)>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (codes, mut dims) = (int8::codes(x)?, x.dims().to_vec());
        let images = match *x.dims() {
            [b, h, w, c] => Images::new(&codes, [b, h, w, c])?,
            [ref rows @ .., d] => Images::new(&codes, [rows.iter().product(), 1, 1, d])?,
            [] => return Err(Error::invalid("integer forward: a layer reads a single number")),
        };
        let (h, w) = layer.output(images)?;
        if let [_, height, width, _] = dims.as_mut_slice() {
            (*height, *width) = (h, w);
        }
        if let Some(channels) = dims.last_mut() {
            *channels = layer.outputs();
        }
        let to = self.point()?;
        match residual {
            None => self.keep(layer.codes(self.kernel, (images, from), to, None, activation)?, &dims, to),
            Some((residual, grid)) => {
                let (residual, sum) = (int8::codes(residual)?, self.point()?);
                let added = Some((&*residual, grid, sum));
                self.keep(layer.codes(self.kernel, (images, from), to, added, activation)?, &dims, sum)
            }
        }
    }

    /// Floats through an operation that is not rounded.
    fn unrounded(
        &mut self,
        x: &Tensor,
        op: impl FnOnce(&mut Integer<'a>, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.decoded(x)?;
        op(&mut self.simulation, &x)
    }
}

impl Forward for Engine<'_> {
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        self.encoded(x)
    }

    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let simulated = |how: &mut Integer<'_>, x: &Tensor, activation| how.conv_bn(layer, x, None, activation);
        self.layer(layer.conv().name(), x, residual, activation, simulated)
    }

    fn conv(
        &mut self,
        layer: &Conv2d,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let simulated = |how: &mut Integer<'_>, x: &Tensor, activation| how.conv(layer, x, None, activation);
        self.layer(layer.name(), x, residual, activation, simulated)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let simulated = |how: &mut Integer<'_>, x: &Tensor, activation| how.linear(layer, x, activation);
        self.layer(layer.name(), x, None, activation, simulated)
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else {
            let y = self.simulation.batch_norm(layer, x, activation)?;
            return self.encoded(&y);
        };
        let (scale, shift) = layer.scale_shift(true)?;
        let (scale, shift) = (scale.to_vec1::<f32>()?, shift.to_vec1::<f32>()?);
        check_features(x, scale.len())?;
        let to = self.point()?;
        let codes = int8::batch_norm((&int8::codes(x)?, from), (&scale, &shift), activation, to);
        self.keep(codes, x.dims(), to)
    }

    fn conv_transpose(&mut self, layer: &ConvTranspose2d, x: &Tensor) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.conv_transpose(layer, x))
    }

    fn upsample(&mut self, x: &Tensor) -> Result<Tensor> {
        self.unrounded(x, |how, x| how.upsample(x))
    }

    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        let Some(grid) = self.grid(x)? else { return self.simulation.max_pool(x, kernel, stride, padding) };
        let (b, h, w, c) = x.dims4()?;
        let (oh, ow) = pooled_size((h, w), kernel, stride, padding)?;
        let pooled = int8::max_pool(Images::new(&int8::codes(x)?, [b, h, w, c])?, (oh, ow), (kernel, stride, padding));
        self.keep(pooled, &[b, oh, ow, c], grid)
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
        Ok(Tensor::from_vec(mean, (b, c), &Device::Cpu)?)
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        match self.grid(x)? {
            // In the order of `[C,H,W]`, as weights are.
            Some(grid) => self.known(x.permute((0, 3, 1, 2))?.flatten_from(1)?.contiguous()?, grid),
            None => self.simulation.flatten(x),
        }
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> Result<Tensor> {
        let codes = self.encoded(images)?;
        let (b, h, w, _) = codes.dims4()?;
        let packed = self.layers.get(layer.conv().name()).zip(self.grid(&codes)?);
        let packed = packed.filter(|(packed, _)| {
            let (ph, pw) = packed.kernel();
            h.is_multiple_of(ph) && w.is_multiple_of(pw)
        });
        let Some((packed, from)) = packed else {
            let images = self.decoded(&codes)?;
            let y = self.simulation.embed(layer, &images)?;
            return self.encoded(&to_tokens(&y)?);
        };
        let lent = int8::codes(&codes)?;
        let images = Images::new(&lent, codes.dims4()?.into())?;
        let (rows, columns) = packed.output(images)?;
        let patches = packed.values(self.kernel, (images, from))?;
        let patches = Tensor::from_vec(patches, (b, rows * columns, packed.outputs()), &Device::Cpu)?;
        let class = layer.class().detach().broadcast_as((b, 1, packed.outputs()))?;
        let tokens = Tensor::cat(&[class.contiguous()?, patches], 1)?.broadcast_add(&layer.position().detach())?;
        self.encoded(&tokens)
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else {
            let y = self.simulation.layer_norm(layer, x)?;
            return self.encoded(&to_tokens(&y)?);
        };
        let (gamma, beta) = (layer.weight().to_vec1::<f32>()?, layer.bias().to_vec1::<f32>()?);
        check_features(x, gamma.len())?;
        let to = self.point()?;
        let codes = int8::layer_norm((&int8::codes(x)?, from), (&gamma, &beta), layer.eps(), to);
        self.keep(codes, x.dims(), to)
    }

    fn attend(&mut self, qkv: &Tensor, heads: usize) -> Result<Tensor> {
        let Some(from) = self.grid(qkv)? else {
            let y = self.simulation.attend(qkv, heads)?;
            return self.encoded(&to_tokens(&y)?);
        };
        let (b, t, features) = qkv.dims3()?;
        let to = self.point()?;
        let mixed = int8::attend((&int8::codes(qkv)?, from), [b, t, features], heads, to)?;
        self.keep(mixed, &[b, t, features / 3], to)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match (self.grid(x)?, self.grid(y)?) {
            (Some(from_x), Some(from_y)) if x.dims() == y.dims() => {
                let to = self.point()?;
                let codes = int8::add((&int8::codes(x)?, from_x), (&int8::codes(y)?, from_y), to);
                self.keep(codes, x.dims(), to)
            }
            _ => {
                let sum = (self.decoded(x)? + self.decoded(y)?)?;
                self.encoded(&sum)
            }
        }
    }

    fn class_token(&mut self, x: &Tensor) -> Result<Tensor> {
        match self.grid(x)? {
            Some(grid) => self.known(x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, grid),
            None => self.simulation.class_token(x),
        }
    }
}

/// Refuses an activation whose last dimension is not `features`.
fn check_features(x: &Tensor, features: usize) -> Result<()> {
    match x.dims().last() {
        Some(&last) if last == features => Ok(()),
        found => Err(Error::invalid(format!("integer forward: expected {features} features, found {found:?}"))),
    }
}
